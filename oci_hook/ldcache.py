"""/etc/ld.so.cache of an image: which file the loader takes for which name.

Reads the format of glibc 2.2 and newer ("glibc-ld.so.cache1.1"), alone or behind the older one, as ldconfig writes it
on little-endian machines. Bounded, as the file is the image's. Source: glibc, sysdeps/generic/dl-cache.h (layout only).
"""

from __future__ import annotations

from struct import iter_unpack, unpack_from

from oci_hook import elf

MAX_BYTES = 16 << 20  # a desktop's cache has 0.1 MiB

_OLD, _NEW = b"ld.so-1.7.0\0", b"glibc-ld.so.cache1.1"
_MAX_NAME = 4096
_MAX_ENTRIES = 1 << 16  # a desktop's cache has 2000
_MAX_TEXT = 16 << 20  # bytes of all names together
_KIND = {elf.X86_64: 0x0303, elf.AARCH64: 0x0A03}  # flags: glibc, 64-bit, of that machine


class CacheError(ValueError):
    """Not a cache that glibc would use; the text is the reason."""


def _start(data: bytes) -> int:
    """Offset of the new format's header: behind the old format's 12-byte entries where that is there too."""
    if not data.startswith(_OLD):
        return 0
    if len(data) < 16:
        raise CacheError("cut short")
    old_end = 16 + 12 * unpack_from("<I", data, 12)[0]
    return int(old_end + 7 & ~7)


def parse(data: bytes, machine: int) -> dict[str, tuple[str, ...]]:
    """soname -> the files that a 64-bit loader of `machine` (elf.X86_64, …) could take for it, in the file's order but
    those for every processor before those for some (hwcap). Raises CacheError.
    """
    start = _start(data)
    if data[start : start + len(_NEW)] != _NEW:
        raise CacheError("not a cache of glibc 2.2 or newer")
    body = data[start:]
    if len(body) < 48:
        raise CacheError("cut short")
    count = unpack_from("<I", body, 20)[0]
    if 48 + 24 * count > len(body):
        raise CacheError("more entries than the file has room for")
    if count > _MAX_ENTRIES:
        raise CacheError("more entries than any system has")
    wanted, find, room = _KIND.get(machine), body.find, _MAX_TEXT

    def text(offset: int) -> str:
        nonlocal room
        end = find(b"\0", offset, offset + _MAX_NAME)
        room -= end - offset
        if end < 0 or room < 0:  # entries may share their text, so little can stand for much
            raise CacheError("a name without an end" if end < 0 else "more text than any system has")
        return body[offset:end].decode("utf-8", "backslashreplace")

    found: dict[str, list[str]] = {}
    for_some: list[tuple[str, str]] = []
    for flags, soname, path, _, hwcap in iter_unpack("<iIIIQ", body[48 : 48 + 24 * count]):
        if flags != wanted:
            continue
        if hwcap:
            for_some.append((text(soname), text(path)))
        else:
            found.setdefault(text(soname), []).append(text(path))
    for name, place in for_some:
        found.setdefault(name, []).append(place)
    return {name: tuple(places) for name, places in found.items()}


def read(data: bytes | None, machine: int) -> dict[str, tuple[str, ...]]:
    """As `parse`; empty if there is no cache (None), or none that glibc would use."""
    try:
        return {} if data is None else parse(data, machine)
    except CacheError:
        return {}
