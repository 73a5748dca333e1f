"""What a process has mapped: every library that says it is CUDA's driver or NVML, and which files it shares.

Nothing of the process is believed but what the kernel tells: a mapped file is opened through /proc/<pid>/map_files,
which leads to the mapped inode itself whatever its path shows by now. Where the kernel does not let us (no
CAP_SYS_ADMIN), the path is walked below /proc/<pid>/root, one folder at a time and through no link, and taken only if
it is the same inode. What is no regular file is never opened for reading.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from oci_hook import elf

CUDA, NVML = "libcuda.so.1", "libnvidia-ml.so.1"
_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) ([0-9]+) *(.*)")
_MAX_MAPS = 32 << 20  # bytes: 65530 mappings, the kernel's usual limit, are 8 MiB
_TRIES = 3  # a process that maps and unmaps meanwhile is looked at again
_WALK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Library:
    """A mapped file that is CUDA's driver, NVML, or a wrapper of one. identity: (st_dev, st_ino), as in plan.json.

    path: as the kernel shows it, for people only. wraps: it needs the driver's file under our name, as wrappers do.
    """

    path: str
    identity: tuple[int, int]
    soname: str
    build_id: str
    wraps: bool


@dataclass(frozen=True, slots=True)
class Process:
    """One process. trouble: why it could not be looked at, "" if it could. shared: identities of shared files."""

    pid: int
    inner_pid: int = 0
    command: str = ""
    trouble: str = ""
    libraries: tuple[Library, ...] = ()
    shared: tuple[tuple[int, int], ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def from_json(raw: dict[str, Any]) -> Process:
    """The reverse of `Process.as_json`, after JSON has made lists of tuples."""
    libraries = tuple(Library(**{**one, "identity": tuple(one["identity"])}) for one in raw["libraries"])
    return Process(**{**raw, "libraries": libraries, "shared": tuple(map(tuple, raw["shared"]))})


@dataclass(frozen=True, slots=True)
class _Mapping:
    """One inode that a process has mapped, by the first of its mappings that is executable, else by the first."""

    range: str
    executable: bool
    shared: bool
    device: int
    inode: int
    path: str


class Reader:
    """Looks at processes. It remembers files by their identity, as most processes map the same ones."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._known: dict[tuple[int, ...], elf.Elf | None] = {}

    def process(self, pid: int) -> Process | None:
        """None if it has ended."""
        for _ in range(_TRIES):
            try:
                return self._look(pid)
            except (FileNotFoundError, ProcessLookupError):
                if not os.path.exists(f"{self._proc}/{pid}"):
                    return None
            except (OSError, ValueError) as error:
                return Process(pid, trouble=_why(error))
        return Process(pid, trouble="what it has mapped changes while it is read")

    def _look(self, pid: int) -> Process:
        command, inner = self._command(pid), self._inner_pid(pid)
        libraries, shared = [], []
        for mapping in self._mappings(pid):
            if mapping.shared:
                shared.append(self._identity(pid, mapping))
            elif mapping.executable and (library := self._library(pid, mapping)):
                libraries.append(library)
        return Process(pid, inner, command, "", tuple(libraries), tuple(shared))

    def _command(self, pid: int) -> str:
        with open(f"{self._proc}/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read(64).strip()

    def _inner_pid(self, pid: int) -> int:
        with open(f"{self._proc}/{pid}/status", encoding="utf-8", errors="replace") as file:
            found = re.search(r"^NSpid:.*?(\d+)$", file.read(1 << 16), re.MULTILINE)
        return int(found[1]) if found else pid

    def _mappings(self, pid: int) -> Iterator[_Mapping]:
        with open(f"{self._proc}/{pid}/maps", encoding="utf-8", errors="backslashreplace") as file:
            text = file.read(_MAX_MAPS)
        if len(text) == _MAX_MAPS:
            raise ValueError(f"it has more mappings than {_MAX_MAPS >> 20} MiB of text")
        found: dict[tuple[int, int], _Mapping] = {}
        for match in map(_LINE.fullmatch, text.splitlines()):
            if match is None or match[6] == "0":
                continue
            device, inode = os.makedev(int(match[4], 16), int(match[5], 16)), int(match[6])
            mapping = _Mapping(
                f"{int(match[1], 16):x}-{int(match[2], 16):x}", match[3][2] == "x", match[3][3] == "s", device, inode,
                match[7],
            )  # fmt: skip
            before = found.get((device, inode))
            if before is None or (mapping.executable and not before.executable):
                found[device, inode] = mapping
        yield from found.values()

    def _library(self, pid: int, mapping: _Mapping) -> Library | None:
        descriptor = self._open(pid, mapping)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None
            found = self._parsed(descriptor, status)
        finally:
            os.close(descriptor)
        if found is None or found.soname not in (CUDA, NVML):
            return None
        wraps = any(name.startswith("libvgpu-") for name in found.needed)
        return Library(mapping.path, (status.st_dev, status.st_ino), found.soname, found.build_id, wraps)

    def _parsed(self, descriptor: int, status: os.stat_result) -> elf.Elf | None:
        key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        if key not in self._known:
            reading = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                self._known[key] = elf.parse(lambda offset, size: os.pread(reading, size, offset))
            except elf.ElfError:
                self._known[key] = None  # code that no loader has loaded: a program's own, or a 32-bit one
            finally:
                os.close(reading)
        return self._known[key]

    def _identity(self, pid: int, mapping: _Mapping) -> tuple[int, int]:
        descriptor = self._open(pid, mapping)
        try:
            status = os.fstat(descriptor)
            return status.st_dev, status.st_ino
        finally:
            os.close(descriptor)

    def _open(self, pid: int, mapping: _Mapping) -> int:
        """An O_PATH descriptor of the mapped inode; nothing of it is read or touched by that."""
        try:
            return os.open(f"{self._proc}/{pid}/map_files/{mapping.range}", os.O_PATH | os.O_CLOEXEC)
        except PermissionError:
            return self._walk(pid, mapping)

    def _walk(self, pid: int, mapping: _Mapping) -> int:
        at = os.open(f"{self._proc}/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in filter(None, mapping.path.split("/")):
            try:
                inner = os.open(part, _WALK, dir_fd=at)
            finally:
                os.close(at)
            at = inner
        status = os.fstat(at)
        if (status.st_dev, status.st_ino) != (mapping.device, mapping.inode):
            os.close(at)
            raise ValueError(f"what it has mapped as {mapping.path} is not there any more")
        return at


def _why(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
