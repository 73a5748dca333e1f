"""The ELF reader agrees with pyelftools on every library of this machine, and takes no hostile file for a good one."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
from elftools.common.exceptions import ELFError as ToolsError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection, GNUVerNeedSection
from hypothesis import given, settings
from hypothesis import strategies as st

from oci_hook import elf
from oci_hook.elf import Elf, ElfError
from tests.oci_hook.machine import LIBC, libraries

TAGS = {"DT_SONAME": "soname", "DT_NEEDED": "needed", "DT_RPATH": "rpath", "DT_RUNPATH": "runpath"}
TIME_S = 60  # for one pass over the machine; the rest is then left out, and said


def read(path: Path) -> Elf:
    with open(path, "rb") as file:
        return elf.parse(lambda offset, size: os.pread(file.fileno(), size, offset))


def with_tools(path: Path) -> Elf:
    """The same facts, from pyelftools, which reads sections where we read segments."""
    with open(path, "rb") as stream:
        file = ELFFile(stream)
        if file.elfclass != 64 or not file.little_endian:
            raise ToolsError("not our kind")
        facts: dict[str, list[str]] = {name: [] for name in TAGS.values()}
        interpreter = build_id = ""
        for segment in file.iter_segments():
            if isinstance(segment, DynamicSegment):
                for tag in segment.iter_tags():
                    name = TAGS.get(tag.entry.d_tag)
                    if name:
                        facts[name].append(getattr(tag, name))
            elif segment["p_type"] == "PT_INTERP":
                interpreter = segment.get_interp_name()
            elif segment["p_type"] == "PT_NOTE":
                notes = (note for note in segment.iter_notes() if note["n_type"] == "NT_GNU_BUILD_ID")
                build_id = build_id or next((note["n_desc"] for note in notes), "")
        requires: dict[str, tuple[str, ...]] = {}
        provides: list[str] = []
        for section in file.iter_sections():
            if isinstance(section, GNUVerNeedSection):
                for library, versions in section.iter_versions():
                    names = [version.name for version in versions if not version["vna_flags"] & 2]
                    requires[library.name] = requires.get(library.name, ()) + tuple(names)
            elif isinstance(section, GNUVerDefSection):
                for definition, names in section.iter_versions():
                    if not definition["vd_flags"] & 1:
                        provides.append(next(names).name)
        machine = {"EM_X86_64": elf.X86_64, "EM_AARCH64": elf.AARCH64}.get(file["e_machine"], file["e_machine"])
        last = {name: values[-1] if values else "" for name, values in facts.items()}
        return Elf(
            machine=machine,
            soname=last["soname"],
            needed=tuple(facts["needed"]),
            rpath=last["rpath"],
            runpath=last["runpath"],
            interpreter=interpreter,
            requires=requires,
            provides=tuple(provides),
            build_id=build_id,
        )


@pytest.mark.slow  # pyelftools takes milliseconds a file
def test_every_library_of_this_machine_reads_as_pyelftools_says() -> None:
    compared, differing, until = 0, [], time.monotonic() + TIME_S
    paths = libraries()
    for path in paths:
        if time.monotonic() > until:
            break
        try:
            wanted = with_tools(path)
        except (ToolsError, OSError):
            continue
        compared += 1
        if read(path) != wanted:
            differing.append(f"{path}\n  {read(path)}\n  {wanted}")
    print(f"{compared} of {len(paths)} files compared")
    assert differing == []
    assert compared > 100


def test_what_the_loader_needs_of_glibc_is_there() -> None:
    libc = read(LIBC)
    assert libc.soname == "libc.so.6"
    assert "GLIBC_2.17" in libc.provides and "libc.so.6" not in libc.provides
    assert len(libc.build_id) == 40


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut short"),
        (b"#!/bin/sh\n" + b" " * 100, "not an ELF file"),
        (b"\x7fELF\x01\x01" + bytes(100), "not a 64-bit"),
        (b"\x7fELF\x02\x02" + bytes(100), "not a 64-bit"),
        (b"\x7fELF\x02\x01" + bytes(100), "cannot be loaded"),
    ],
)
def test_what_is_no_library_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ElfError, match=reason):
        elf.parse_bytes(data)


SAMPLE = LIBC.with_name("libdl.so.2").read_bytes()


def survives(data: bytes) -> None:
    started = time.monotonic()
    with contextlib.suppress(ElfError):
        elf.parse_bytes(data)
    assert time.monotonic() - started < 1


def test_a_file_that_is_cut_anywhere_is_refused_or_read() -> None:
    for end in range(0, len(SAMPLE), 7):
        survives(SAMPLE[:end])


@given(changes=st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=24))
@settings(max_examples=400, deadline=None)
def test_changed_bytes_give_the_one_error_or_a_result(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SAMPLE)
    for at, value in changes:
        data[at] = value
    survives(bytes(data))


def _interesting() -> list[int]:
    """Where a changed number hurts most: headers, and the sections that segments point to."""
    header = list(range(64 + 56 * 12))
    with open(LIBC.with_name("libdl.so.2"), "rb") as stream:
        file = ELFFile(stream)
        for name in (".dynamic", ".gnu.version_d", ".gnu.version_r"):
            section = file.get_section_by_name(name)
            if section is not None:
                header.extend(range(section["sh_offset"], section["sh_offset"] + section["sh_size"]))
    return header


INTERESTING = _interesting()


@given(
    at=st.sampled_from(INTERESTING),
    value=st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\xff" * 4, b"\x7f" * 8, b"\x01", b"\x00\x00\x00\x80"]),
    again=st.sampled_from(INTERESTING),
)
@settings(max_examples=800, deadline=None)
def test_hostile_sizes_and_offsets_are_survived(at: int, value: bytes, again: int) -> None:
    data = bytearray(SAMPLE)
    for place in (at, again):
        data[place : place + len(value)] = value
    survives(bytes(data[: len(SAMPLE)]))


@given(data=st.binary(max_size=2048))
@settings(max_examples=200, deadline=None)
def test_any_bytes_behind_a_good_header_are_survived(data: bytes) -> None:
    survives(SAMPLE[:64] + data)
