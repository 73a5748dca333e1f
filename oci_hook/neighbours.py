"""Who shares a GPU: <state>/gpus/<uuid>/ has a link to the share file of each container on it, for the others to read.

Layout and names: libcuda_wrap/include/vgw_share.h. The names say what the host has given, so they are changed with it;
the files are the containers' own to write. A link is valid as long as its file has more links than GPUs: the one more
is in the container's folder, whose end is the end of the slice, so nobody has to clear up here in time.
"""

from __future__ import annotations

import os

from oci_hook import quota_file
from oci_hook.values import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oci_hook.records import Slice

_HEAD_BYTES, _PAST_BYTES, _GPUS = 1024, 139264, 16  # struct vgw_share: its records, and a past for each GPU
SHARE_BYTES = _HEAD_BYTES + _GPUS * _PAST_BYTES
FOLDER = "gpus"


def used_bytes(gpus: int) -> int:
    """Of the share file, what a container on so many GPUs can touch. The rest stays a hole: it is 2 MiB, of memory
    where the state folder is a tmpfs."""
    return _HEAD_BYTES + gpus * _PAST_BYTES


def gpu_folder(state_dir: str, uuid: str) -> str:
    """What a container on that GPU gets as /usr/lib/vgpu/gpu<number>."""
    return f"{state_dir}/{FOLDER}/{uuid}"


def enter(state_dir: str, box: int, slices: Sequence[Slice], quota: bytes) -> None:
    """Links the box's share file into the folder of each of its GPUs, or renames the link that is there already.

    box: the container's, open. quota: what its quota file holds. The ledger's lock is held. Raises OSError.
    """
    top = f"{state_dir}/{FOLDER}"
    if not os.path.isdir(top):
        os.mkdir(top, 0o700)  # share files can be written by everyone in a container, but by no one else on the host
    inode = os.stat("share", dir_fd=box).st_ino
    for number, part in enumerate(slices):
        path = gpu_folder(state_dir, part.uuid)
        if not os.path.isdir(path):
            os.mkdir(path)
            os.chmod(path, 0o755)  # whatever the umask
        name = f"{part.cores_percent}.{number}.{len(slices)}.{_class(part, number, quota)}.{inode}"
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _link(box, folder, name, inode)
        finally:
            os.close(folder)


def _class(part: Slice, number: int, quota: bytes) -> int:
    flags, priority = quota_file.live_flags(quota, number)
    return priority + 1 if flags & quota_file.FLAG_SOFT and 0 < part.cores_percent < 100 else 0


def _link(box: int, folder: int, name: str, inode: int) -> None:
    """What ended containers have left goes on the way."""
    mine = ""
    with os.scandir(folder) as found:
        for item in found:
            if item.inode() == inode:
                mine = item.name
            elif item.stat(follow_symlinks=False).st_nlink <= _gpus(item.name):
                os.unlink(item.name, dir_fd=folder)
    if mine:
        os.rename(mine, name, src_dir_fd=folder, dst_dir_fd=folder)
    else:
        os.link("share", name, src_dir_fd=box, dst_dir_fd=folder, follow_symlinks=False)


def _gpus(name: str) -> int:
    words = name.split(".")
    return int(words[2]) if len(words) == 5 and words[2].isdigit() else 1
