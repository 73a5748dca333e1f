"""The programs between an engine and a container, their versions, and what is known against those.

A distribution mends a fault without taking the new version. So a CVE that the changelog of the program's package names
is taken as mended; where there is a package and no changelog, that is said, and is no finding.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from vgpu.doctor.finding import CannotSee, Finding, Result, Seen, Unseen, found
from vgpu.doctor.host.machine import Host, NoPolicy, Run

TABLE = Path(__file__).with_name("known_cves.yaml")
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?:[-~.]?rc\.?(\d+))?")
_RELEASE = 1 << 30  # after all its candidates
_CHANGELOG_BYTES = 8 << 20
Version = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Program:
    """key: of known_cves.yaml. names: what it may be called. packages: of Debian and Fedora."""

    key: str
    code: str
    names: tuple[str, ...]
    packages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cve:
    cve: str
    fixed: tuple[str, ...]
    what: str
    source: str


PROGRAMS = (
    Program("runc", "VGPU-RUN-001", ("runc",), ("runc",)),
    Program("crun", "VGPU-RUN-001", ("crun",), ("crun",)),
    Program("nvidia-container-toolkit", "VGPU-RUN-002", ("nvidia-ctk", "nvidia-container-cli"),
            ("nvidia-container-toolkit-base", "nvidia-container-toolkit", "libnvidia-container-tools")),
    Program("docker", "VGPU-RUN-003", ("dockerd",), ("docker.io", "docker-ce")),
    Program("containerd", "VGPU-RUN-003", ("containerd",), ("containerd", "containerd.io")),
)  # fmt: skip


@cache
def known() -> dict[str, tuple[Cve, ...]]:
    """The table. Raises KeyError or TypeError for one that is not well formed: a bug."""
    rows = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {key: tuple(Cve(**{**row, "fixed": tuple(row["fixed"])}) for row in of_one) for key, of_one in rows.items()}


def version(text: str) -> Version | None:
    """The first version in a program's answer; a release comes after its candidates."""
    match = _VERSION.search(text)
    if match is None:
        return None
    major, minor, patch, candidate = match.groups()
    return int(major), int(minor), int(patch or 0), int(candidate) if candidate else _RELEASE


def is_fixed(has: Version, fixed: tuple[str, ...]) -> bool:
    """By the number alone: in its own line of releases, else in its major version, else above all."""
    fixes = [one for one in map(version, fixed) if one is not None]
    for parts in (2, 1):
        line = [one for one in fixes if one[:parts] == has[:parts]]
        if line:
            return has >= max(line)
    return has >= max(fixes)


def check(host: Host) -> Iterator[Result]:
    for program in PROGRAMS:
        for path in _places(host, program):
            try:
                yield _judged(host, program, path)
            except CannotSee as blind:
                yield blind.unseen


def _places(host: Host, program: Program) -> Iterator[str]:
    """Where it is: the runtime of the policy, and the first that PATH would find. A file is looked at once."""
    paths = []
    try:
        if os.path.basename(host.policy.runtime) in program.names:
            paths.append(host.policy.runtime)
    except NoPolicy:
        pass
    paths += [path for name in program.names if (path := host.program(name))][:1]
    seen = set()
    for path in paths:
        real = os.path.realpath(host.path(path))
        if real not in seen and os.path.exists(real):
            seen.add(real)
            yield path


def _judged(host: Host, program: Program, path: str) -> Result:
    said = host.output(path, "--version")
    has = version(said)
    if has is None:
        raise CannotSee(path, "its --version shows no version")
    number = ".".join(map(str, has[:3])) + (f"-rc{has[3]}" if has[3] != _RELEASE else "")
    against = [one for one in known()[program.key] if not is_fixed(has, one.fixed)]
    package = _package(host, program, path)
    if against and package:
        changelog = _changelog(host, package[0])
        if changelog is None:
            names = ", ".join(one.cve for one in against)
            return Unseen(f"{path} {number}", f"{names}: package {package[0]} {package[1]} may have the fixes, and its "
                          f"changelog is not here: apt changelog {package[0]}")  # fmt: skip
        against = [one for one in against if one.cve not in changelog]
    if not against:
        backported = f" ({package[0]} {package[1]}, with its fixes)" if package else ""
        return Seen(f"{path} {number}{backported}")
    return _finding(program, path, number, against, package)


def _finding(program: Program, path: str, number: str, against: list[Cve], package: tuple[str, str] | None) -> Finding:
    faults = "; ".join(f"{one.cve} ({one.what}; fixed in {', '.join(one.fixed)})" for one in against)
    evidence = f"version {number}: {faults}"
    newer = f"install {program.key} {against[-1].fixed[-1]} or newer"
    if package:
        evidence += f"; the changelog of package {package[0]} {package[1]} names none of these"
        newer = f"apt-get update && apt-get install --only-upgrade {package[0]}; if that is the newest, {newer}"
    return found(program.code, path, evidence, remedy=newer)


def _package(host: Host, program: Program, path: str) -> tuple[str, str] | None:
    """Name and version of Debian's package that the program is from."""
    same = {path, path.removeprefix("/usr"), f"/usr{path}"}
    for package in program.packages:
        listed = host.read(f"/var/lib/dpkg/info/{package}.list")
        if listed and same & set(listed.splitlines()):
            status = host.read("/var/lib/dpkg/status") or ""
            match = re.search(rf"^Package: {re.escape(package)}\n(?:.+\n)*?Version: (\S+)$", status, re.MULTILINE)
            return package, match[1] if match else "of unknown version"
    return None


def _changelog(host: Host, package: str) -> str | None:
    """The distribution's own changes, of the newest first; None if it is not installed."""
    try:
        with gzip.open(host.path(f"/usr/share/doc/{package}/changelog.Debian.gz")) as file:
            return file.read(_CHANGELOG_BYTES).decode("utf-8", "replace")
    except (OSError, EOFError):
        return None


CHECKS: tuple[tuple[str, str, Run], ...] = (("engines", "programs", check),)
