"""What a dynamic loader would ask of an ELF file: its names, what it needs, which symbol versions it needs and has.

Reads 64-bit little-endian files through a `read(offset, size)` function, never the whole file: the files belong to an
image that nobody trusts. Every size and count is bounded, nothing recurses, and whatever does not fit is an ElfError.
Source: System V gABI, and the GNU symbol versioning sections of the Linux Standard Base.
"""

from __future__ import annotations

from struct import iter_unpack, unpack_from

from oci_hook.values import TYPE_CHECKING, dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Read = Callable[[int, int], bytes]

X86_64, AARCH64 = 62, 183

_MAX_SEGMENTS = 256
_MAX_DYNAMIC = 1 << 16  # bytes
_MAX_VERSIONS = 1 << 18  # bytes of one version section; glibc's own has 2 KiB
_VERSIONS = 1 << 13  # bytes of it read at first
_MAX_NAME = 4096  # bytes of one string, its NUL included
_MAX_NOTES = 1 << 16  # bytes
_MAX_NEEDED = 1024
_HEAD = 64 + 56 * 14  # bytes read at once: file header and the program headers of most libraries
_WINDOW = 4096  # bytes of the string table read at once: the names that are asked for lie together

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_NOTE = 1, 2, 3, 4
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 1, 5, 10, 14, 15, 29
_DT_VERDEF, _DT_VERNEED = 0x6FFFFFFC, 0x6FFFFFFE
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
    def __init__(self, raw: bytes, at: int) -> None:
        self.kind, _flags, self.offset, self.address, _, self.size = unpack_from("<IIQQQQ", raw, at)


class _File:
    def __init__(self, read: Read) -> None:
        self.read = read
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
        self.segments = [_Segment(table, at) for at in range(0, len(table), 56)]

    def up_to(self, offset: int, size: int) -> bytes:
        if offset >= 1 << 62:  # pread takes no more than 63 bits
            raise ElfError("an offset beyond any file")
        return self.read(offset, size)

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
        """tag -> values, in the order of the file; empty for a static program."""
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

    def _reaches(self, end: int) -> bool:
        if end > len(self.raw) == _VERSIONS:  # longer than any that a compiler makes
            self.raw = self.file.up_to(self.offset, _MAX_VERSIONS)
        return end <= len(self.raw)

    def walk(self, at: int, layout: str, size: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """(position, fields) of each record; the last field of `layout` is the distance to the next, 0 at the end."""
        while True:
            if at + size > len(self.raw) and not self._reaches(at + size):
                raise ElfError("a version section that leads out of bounds")
            fields = unpack_from(layout, self.raw, at)
            yield at, fields
            if fields[-1] == 0:
                return
            at += fields[-1]  # unsigned, so the walk only goes forward and ends

    def lists(self, layout: str, size: int, inner: str, inner_size: int, first_field: int) -> list[_Record]:
        found: list[_Record] = []
        budget = _MAX_VERSIONS // inner_size
        for at, fields in self.walk(0, layout, size):
            entries = []
            for _, entry in self.walk(at + fields[first_field], inner, inner_size):
                entries.append(entry)
                budget -= 1
                if budget < 0:  # overlapping lists could be walked for ever
                    raise ElfError("a version section whose lists overlap")
            found.append((fields, entries))
        return found


if TYPE_CHECKING:
    _Record = tuple[tuple[int, ...], list[tuple[int, ...]]]


def _requires(file: _File, strings: _Strings, dynamic: dict[int, list[int]]) -> dict[str, tuple[str, ...]]:
    if _DT_VERNEED not in dynamic:
        return {}
    requires: dict[str, tuple[str, ...]] = {}
    chain = _Chain(file, dynamic[_DT_VERNEED][-1])
    for (_, _, library, _, _), entries in chain.lists("<HHIII", 16, "<IHHII", 16, 3):
        names = [strings[name] for _, flags, _, name, _ in entries if not flags & _VER_WEAK]
        key = strings[library]
        requires[key] = requires.get(key, ()) + tuple(names)
    return requires


def _provides(file: _File, strings: _Strings, dynamic: dict[int, list[int]]) -> tuple[str, ...]:
    if _DT_VERDEF not in dynamic:
        return ()
    chain = _Chain(file, dynamic[_DT_VERDEF][-1])
    records = chain.lists("<HHHHIII", 20, "<II", 8, 5)
    return tuple(strings[entries[0][0]] for fields, entries in records if not fields[1] & _VER_BASE)


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
    return file.exactly(segment.offset, segment.size).split(b"\0")[0].decode("utf-8", "backslashreplace")


def parse(read: Read) -> Elf:
    """`read(offset, size)` gives the bytes there, fewer at the end of the file. Raises ElfError."""
    file = _File(read)
    dynamic = file.dynamic()
    if not dynamic:
        return Elf(file.machine, "", (), "", "", _interpreter(file), {}, (), _build_id(file))
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
        build_id=_build_id(file),
    )


def parse_bytes(data: bytes) -> Elf:
    """As `parse`, of a file that is in memory."""
    return parse(lambda offset, size: data[offset : offset + size])
