"""What is wrong with a CDI spec on this host: it was right when it was written, and the driver has changed since.

An engine finds that out when a container starts, in words that name a file and no reason; here it is said before.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from oci_hook.errors import VgpuError
from runtime_config.cdi import KIND, Edits, Spec

_NVIDIA = "nvidia.com/"
_DRIVER_FILE = re.compile(r"^lib[A-Za-z0-9_-]+\.so\.(\d{3,}\.\d+(?:\.\d+)?)$")
GONE, OUTDATED, UNREADABLE = "VGPU-ENG-006", "VGPU-ENG-007", "VGPU-ENG-008"
_SHOWN = 3  # files of one kind in a finding


@dataclass(frozen=True, slots=True)
class Finding:
    """path: of the spec. what: is wrong. remedy: a command, or what to do. code: of the doctor's catalogue."""

    path: str
    what: str
    remedy: str
    code: str


def check(
    found: Sequence[Spec | VgpuError],
    expected: str | None,
    driver: str,
    generate: str = "vgpu cdi generate",
    root: str = "",
) -> list[Finding]:
    """All that is wrong with the specs that `cdi.folder_specs` has found.

    expected: the text that ours should have now, None: not known. driver: the version that is loaded, "" if none.
    generate: the command that writes ours anew. root: what the paths in the specs are below.
    """
    findings = []
    for spec in found:
        if isinstance(spec, VgpuError):
            path, _, what = str(spec).partition(": ")
            findings.append(Finding(path, what, spec.remedy, UNREADABLE))
            continue
        remedy = _remedy(spec, generate)
        wrong = list(dict.fromkeys(_wrong(spec, driver, root)))
        if spec.kind == KIND and expected is not None and spec.text != expected and not wrong:
            wrong = [(OUTDATED, "names other devices or hooks than this host and this installation have now")]
        findings += [Finding(spec.path, what, remedy, code) for code, what in wrong]
    return findings + list(_conflicts([spec for spec in found if isinstance(spec, Spec)]))


def _remedy(spec: Spec, generate: str) -> str:
    if spec.kind == KIND:
        return f"{generate} --output {spec.path}"
    if spec.kind.startswith(_NVIDIA):
        return f"nvidia-ctk cdi generate --output={spec.path}"
    return "make it anew with the program that wrote it, or remove it"


def _wrong(spec: Spec, driver: str, root: str) -> Iterator[tuple[str, str]]:
    """(code, what is wrong)."""
    edits = list(spec.edits())
    mounts = list(dict.fromkeys(host for one in edits for host, _ in one.mounts))
    hooks = list(dict.fromkeys(hook for one in edits for hook in one.hooks))
    gone = [path for path in mounts if not os.path.exists(root + path)]
    if gone:
        yield GONE, f"{_some(gone)} {_is(gone)} no longer there"
    others = {_version(path) for path in mounts} - {"", driver}
    if driver and others and spec.kind.startswith((_NVIDIA, KIND)):
        yield OUTDATED, f"names files of driver {', '.join(sorted(others))}, and driver {driver} is loaded"
    for hook in hooks:
        if not os.access(root + hook, os.X_OK):
            yield GONE, f"its hook {hook} is not a program, so no container with such a device starts"
    scripts = {script for one in edits for script in one.scripts if not os.path.exists(root + script)}
    for script in sorted(scripts):
        yield GONE, f"its hook {script} is not there, so no container with such a device starts"
    for one in edits:
        yield from ((GONE, what) for what in _nodes(one, root))


def _version(path: str) -> str:
    match = _DRIVER_FILE.match(os.path.basename(path))
    return match[1] if match else ""


def _nodes(edits: Edits, root: str) -> Iterator[str]:
    for host, _ in edits.nodes:
        try:
            found = os.stat(root + host)
        except OSError:
            yield f"the device {host} is no longer there"
            continue
        if not (stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)):
            yield f"{host} is not a device"
            continue
        number = (os.major(found.st_rdev), os.minor(found.st_rdev))
        wanted = edits.numbers.get(host, number)
        if wanted != number:
            yield f"the device {host} has the number {_colon(number)}, and the spec says {_colon(wanted)}"


def _colon(number: tuple[int, int]) -> str:
    return f"{number[0]}:{number[1]}"


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more


def _is(paths: Sequence[str]) -> str:
    return "is" if len(paths) == 1 else "are"


def _conflicts(specs: Sequence[Spec]) -> Iterator[Finding]:
    """Two files of one folder that name the same device: engines then give it to nobody."""
    first: dict[tuple[str, str], str] = {}
    told = set()
    for spec in specs:
        for name in spec.names():
            other = first.setdefault((os.path.dirname(spec.path), name), spec.path)
            if other != spec.path and (other, spec.path) not in told:
                told.add((other, spec.path))
                what = f"{name} is in {other} too, so engines give it to nobody"
                yield Finding(spec.path, what, "remove one of them", UNREADABLE)
