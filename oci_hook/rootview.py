"""A root file tree that nobody trusts, read through file descriptors below its root.

Every path is resolved by the kernel with openat2: absolute links and `..` end at the root, magic links (/proc/<pid>/…)
are refused. Files are first opened without being read (O_PATH), so that no FIFO blocks and no device is touched.
"""

from __future__ import annotations

import os
import stat

from oci_hook import elf, ldcache, syscalls
from oci_hook.elf import ElfError
from oci_hook.errors import ImageError, shown

_MAX_NAMES = 100_000  # in one folder; more would take the hook's whole time
_PARSED: dict[tuple[int, ...], elf.Elf] = {}  # a file that is still the same is not read twice by one process
INSIDE = syscalls.IN_ROOT | syscalls.NO_MAGICLINKS


class RootView:
    """`fd` is the open root folder; the caller closes it. Whatever cannot be resolved inside the root is not there.

    prefix: the root's own path. looked: the folders of the root, "/usr", below which something was looked for, found or
    not.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.looked: set[str] = set()
        self.prefix = os.readlink(f"/proc/self/fd/{fd}").rstrip("/")

    def find(self, path: str, flags: int = 0) -> int | None:
        """An O_PATH fd that the caller closes, or None."""
        self._note(path)
        try:
            found = syscalls.openat2(self.fd, path, os.O_PATH | flags, INSIDE)
        except (OSError, ValueError):
            return None
        self._note(os.readlink(f"/proc/self/fd/{found}").removeprefix(self.prefix))  # where links have led
        return found

    def _note(self, path: str) -> None:
        self.looked.add("/" + path.lstrip("/").partition("/")[0])

    def _reopen(self, path: str, kind: int, flags: int) -> int | None:
        found = self.find(path)
        if found is None:
            return None
        try:
            if stat.S_IFMT(os.fstat(found).st_mode) != kind:
                return None
            # the same inode again, now for reading: no second look at the path
            return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC | flags)
        except OSError:
            return None
        finally:
            os.close(found)

    def open_file(self, path: str) -> int | None:
        """A regular file for reading, which the caller closes; None if there is none that can be read."""
        return self._reopen(path, stat.S_IFREG, 0)

    def read(self, path: str, limit: int) -> bytes | None:
        """The bytes of a regular file, None if there is none. A file of more than `limit` bytes raises ImageError."""
        fd = self.open_file(path)
        if fd is None:
            return None
        try:
            if os.fstat(fd).st_size > limit:
                raise ImageError(
                    "VGPU-IMG-001",
                    f"the image's {shown(path, 256)} has more than {limit} bytes",
                    remedy="remove it from the image",
                )
            return os.pread(fd, limit, 0)
        finally:
            os.close(fd)

    def elf(self, path: str) -> elf.Elf | None:
        """None when there is no regular file of that name. Raises ElfError for a file that no loader would take."""
        fd = self._reopen(path, stat.S_IFREG, 0)
        if fd is None:
            return None
        try:
            found = os.fstat(fd)
            key = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
            if key not in _PARSED:
                _PARSED[key] = elf.parse(lambda offset, size: os.pread(fd, size, offset))
            return _PARSED[key]
        except OSError as error:
            raise ElfError(f"cannot be read ({error.strerror})") from None
        finally:
            os.close(fd)

    def is_file(self, path: str) -> bool:
        found = self.find(path)
        if found is None:
            return False
        try:
            return stat.S_ISREG(os.fstat(found).st_mode)
        finally:
            os.close(found)

    def names(self, folder: str) -> list[str]:
        """The names in a folder, none if there is no such folder."""
        fd = self._reopen(folder, stat.S_IFDIR, os.O_DIRECTORY)
        if fd is None:
            return []
        try:
            with os.scandir(fd) as entries:
                found = [entry.name for _, entry in zip(range(_MAX_NAMES + 1), entries, strict=False)]
        finally:
            os.close(fd)
        if len(found) > _MAX_NAMES:
            raise ImageError(
                "VGPU-IMG-001",
                f"the image's folder {shown(folder, 256)} has more than {_MAX_NAMES} entries",
                remedy="split the folder, or leave it out of the loader's path",
            )
        return found

    def identity(self, path: str) -> tuple[int, int] | None:
        """(st_dev, st_ino) of what the path leads to, None if to nothing."""
        found = self.find(path)
        if found is None:
            return None
        try:
            status = os.fstat(found)
            return status.st_dev, status.st_ino
        finally:
            os.close(found)

    def loader_cache(self, machine: int) -> dict[str, tuple[str, ...]]:
        """/etc/ld.so.cache as ldcache.parse gives it; empty if there is none, or none that glibc would use."""
        return ldcache.read(self.read("/etc/ld.so.cache", ldcache.MAX_BYTES), machine)
