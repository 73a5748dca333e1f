"""From what processes have mapped, and what the driver says, to whether the container's slice holds. Pure.

A slice is held by the wrapper, and the wrapper holds a process only if that process has loaded it and not the driver
past it. What proves that: the mapped file is the very inode that the hook mounted (plan.json), which nobody in the
container can write or replace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from oci_hook.errors import shown
from oci_hook.plan import BOX_NAMES
from oci_hook.records import Plan
from vgpu.doctor.container.mapped import CUDA, NVML, Library, Process
from vgpu.doctor.finding import FAILURE, Finding, Result, Seen, Unseen, found

_BREACHES = ("VGPU-CTR-001", "VGPU-CTR-002", "VGPU-CTR-003", "VGPU-CTR-006", "VGPU-HOST-009")
_ROLES = {CUDA: "cuda", NVML: "nvml"}


@dataclass(frozen=True, slots=True)
class Expected:
    """What the hook mounted. wrappers, drivers: role "cuda" or "nvml" -> (st_dev, st_ino).

    box: of the host's quota and usage files now. build_ids: role -> of the installed wrapper, which may be newer.
    """

    wrappers: Mapping[str, tuple[int, int]]
    drivers: Mapping[str, tuple[int, int]]
    box: Mapping[str, tuple[int, int]]
    build_ids: Mapping[str, str]


def mounted(plan: Plan) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
    """The wrappers' and the drivers' identities, by role."""
    wrappers: dict[str, tuple[int, int]] = {}
    drivers: dict[str, tuple[int, int]] = {}
    names = {BOX_NAMES[role]: role for role in BOX_NAMES}
    for mount in plan.mounts:
        identity = tuple(mount.identity[:2])
        if len(identity) != 2:
            continue
        if mount.where == "box" and mount.target in names:
            drivers[names[mount.target]] = identity
        elif mount.where == "library" and mount.target in _ROLES:
            wrappers[_ROLES[mount.target]] = identity
    return wrappers, drivers


def wrapped(process: Process, expected: Expected, role: str = "cuda") -> Library | None:
    """The wrapper that the hook mounted, if the process has it mapped."""
    for library in process.libraries:
        if library.wraps and _ROLES[library.soname] == role and library.identity == expected.wrappers.get(role):
            return library
    return None


def uses_driver(process: Process) -> bool:
    return any(library.soname == CUDA for library in process.libraries)


def process(one: Process, expected: Expected, on_gpus: Sequence[int]) -> Iterator[Result]:
    """What is to be said of one process. on_gpus: those that the driver says it uses."""
    who = f"process {one.pid} ({shown(one.command)})"
    if one.trouble:
        yield Unseen(who, one.trouble)
        return
    for library in one.libraries:
        yield from _library(who, one, library, expected)
    if on_gpus and not uses_driver(one):
        gpus = ", ".join(map(str, on_gpus))
        yield found("VGPU-CTR-001", who, f"it uses GPU {gpus}, as the driver says, and has no libcuda mapped at all")
    if on_gpus and wrapped(one, expected):
        for name, identity in expected.box.items():
            if identity not in one.shared:
                yield found("VGPU-CTR-002", who, f"the {name} file that it has mapped is not the ledger's any more")


def _library(who: str, one: Process, library: Library, expected: Expected) -> Iterator[Result]:
    role = _ROLES[library.soname]
    path, build = shown(library.path, 160), f"build id {library.build_id[:12] or 'none'}"
    if library.wraps:
        if library.identity != expected.wrappers.get(role):
            yield found("VGPU-CTR-002", who, f"{path} ({build}) says it is the wrapper, and the hook did not mount it")
        return
    past = "" if wrapped(one, expected, role) else ", and not the wrapper"
    own = library.identity != expected.drivers.get(role)
    if role == "nvml":
        if own or past:  # it holds nothing: a program may look past it, and sees the whole GPU then
            yield found("VGPU-CTR-004", who, f"it has mapped NVML as {path} ({build}){past}")
    elif own:
        yield found("VGPU-CTR-001", who, f"it has mapped a driver that the hook did not mount: {path} ({build})")
    elif past:
        yield found("VGPU-CTR-001", who, f"it has mapped the driver {path} ({build}){past}")


def builds(processes: Sequence[Process], expected: Expected) -> Iterator[Seen]:
    """By which build of the wrapper the processes are held; one that is not the installed one is told, and is fine."""
    counts: dict[tuple[str, str], int] = {}
    for one in processes:
        if library := wrapped(one, expected):
            counts[library.build_id, library.path] = counts.get((library.build_id, library.path), 0) + 1
    for (build_id, path), count in counts.items():
        installed = expected.build_ids.get("cuda", "")
        note = (
            ""
            if not installed or installed == build_id
            else (f"; the installed one is {installed[:12]}: this container keeps its own until it is started anew")
        )
        several = "processes have" if count > 1 else "process has"
        yield Seen(f"{count} {several} the wrapper mapped, {shown(path, 120)}, build id {build_id[:12]}{note}")


def verdict(findings: Sequence[Finding], processes: Sequence[Process], *, armed: bool) -> str:
    """Is the quota in force now? "yes": all that use the driver are held. "not used yet": nothing is to be held.

    "no": one is outside, or the slice does not stand. "unknown": not every process could be seen.
    """
    if any(one.code in _BREACHES and one.severity == FAILURE for one in findings):
        return "no"
    if any(one.trouble for one in processes):
        return "unknown"
    return "yes" if armed or any(map(uses_driver, processes)) else "not used yet"
