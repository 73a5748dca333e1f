"""A root file tree that nobody trusts, read through file descriptors below its root.

Every path is resolved by the kernel with openat2: absolute links and `..` end at the root, magic links (/proc/<pid>/…)
are refused. Files are first opened without being read (O_PATH), so that no FIFO blocks and no device is touched.
"""

from __future__ import annotations

import os
import stat

from oci_hook import elf, ldcache, syscalls
from oci_hook.elf import Elf, ElfError
from oci_hook.errors import ImageError, shown

_MAX_NAMES = 100_000  # in one folder; more would take the hook's whole time
_PARSED: dict[tuple[int, ...], Elf] = {}  # a file that is still the same is not read twice by one process
INSIDE = syscalls.IN_ROOT | syscalls.NO_MAGICLINKS


class RootView:
    """`fd` is the open root folder; the caller closes it. Whatever cannot be resolved inside the root is not there.

    prefix: the root's own path. looked: the folders of the root, "/usr", below which something was looked for, found or
    not; only if `noting`, as it costs a tenth of the whole check.
    """

    def __init__(self, fd: int, *, noting: bool = False) -> None:
        self.fd = fd
        self.noting = noting
        self.looked: set[str] = set()
        self.prefix = os.readlink(f"/proc/self/fd/{fd}").rstrip("/")

    def find(self, path: str, flags: int = os.O_PATH) -> int | None:
        """An fd that the caller closes, or None."""
        if self.noting:
            self._note(path)
        try:
            found = syscalls.openat2(self.fd, path, flags, INSIDE)
        except (OSError, ValueError):
            return None
        if self.noting:
            self._note(os.readlink(f"/proc/self/fd/{found}").removeprefix(self.prefix))  # where links have led
        return found

    def _note(self, path: str) -> None:
        self.looked.add("/" + path.lstrip("/").split("/", 1)[0])

    def open_file(self, path: str) -> int | None:
        """A regular file for reading, which the caller closes; None if there is none that can be read."""
        found = self.find(path)
        if found is None:
            return None
        try:
            return _reopen(found) if stat.S_ISREG(os.fstat(found).st_mode) else None
        finally:
            os.close(found)

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

    def elf(self, path: str) -> Elf | None:
        """None when there is no regular file of that name. Raises ElfError for a file that no loader would take."""
        found = self.find(path)
        if found is None:
            return None
        try:
            now = os.fstat(found)
            if not stat.S_ISREG(now.st_mode):
                return None
            key = now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns
            return _PARSED.get(key) or self._parse(found, key)
        finally:
            os.close(found)

    def _parse(self, found: int, key: tuple[int, ...]) -> Elf | None:
        fd = _reopen(found)
        if fd is None:
            return None
        try:
            _PARSED[key] = elf.parse(lambda offset, size: os.pread(fd, size, offset), build_id=False)
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

    def names(self, folder: str, seen: set[tuple[int, int]] | None = None) -> list[str]:
        """The names in a folder, none if there is no such folder. seen: identities of folders that count as none; this
        one is added."""
        fd = self.find(folder, os.O_RDONLY | os.O_DIRECTORY)  # at once: what is no folder is not opened
        if fd is None:
            return []
        try:
            if seen is not None:
                status = os.fstat(fd)
                if (status.st_dev, status.st_ino) in seen:
                    return []
                seen.add((status.st_dev, status.st_ino))
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

    def head(self, path: str, size: int) -> bytes | None:
        """The first bytes of a regular file, None if there is none."""
        descriptor = self.open_file(path)
        if descriptor is None:
            return None
        try:
            return os.pread(descriptor, size, 0)
        finally:
            os.close(descriptor)

    def is_program(self, path: str) -> bool:
        """Whether it is a regular file that somebody may execute."""
        found = self.find(path)
        if found is None:
            return False
        try:
            mode = os.fstat(found).st_mode
            return stat.S_ISREG(mode) and mode & 0o111 != 0
        finally:
            os.close(found)

    def real(self, path: str) -> str:
        """The path without links of what it leads to; "" if that is nothing."""
        found = self.find(path)
        if found is None:
            return ""
        try:
            return os.readlink(f"/proc/self/fd/{found}").removeprefix(self.prefix) or "/"
        finally:
            os.close(found)

    def loader_cache(self, machine: int) -> dict[str, tuple[str, ...]]:
        """/etc/ld.so.cache as ldcache.parse gives it; empty if there is none, or none that glibc would use."""
        return ldcache.read(self.read("/etc/ld.so.cache", ldcache.MAX_BYTES), machine)


def _reopen(found: int) -> int | None:
    """The same inode again, now for reading: no second look at the path."""
    try:
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
