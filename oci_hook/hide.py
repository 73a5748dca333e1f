"""Takes device files out of a container that is being created: those that the engine has put there for others' GPUs.

What an engine gives by CDI (`--device vgpu.dev/gpu=all`) is there before we are asked which GPU it is to be. The file
goes, so that no program finds the GPU; the control group's rule stays, as a runtime writes that anew when it likes.
"""

from __future__ import annotations

import os
import stat

from oci_hook import syscalls
from oci_hook.errors import ImageError, shown
from oci_hook.rootview import INSIDE
from oci_hook.values import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oci_hook.mounts import Container

_STACKED = 16  # mounts over one another on one file; more than any engine makes


def hide(container: Container, paths: Sequence[str]) -> None:
    """Each of `paths` is gone from the container's tree. Raises ImageError VGPU-IMG-003 if one cannot be."""
    for path in paths:
        folder, name = container.folder(os.path.dirname(path)), os.path.basename(path)
        try:
            if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise _stays(path, "the image has a link there, which the runtime has followed")
            for _ in range(_STACKED):
                if not _unmount(folder, name):
                    break
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _stays(path, f"errno {error.errno}") from None
        if _is_there(container.root, path):
            raise _stays(path, "it can be reached by another way")


def _unmount(folder: int, name: str) -> bool:
    """Takes away the mount that is on the file; False if there is none."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if syscalls.mount_id(fd) == syscalls.mount_id(folder):
            return False
        syscalls.unmount(fd)
        return True
    finally:
        os.close(fd)


def _is_there(root: int, path: str) -> bool:
    try:
        os.close(syscalls.openat2(root, path, os.O_PATH | os.O_NOFOLLOW, INSIDE))
    except OSError:
        return False
    return True


def _stays(path: str, why: str) -> ImageError:
    return ImageError(
        "VGPU-IMG-003",
        f"the device file {shown(path, 200)} of a GPU that is not the container's cannot be taken out: {why}",
        remedy="name the GPU instead of all of them: --device vgpu.dev/gpu=0, as `vgpu cdi list` shows",
    )
