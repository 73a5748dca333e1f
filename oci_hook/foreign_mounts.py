"""The driver's libraries that others have mounted into a container before us, as NVIDIA's toolkit does."""

from __future__ import annotations

import errno
import os
import stat

from oci_hook import syscalls
from oci_hook.preflight import Copy
from oci_hook.rootview import INSIDE
from oci_hook.values import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from oci_hook.mountinfo import MountInfo
    from oci_hook.mounts import Source

_STARTS = {"libcuda.so": "cuda", "libnvidia-ml.so": "nvml"}
_SYSTEM = ("/proc/", "/sys/", "/dev/")
_DRIVERS = {"libvgpu-driver.so": "cuda", "libvgpu-nvml.so": "nvml"}  # names of the host driver's files in our box


def copies(root: int, info: MountInfo, sources: Sequence[Source]) -> Iterator[Copy]:
    """Wherever they are: a hook that comes later may put their folder into the loader's path.

    root: O_PATH fd. info: of this namespace, before anything of `sources` was mounted. The host driver's own files are
    known under any name, others, as of an older driver, by their names.
    """
    drivers = {_DRIVERS[source.mount.target]: source for source in sources if source.mount.target in _DRIVERS}
    for path in info.below(os.readlink(f"/proc/self/fd/{root}")):
        name = os.path.basename(path)
        role = next((role for start, role in _STARTS.items() if name.startswith(start)), "")
        if not role and path.startswith(_SYSTEM):
            continue  # most mounts of most containers; each look costs 10 us
        try:
            fd = syscalls.openat2(root, path, os.O_PATH, INSIDE)
        except OSError:
            continue  # something is mounted above it: nobody sees it
        status = os.fstat(fd)
        os.close(fd)
        role = role or next((role for role, driver in drivers.items() if driver.is_seen_at(status)), "")
        if role and stat.S_ISREG(status.st_mode):
            yield Copy(path, role)


def behind(root: int, link: str, foreign: Sequence[Copy]) -> int:
    """An O_PATH fd of what `link` leads to, in the same mount or on one of `foreign`. Raises OSError as openat2."""
    try:
        return syscalls.openat2(root, link, os.O_PATH, INSIDE | syscalls.NO_XDEV)
    except OSError as error:
        if error.errno != errno.EXDEV or not foreign:
            raise
    fd = syscalls.openat2(root, link, os.O_PATH, INSIDE)
    path = os.readlink(f"/proc/self/fd/{fd}").removeprefix(os.readlink(f"/proc/self/fd/{root}").rstrip("/"))
    if any(copy.path == path for copy in foreign):
        return fd
    os.close(fd)
    raise OSError(errno.EXDEV, "leads to another mount")


def has(fd: int, root: int, source: Source) -> bool:
    """Does `fd`, a path in `root`, show the file of `source` already, because others have mounted it there?"""
    if source.mount.writable or not source.is_seen_at(os.fstat(fd)):
        return False
    return syscalls.mount_id(fd) != syscalls.mount_id(root)
