"""python -m artefacts.closure FILE…: does every ELF file of an artefact find what it needs, and nothing by chance?

Each is held against the rules of closure.yaml. Exit code 0: nothing found; 1: findings, one a line.
"""

from __future__ import annotations

import argparse
import fnmatch
import posixpath
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from struct import unpack_from
from typing import Any

import yaml

from artefacts import archive
from artefacts.archive import Artefact
from oci_hook import elf
from oci_hook.errors import VgpuError

RULES = Path(__file__).with_name("closure.yaml")
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK, _PT_GNU_RELRO = 1, 2, 0x6474E551, 0x6474E552
_PF_X, _PF_W = 1, 2
_DT_TEXTREL, _DT_BIND_NOW, _DT_FLAGS, _DT_FLAGS_1 = 22, 24, 30, 0x6FFFFFFB
_DF_TEXTREL, _DF_BIND_NOW, _DF_1_NOW = 4, 8, 1
# an absolute path of two components or more, at the beginning of a word
_PATH = re.compile(rb"(?<![\w.$%)/:-])/[A-Za-z_.][\w.+-]*(?:/[\w.+%@-]+)+")


@dataclass(frozen=True, slots=True)
class Rule:
    """See closure.yaml. runpath "": none but $ORIGIN."""

    match: Sequence[str]
    linked: str = ""
    glibc: str = "0"
    runpath: str = ""
    absent: dict[str, str] = field(default_factory=dict)
    paths: Sequence[str] = ()
    foreign: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    host: frozenset[str]
    rules: tuple[Rule, ...]

    def of(self, path: str) -> Rule | None:
        return next((rule for rule in self.rules if any(fnmatch.fnmatch(f"/{path}", one) for one in rule.match)), None)


@dataclass(frozen=True, slots=True)
class Finding:
    """kind: a word that stays the same, for scripts."""

    artefact: str
    path: str
    kind: str
    text: str

    def line(self) -> str:
        return f"{self.artefact}: {self.path}: {self.kind}: {self.text}"


def rules(path: Path = RULES) -> Rules:
    """Our own file, so a mistake in it is a bug and raises as one."""
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    made = [Rule(**row) for row in loaded["rules"]]
    return Rules(frozenset(loaded["host"]), tuple(made))


def check(artefact: Artefact, allowed: Rules) -> list[Finding]:
    """All findings, in the order of the paths."""
    found: list[Finding] = []
    machines: dict[int, str] = {}
    for path, data in sorted(artefact.files.items()):
        if data[:4] != b"\x7fELF":
            continue
        for kind, text in _file(artefact, path, data, allowed, machines):
            found.append(Finding(artefact.name, path, kind, text))
    return found


def _file(
    artefact: Artefact, path: str, data: bytes, allowed: Rules, machines: dict[int, str]
) -> Iterator[tuple[str, str]]:
    rule = allowed.of(path)
    if rule is None:
        yield "undeclared", f"no rule in {RULES.name} says what it may need"
        return
    try:
        parsed = elf.parse_bytes(data)
    except elf.ElfError as error:
        yield "damaged", str(error)
        return
    first = machines.setdefault(parsed.machine, path)
    if len(machines) > 1 and first == path:
        yield "machine", f"it is for another processor than {next(iter(machines.values()))}"
    yield from _search_path(path, parsed, rule)
    yield from _libraries(artefact, path, parsed, rule, allowed)
    if not rule.foreign:
        yield from _hardening(data, parsed, rule)
        yield from _paths(data, rule)


def _search_path(path: str, parsed: elf.Elf, rule: Rule) -> Iterator[tuple[str, str]]:
    if parsed.rpath:
        yield "rpath", f"RPATH {parsed.rpath}: it would win over LD_LIBRARY_PATH, and is inherited"
    if rule.runpath and parsed.runpath != rule.runpath:
        yield "runpath", f"RUNPATH {parsed.runpath or 'is missing'}; it must be {rule.runpath}"
    if not rule.runpath:
        for folder in filter(None, parsed.runpath.split(":")):
            if _inside(path, folder) is None:
                yield "runpath", f"RUNPATH {folder} leads out of the artefact"


def _inside(path: str, folder: str) -> str | None:
    """The folder of the artefact that a RUNPATH entry of the file at `path` means, None if it is outside."""
    for origin in ("$ORIGIN", "${ORIGIN}"):
        if folder == origin or folder.startswith(f"{origin}/"):
            meant = posixpath.normpath(posixpath.join(posixpath.dirname(path), folder[len(origin) :].lstrip("/")))
            return None if meant.startswith("..") else meant
    return None


def _libraries(artefact: Artefact, path: str, parsed: elf.Elf, rule: Rule, allowed: Rules) -> Iterator[tuple[str, str]]:
    if rule.linked == "static":
        if parsed.needed or parsed.interpreter:
            yield "static", f"it must not need a loader, and asks for {' '.join(parsed.needed) or parsed.interpreter}"
        return
    folders = [meant for one in parsed.runpath.split(":") if (meant := _inside(path, one)) is not None]
    for name in parsed.needed:
        if name in allowed.host:
            yield from _versions(name, parsed.requires.get(name, ()), rule)
            continue
        beside = [data for folder in folders if (data := _found(artefact, posixpath.join(folder, name))) is not None]
        if beside:
            lacking = set(parsed.requires.get(name, ())) - set(_provides(beside[0]))
            if lacking:
                yield "version", f"{name} of this artefact lacks {' '.join(sorted(lacking))}"
        elif name not in rule.absent:
            yield "missing", f"it needs {name}, which neither this artefact nor the host has"


def _found(artefact: Artefact, path: str) -> bytes | None:
    """The file at `path`, or the one that the links there lead to."""
    for _ in range(8):
        if path in artefact.files:
            return artefact.files[path]
        if path not in artefact.links:
            return None
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), artefact.links[path]))
    return None


def _provides(data: bytes) -> tuple[str, ...]:
    try:
        return elf.parse_bytes(data).provides
    except elf.ElfError:
        return ()  # told as a finding of that file


def _versions(library: str, names: Sequence[str], rule: Rule) -> Iterator[tuple[str, str]]:
    for name in names:
        number = name.removeprefix("GLIBC_")
        known = number != name and re.fullmatch(r"[0-9]+(\.[0-9]+)*", number)
        if not known or _number(number) > _number(rule.glibc):
            yield "version", f"it needs {name} of {library}; {rule.glibc} is the newest allowed"


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _hardening(data: bytes, parsed: elf.Elf, rule: Rule) -> Iterator[tuple[str, str]]:
    """Only after elf.parse_bytes: it has checked that the program headers are there and make sense."""
    at, count = unpack_from("<Q", data, 32)[0], unpack_from("<H", data, 56)[0]
    segments = [unpack_from("<IIQQQQ", data, at + number * 56) for number in range(count)]
    flags = {kind: flags for kind, flags, *_ in segments}
    if flags.get(_PT_GNU_STACK, _PF_X) & _PF_X:
        yield "stack", "its stack would be executable"
    if any(kind == _PT_LOAD and flags & _PF_X and flags & _PF_W for kind, flags, *_ in segments):
        yield "segment", "a segment is writable and executable"
    dynamic: dict[int, int] = {}
    for kind, _, offset, _, _, size in segments:
        if kind == _PT_DYNAMIC:
            dynamic = dict(unpack_from("<QQ", data, where) for where in range(offset, offset + size - size % 16, 16))
    if _DT_TEXTREL in dynamic or dynamic.get(_DT_FLAGS, 0) & _DF_TEXTREL:
        yield "textrel", "its code is changed when it is loaded"
    if rule.linked == "shared":
        now = dynamic.get(_DT_FLAGS, 0) & _DF_BIND_NOW or dynamic.get(_DT_FLAGS_1, 0) & _DF_1_NOW
        if not (now or _DT_BIND_NOW in dynamic) or _PT_GNU_RELRO not in flags:
            yield "relro", "no full RELRO: link with -z relro -z now"
        if parsed.interpreter:
            yield "loader", f"a library that names a loader, {parsed.interpreter}"


def _paths(data: bytes, rule: Rule) -> Iterator[tuple[str, str]]:
    for match in sorted({match[0].decode() for match in _PATH.finditer(data)}):
        if not any(match == allowed or match.startswith(f"{allowed}/") for allowed in rule.paths):
            yield "path", f"it holds {match}: a path of the machine that built it?"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m artefacts.closure", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("artefacts", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    allowed, found = rules(), []
    try:
        for path in options.artefacts:
            artefact = archive.read(path)
            found += check(artefact, allowed)
            count = sum(data[:4] == b"\x7fELF" for data in artefact.files.values())
            print(f"{artefact.name}: {count} ELF files", file=sys.stderr)
    except VgpuError as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code
    for finding in found:
        print(finding.line())
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
