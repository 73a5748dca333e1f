"""ld.so.cache: as this machine's ldconfig prints it, and nothing hostile is believed."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci_hook import elf, ldcache
from oci_hook.ldcache import CacheError

CACHE = Path("/etc/ld.so.cache")
LDCONFIG = shutil.which("ldconfig", path="/usr/sbin:/sbin")
NAME = {elf.X86_64: "x86-64", elf.AARCH64: "AArch64"}


def made(entries: list[tuple[int, str, str, int]], old: bool = False) -> bytes:
    """A cache with these (flags, soname, path, hwcap), behind an empty old one if wanted."""
    strings, places, start = bytearray(), [], 48 + 24 * len(entries)
    for flags, soname, path, hwcap in entries:
        places.append((flags, start + len(strings), start + len(strings) + len(soname) + 1, 0, hwcap))
        strings += soname.encode() + b"\0" + path.encode() + b"\0"
    head = b"glibc-ld.so.cache1.1" + struct.pack("<II", len(entries), len(strings)) + bytes(20)
    body = head + b"".join(struct.pack("<iIIIQ", *place) for place in places) + strings
    return b"ld.so-1.7.0\0" + struct.pack("<I", 1) + bytes(12) + bytes(4) + body if old else body


@pytest.mark.parametrize("machine", [elf.X86_64, elf.AARCH64], ids=NAME.get)
def test_this_machines_cache_reads_as_ldconfig_prints_it(machine: int) -> None:
    if not CACHE.exists() or LDCONFIG is None:
        pytest.skip("no /etc/ld.so.cache or no ldconfig on this machine")
    printed = subprocess.run([LDCONFIG, "-p"], check=True, capture_output=True, text=True).stdout
    wanted: dict[str, set[str]] = {}
    for soname, kind, path in re.findall(r"^\t(\S+) \((.*)\) => (\S+)$", printed, re.MULTILINE):
        if kind.startswith(f"libc6,{NAME[machine]}"):
            wanted.setdefault(soname, set()).add(path)
    found = ldcache.parse(CACHE.read_bytes(), machine)
    assert {soname: set(paths) for soname, paths in found.items()} == wanted


def test_a_cache_in_another_place_reads_the_same(tmp_path: Path) -> None:
    """What ldconfig writes for a root with one library, in its default and in its oldest format."""
    if LDCONFIG is None:
        pytest.skip("no ldconfig on this machine")
    libraries = tmp_path / "lib"
    libraries.mkdir()
    subprocess.run(
        ["gcc", "-shared", "-o", libraries / "libx.so.1", "-Wl,-soname,libx.so.1", "-x", "c", "/dev/null"], check=True
    )
    (tmp_path / "etc").mkdir()
    machine = elf.parse_bytes((libraries / "libx.so.1").read_bytes()).machine
    for style in ("new", "compat"):
        cache = tmp_path / "etc/ld.so.cache"
        subprocess.run([LDCONFIG, "-r", tmp_path, "-c", style, "-C", "/etc/ld.so.cache", "/lib"], check=True)
        assert ldcache.parse(cache.read_bytes(), machine)["libx.so.1"] == ("/lib/libx.so.1",)


@pytest.mark.parametrize("old", [False, True])
def test_machine_and_processor_decide(old: bool) -> None:
    data = made(
        [
            (0x0303, "libx.so.1", "/fast/libx.so.1", 1 << 62),
            (0x0303, "libx.so.1", "/lib/libx.so.1", 0),
            (0x0A03, "libx.so.1", "/arm/libx.so.1", 0),
            (0x0003, "libx.so.1", "/lib32/libx.so.1", 0),
        ],
        old,
    )
    assert ldcache.parse(data, elf.X86_64) == {"libx.so.1": ("/lib/libx.so.1", "/fast/libx.so.1")}
    assert ldcache.parse(data, elf.AARCH64) == {"libx.so.1": ("/arm/libx.so.1",)}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a cache"),
        (b"ld.so-1.7.0\0", "cut short"),
        (b"ld.so-1.7.0\0" + b"\xff" * 4, "not a cache"),
        (b"glibc-ld.so.cache1.1", "cut short"),
        (b"glibc-ld.so.cache1.1" + b"\xff" * 28, "more entries"),
        (made([(0x0303, "x", "/x", 0)])[:-1], "without an end"),
        (made([(0x0303, "x", "/x", 0)] * 70_000), "more entries than any"),
        (made([(0x0303, "x" * 4000, "/x", 0)] * 5_000), "more text than any"),
    ],
    ids=range(8),  # of megabytes no name can be made
)
def test_what_is_no_cache_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(CacheError, match=reason):
        ldcache.parse(data, elf.X86_64)


SAMPLE = made([(0x0303, f"lib{n}.so.1", f"/usr/lib/lib{n}.so.1", n % 2) for n in range(20)], old=True)


@given(
    changes=st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=16),
    end=st.integers(0, len(SAMPLE)),
)
@settings(max_examples=500, deadline=None)
def test_changed_bytes_give_the_one_error_or_a_result(changes: list[tuple[int, int]], end: int) -> None:
    data = bytearray(SAMPLE)
    for at, value in changes:
        data[at] = value
    started = time.monotonic()
    for text in (bytes(data), bytes(data[:end])):
        try:
            ldcache.parse(text, elf.X86_64)
        except CacheError:
            continue
    assert time.monotonic() - started < 1
