"""Which of a driver's exported functions the wrapper knows, and what it does with each.

A driver library is read from its file and never loaded. `known_drivers/<branch>.txt` has the names that NVIDIA's own
libraries of that branch export, one a line, both libraries together; a test compares the lists with the libraries.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from struct import error as struct_error
from struct import unpack_from

import yaml

from oci_hook.errors import HostError, shown

KINDS = ("pass", "charge", "limit", "answer", "refuse", "unknown")
KNOWN = Path(__file__).resolve().parent / "known_drivers"
TABLES = {"libcuda": "entry_points.yaml", "libnvidia-ml": "nvml_entry_points.yaml"}
# The debugger's and the profilers' door into libcuda, as functions and as variables: for a process outside, no memory.
DEBUGGER = re.compile("cudbg[A-Z]")
# NVML hands out no memory, so a function without a row is the driver's own, unless it shows what a slice must not see.
NVML_SHOWS = re.compile(
    r"nvmlDeviceGet(MemoryInfo|Count|HandleBy|Index|Utilization|Accounting[PS]|Process|\w*RunningProcess)"
)

_SHT_DYNSYM = 11
_MAX_SYMBOLS = 1 << 20
_LOCAL = 0
_MAX_BYTES = 1 << 29  # NVIDIA's libcuda has 30 to 100 MB


@dataclass(frozen=True)
class Coverage:
    """A driver library against our table. names: by kind, sorted. branch: 535 of libcuda.so.535.261.03, 0: not said.

    known: we have that branch's list, so nothing may be unknown; in a newer driver something may.
    """

    path: str
    library: str
    version: str
    branch: int
    known: bool
    names: dict[str, tuple[str, ...]]

    @property
    def exit_code(self) -> int:
        """0: every function has its row. 1: an unknown one, in a driver newer than we know. 2: in one that we know."""
        return (2 if self.known else 1) if self.names["unknown"] else 0


def exports(data: bytes) -> frozenset[str]:
    """Names of the functions and variables that a 64-bit library defines. Raises ValueError if it is none."""
    try:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a 64-bit little-endian ELF file")
        table, size, count = unpack_from("<Q", data, 40)[0], *unpack_from("<HH", data, 58)
        sections = [unpack_from("<IIQQQQII", data, table + size * number) for number in range(count)]
        symbols = next((section for section in sections if section[1] == _SHT_DYNSYM), None)
        if symbols is None:
            raise ValueError("no table of dynamic symbols")
        strings, length = sections[symbols[6]][4:6]
        if symbols[5] > 24 * _MAX_SYMBOLS:
            raise ValueError("more symbols than any library has")
        found = set()
        for at in range(symbols[4], symbols[4] + symbols[5], 24):
            name, info, _, section = unpack_from("<IBBH", data, at)
            if section and info >> 4 != _LOCAL and name < length:
                found.add(data[strings + name : data.index(b"\0", strings + name)].decode("ascii"))
        return frozenset(found)
    except (struct_error, OverflowError, IndexError, UnicodeDecodeError):
        raise ValueError("an ELF file whose tables make no sense") from None


def kind_of(name: str, rows: dict[str, str]) -> str:
    """What the wrapper does with a driver's export; "unknown" if nobody has thought about it."""
    if name in rows:
        return rows[name]
    nvml = name.startswith("nvml") and not NVML_SHOWS.match(name)
    return "pass" if nvml or DEBUGGER.match(name) else "unknown"


def rows(library: str) -> dict[str, str]:
    """Name to kind, from the table of "libcuda" or "libnvidia-ml"."""
    table = yaml.safe_load((Path(__file__).resolve().parent / TABLES[library]).read_text("utf-8"))
    return {name: row["kind"] for name, row in table.items()}


def sorted_by_kind(names: Iterable[str], known: dict[str, str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name in sorted(names):
        found[kind_of(name, known)].append(name)
    return {kind: tuple(group) for kind, group in found.items()}


def listed(branch: int) -> frozenset[str]:
    """The names in a known driver's list; comments left out."""
    lines = (KNOWN / f"{branch}.txt").read_text("ascii").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def branches() -> tuple[int, ...]:
    """The driver branches of which we have lists, oldest first."""
    return tuple(sorted(int(path.stem) for path in KNOWN.glob("*.txt")))


def unknown_in_lists() -> dict[int, tuple[str, ...]]:
    """By known driver, the names without a row; empty is how it must be."""
    known = {library: rows(library) for library in TABLES}
    found = {}
    for branch in branches():
        names = listed(branch)
        nvml = {name for name in names if name.startswith("nvml")}
        unknown = sorted_by_kind(names - nvml, known["libcuda"])["unknown"]
        unknown += sorted_by_kind(nvml, known["libnvidia-ml"])["unknown"]
        if unknown:
            found[branch] = unknown
    return found


def _read(path: Path) -> bytes:
    """A file's bytes. Raises ValueError for what is none, or has no end: a name may lead to a FIFO or a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("not a file")
        if state.st_size > _MAX_BYTES:
            raise ValueError("larger than any library")
        return file.read(_MAX_BYTES)


def of(path: Path, version: str = "") -> Coverage:
    """Reads a libcuda or libnvidia-ml. version: if the file's name does not say it. Raises HostError VGPU-HOST-007."""
    real = Path(os.path.realpath(path))
    library = next((name for name in TABLES if real.name.startswith(f"{name}.so")), "libcuda")
    said = re.fullmatch(r".*\.so\.(\d+\.[\d.]+)", real.name)
    version = said[1] if said else version
    try:
        names = exports(_read(real))
        if not any(name.startswith(("cu", "nvml")) for name in names):
            raise ValueError("none of a driver's functions in it")
    except (OSError, ValueError) as err:
        why = f"errno {err.errno}" if isinstance(err, OSError) else str(err)
        raise HostError(
            "VGPU-HOST-007", f"{shown(str(path), 200)}: {why}", remedy="name a libcuda.so or libnvidia-ml.so"
        ) from None
    branch = int(version.split(".")[0]) if version[:1].isdigit() else 0
    own = {name for name in names if name.startswith(("cu", "nvml"))}  # no toolchain's _init, _edata
    return Coverage(str(path), library, version, branch, branch in branches(), sorted_by_kind(own, rows(library)))
