"""The kernel calls behind the fd-only mounts, each with Python types and OSError. Nothing here decides anything.

Every call takes and gives file descriptors; the caller closes them. Kernel: 5.12 or newer (mount_setattr).
"""

from __future__ import annotations

import os

from oci_hook import _vgsys  # type: ignore[attr-defined]

_LIB = _vgsys.lib
_FFI = _vgsys.ffi

# openat2: how a path may be resolved
NO_XDEV = 0x01  # never into another mount
NO_MAGICLINKS = 0x02  # never through /proc/<pid>/fd/… and the like
NO_SYMLINKS = 0x04
BENEATH = 0x08  # fails where IN_ROOT would clamp
IN_ROOT = 0x10  # `/` and `..` end at the directory that is handed over

# mount attributes
RDONLY, NOSUID, NODEV, NOEXEC = 0x1, 0x2, 0x4, 0x8
_PRIVATE = 1 << 18

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000

_ATTEMPTS = 1000  # a few microseconds each
_TREE_CLONE = 0x1 | os.O_CLOEXEC
_EMPTY_PATH = 0x1000


def _checked(result: int) -> int:
    if result < 0:
        number = _FFI.errno
        raise OSError(number, os.strerror(number))
    return result


def openat2(directory: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """A new fd. `resolve` is a sum of NO_XDEV, IN_ROOT, …; a path with a NUL raises ValueError.

    The kernel gives up on a `..` below a root while anything is renamed or mounted anywhere (openat2(2), EAGAIN), as
    other starts do all the time: then it is asked again.
    """
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError("a path holds a NUL")
    for _ in range(_ATTEMPTS):
        try:
            return _checked(_LIB.vgs_openat2(directory, raw, flags | os.O_CLOEXEC, mode, resolve))
        except BlockingIOError:
            os.sched_yield()
    return _checked(_LIB.vgs_openat2(directory, raw, flags | os.O_CLOEXEC, mode, resolve))


def clone_tree(fd: int) -> int:
    """A detached bind mount of what `fd` refers to. `fd` must belong to the caller's mount namespace."""
    return _checked(_LIB.vgs_open_tree(fd, b"", _TREE_CLONE | _EMPTY_PATH))


def set_private_attributes(mount: int, attributes: int) -> None:
    """Sets RDONLY, NOSUID, … on a mount, and makes it private: nothing done on it ever shows elsewhere."""
    _checked(_LIB.vgs_mount_setattr(mount, attributes, _PRIVATE))


def attach(mount: int, target: int) -> None:
    """Mounts a detached tree over the file or folder that `target` refers to."""
    _checked(_LIB.vgs_move_mount(mount, target))


def unmount(fd: int) -> None:
    """Takes away the mount that `fd`, opened at its root, was opened through; who has files of it open keeps them."""
    _checked(_LIB.vgs_unmount(fd))


def setns(fd: int, kind: int) -> None:
    _checked(_LIB.vgs_setns(fd, kind))


def has_ended(pidfd: int) -> bool:
    return _checked(_LIB.vgs_ended(pidfd)) != 0


def mount_id(fd: int) -> int:
    """Of the mount that `fd` was opened through: the first field of its line in mountinfo."""
    result: int = _checked(_LIB.vgs_mount_id(fd))
    return result
