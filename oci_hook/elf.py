"""What a dynamic loader would ask of an ELF file: its names, what it needs, which symbol versions it needs and has.

Reads 64-bit little-endian files through a `read(offset, size)` function, never the whole file: the files belong to an
image that nobody trusts. Every size and count is bounded, nothing recurses, and whatever does not fit is an ElfError.
Source: System V gABI, and the GNU symbol versioning sections of the Linux Standard Base.
"""

from __future__ import annotations

from struct import Struct, iter_unpack, unpack_from

from oci_hook.values import TYPE_CHECKING, dataclass

if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[int, int], bytes]

X86_64, AARCH64 = 62, 183

_MAX_SEGMENTS = 256
_MAX_DYNAMIC = 1 << 16  # bytes
_MAX_VERSIONS = 1 << 18  # bytes of one version section; glibc's own has 2 KiB
_VERSIONS = 1 << 12  # bytes of it looked at first
_MAX_NAME = 4096  # bytes of one string, its NUL included
_MAX_NOTES = 1 << 16  # bytes
_MAX_NEEDED = 1024
_HEAD = 64 + 56 * 14  # file header and the program headers of most libraries
_WINDOW = 4096  # bytes of the string table looked at at once: the names that are asked for lie together
_CHUNK = 1 << 14  # bytes read at once: what is asked for lies in two or three places, and small libraries are whole

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_NOTE = _KINDS = 1, 2, 3, 4
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 1, 5, 10, 14, 15, 29
_DT_VERDEF, _DT_VERNEED = 0x6FFFFFFC, 0x6FFFFFFE
_WANTED = frozenset((
    _DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME, _DT_RPATH, _DT_RUNPATH, _DT_VERDEF, _DT_VERNEED
))  # fmt: skip
_VER_BASE, _VER_WEAK = 1, 2
_NOTE_BUILD_ID = 3


class ElfError(ValueError):
    """Not a file that a 64-bit little-endian loader would take; the text is the reason."""


@dataclass(frozen=True)
class Elf:
    """machine: X86_64, AARCH64 or another e_machine. rpath, runpath, interpreter: as they stand in the file, or "".

    requires: per needed library the symbol versions without which the loader refuses. provides: versions defined here.
    build_id: hexadecimal, or "".
    """

    machine: int
    soname: str
    needed: tuple[str, ...]
    rpath: str
    runpath: str
    interpreter: str
    requires: dict[str, tuple[str, ...]]
    provides: tuple[str, ...]
    build_id: str


class _Segment:
    def __init__(self, kind: int, offset: int, address: int, size: int) -> None:
        self.kind, self.offset, self.address, self.size = kind, offset, address, size


class _File:
    def __init__(self, read: Read) -> None:
        self.read = read
        self.chunk, self.start = b"", 0  # what was read last, and where it lies in the file
        head = self.up_to(0, _HEAD)
        if len(head) < 64:
            raise ElfError("cut short")
        if head[:4] != b"\x7fELF":
            raise ElfError("not an ELF file")
        if head[4] != 2 or head[5] != 1:
            raise ElfError("not a 64-bit little-endian ELF file")
        kind, self.machine = unpack_from("<HH", head, 16)
        if kind not in (2, 3):  # a program or a shared object
            raise ElfError("an ELF file that cannot be loaded")
        table_offset = unpack_from("<Q", head, 32)[0]
        entry_size, count = unpack_from("<HH", head, 54)
        if entry_size != 56 or not 0 < count <= _MAX_SEGMENTS:
            raise ElfError("a program header table that makes no sense")
        table = head[table_offset : table_offset + count * 56]
        if len(table) != count * 56:
            table = self.exactly(table_offset, count * 56)
        self.segments = [
            _Segment(kind, offset, address, size)
            for kind, _, offset, address, _, size, _, _ in iter_unpack("<IIQQQQQQ", table)
            if kind in _KINDS
        ]

    def up_to(self, offset: int, size: int) -> bytes:
        if offset >= 1 << 62:  # pread takes no more than 63 bits
            raise ElfError("an offset beyond any file")
        at = offset - self.start
        if not 0 <= at <= at + size <= len(self.chunk):
            self.start = offset & -_CHUNK // 8  # names that are asked for next may lie a little before
            at = offset - self.start
            self.chunk = self.read(self.start, max(_CHUNK, at + size))
        return self.chunk[at : at + size]

    def exactly(self, offset: int, size: int) -> bytes:
        data = self.up_to(offset, size)
        if len(data) != size:
            raise ElfError("cut short")
        return data

    def segment(self, kind: int) -> _Segment | None:
        return next((segment for segment in self.segments if segment.kind == kind), None)

    def offset_of(self, address: int) -> int:
        """File offset of an address: dynamic entries hold addresses."""
        for segment in self.segments:
            if segment.kind == _PT_LOAD and segment.address <= address < segment.address + segment.size:
                return int(segment.offset + address - segment.address)
        raise ElfError("an address that no segment holds")

    def dynamic(self) -> dict[int, list[int]]:
        """Those that are looked at: tag -> values, in the order of the file; empty for a static program."""
        segment = self.segment(_PT_DYNAMIC)
        entries: dict[int, list[int]] = {}
        if segment is None:
            return entries
        if segment.size > _MAX_DYNAMIC:
            raise ElfError("a dynamic section that is too long")
        raw = self.exactly(segment.offset, segment.size - segment.size % 16)
        for tag, value in iter_unpack("<QQ", raw):
            if tag == 0:
                break
            if tag in _WANTED:
                entries.setdefault(tag, []).append(value)
        return entries


class _Strings:
    """The string table of the dynamic section, read string by string: it can have megabytes."""

    def __init__(self, file: _File, dynamic: dict[int, list[int]]) -> None:
        self.file = file
        self.size = _last(dynamic, _DT_STRSZ)
        self.offset = file.offset_of(_last(dynamic, _DT_STRTAB))
        self.window, self.start = b"", 0  # what was read last, and where it lies in the table

    def __getitem__(self, index: int) -> str:
        if index >= self.size:
            raise ElfError("a string beyond the string table")
        end = self.window.find(b"\0", index - self.start) if index >= self.start else -1
        if end < 0:
            self.start = index
            self.window = self.file.up_to(self.offset + index, min(_WINDOW, self.size - index))
            end = self.window.find(b"\0")
            if end < 0:
                raise ElfError("a string without an end")
        return self.window[index - self.start : end].decode("utf-8", "backslashreplace")


def _last(dynamic: dict[int, list[int]], tag: int) -> int:
    if tag not in dynamic:
        raise ElfError("a dynamic section without a string table")
    return dynamic[tag][-1]


class _Chain:
    """A version section: records that point forward to each other, each with a list of its own."""

    def __init__(self, file: _File, address: int) -> None:
        self.file, self.offset = file, file.offset_of(address)
        self.raw = file.up_to(self.offset, _VERSIONS)
        self.budget = _MAX_VERSIONS // 8

    def _reaches(self, end: int) -> bool:
        if end > len(self.raw) == _VERSIONS:  # longer than any that a compiler makes
            self.raw = self.file.up_to(self.offset, _MAX_VERSIONS)
        return end <= len(self.raw)

    def record(self, layout: Struct, at: int) -> tuple[int, ...]:
        """Its fields. Distances are unsigned, so a walk only goes forward and ends."""
        end = at + layout.size
        if end > len(self.raw) and not self._reaches(end):
            raise ElfError("a version section that leads out of bounds")
        self.budget -= 1
        if self.budget < 0:  # overlapping lists could be walked for ever
            raise ElfError("a version section whose lists overlap")
        return layout.unpack_from(self.raw, at)


# the last field of each is the distance to the next, 0 at the end
_NEED, _NEED_ENTRY = Struct("<HHIII"), Struct("<IHHII")
_DEFINITION, _NAME = Struct("<HHHHIII"), Struct("<I")


def _requires(file: _File, strings: _Strings, dynamic: dict[int, list[int]]) -> dict[str, tuple[str, ...]]:
    requires: dict[str, tuple[str, ...]] = {}
    if _DT_VERNEED not in dynamic:
        return requires
    chain = _Chain(file, dynamic[_DT_VERNEED][-1])
    at = 0
    while True:
        _, _, library, first, step = chain.record(_NEED, at)
        names, entry, more = [], at + first, 1
        while more:
            _, flags, _, name, more = chain.record(_NEED_ENTRY, entry)
            if not flags & _VER_WEAK:
                names.append(strings[name])
            entry += more
        key = strings[library]
        requires[key] = requires.get(key, ()) + tuple(names)
        if not step:
            return requires
        at += step


def _provides(file: _File, strings: _Strings, dynamic: dict[int, list[int]]) -> tuple[str, ...]:
    names: list[str] = []
    if _DT_VERDEF not in dynamic:
        return ()
    chain = _Chain(file, dynamic[_DT_VERDEF][-1])
    at = 0
    while True:
        _, flags, _, _, _, first, step = chain.record(_DEFINITION, at)
        if not flags & _VER_BASE:  # that is the library's own name
            names.append(strings[chain.record(_NAME, at + first)[0]])  # after it come the names of its ancestors
        if not step:
            return tuple(names)
        at += step


def _build_id(file: _File) -> str:
    for segment in file.segments:
        if segment.kind != _PT_NOTE or segment.size > _MAX_NOTES:
            continue
        raw = file.exactly(segment.offset, segment.size)
        at = 0
        while at + 12 <= len(raw):
            name_size, size, kind = unpack_from("<III", raw, at)
            start = at + 12 + (name_size + 3 & ~3)
            if kind == _NOTE_BUILD_ID and raw[at + 12 : at + 12 + name_size] == b"GNU\0":
                return raw[start : start + min(size, 64)].hex()
            at = start + (size + 3 & ~3)
    return ""


def _interpreter(file: _File) -> str:
    segment = file.segment(_PT_INTERP)
    if segment is None:
        return ""
    if not 0 < segment.size <= _MAX_NAME:
        raise ElfError("an interpreter's name that is too long")
    name = file.read(segment.offset, segment.size)  # far from all else
    if len(name) != segment.size:
        raise ElfError("cut short")
    return name.split(b"\0")[0].decode("utf-8", "backslashreplace")


def parse(read: Read, *, build_id: bool = True) -> Elf:
    """`read(offset, size)` gives the bytes there, fewer at the end of the file. Raises ElfError.

    build_id: whether it is looked for; no loader does.
    """
    file = _File(read)
    dynamic = file.dynamic()
    if not dynamic:
        return Elf(file.machine, "", (), "", "", _interpreter(file), {}, (), _build_id(file) if build_id else "")
    strings = _Strings(file, dynamic)
    if len(dynamic.get(_DT_NEEDED, ())) > _MAX_NEEDED:
        raise ElfError("more needed libraries than any program has")

    def text(tag: int) -> str:
        return strings[dynamic[tag][-1]] if tag in dynamic else ""

    return Elf(
        machine=file.machine,
        soname=text(_DT_SONAME),
        needed=tuple(strings[index] for index in dynamic.get(_DT_NEEDED, ())),
        rpath=text(_DT_RPATH),
        runpath=text(_DT_RUNPATH),
        interpreter=_interpreter(file),
        requires=_requires(file, strings, dynamic),
        provides=_provides(file, strings, dynamic),
        build_id=_build_id(file) if build_id else "",
    )


def parse_bytes(data: bytes) -> Elf:
    """As `parse`, of a file that is in memory."""
    return parse(lambda offset, size: data[offset : offset + size])
