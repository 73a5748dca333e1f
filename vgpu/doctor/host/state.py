"""The ledger and the containers in it: owners that are gone, slices that do not fit, files that cannot be read."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from libcuda_wrap import bindings
from oci_hook import inventory, ledger
from oci_hook.errors import VgpuError
from oci_hook.records import Allocation, Slice
from vgpu.doctor import fixes
from vgpu.doctor.finding import CannotSee, Result, Seen, found, refused
from vgpu.doctor.host.machine import Host, Run, why

WAITING_S = 60.0  # a container that is created and not started for so long has been forgotten
_FORKING_RUNTIMES = ("crun", "youki")


def folders(host: Host) -> Iterator[Result]:
    """Owner and mode of what must not be anybody else's."""
    state, good = host.policy.state_dir, 0
    wanted = {state: 0o755, f"{state}/containers": 0o755, f"{state}/failures": 0o755}
    wanted |= {ledger.folder(state, name): 0o700 for name in _names(state)}
    for path, mode in wanted.items():
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CannotSee(path, why(error)) from None
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o7777 & ~mode:
            evidence = f"owner {status.st_uid}, mode {status.st_mode & 0o7777:04o}, where root and {mode:04o} belong"
            yield found("VGPU-HOST-006", path, evidence, remedy=f"chown root {path} && chmod {mode:o} {path}")
        else:
            good += 1
    yield Seen(f"{good} folders are root's alone")


def _names(state_dir: str) -> list[str]:
    try:
        return fixes.entries(state_dir)
    except VgpuError as error:
        raise CannotSee(f"{state_dir}/containers", str(error)) from None


def _readable(host: Host) -> Iterator[Allocation]:
    """Entries that can be read; `entries_are_good` tells of the others."""
    state = host.policy.state_dir
    for name in _names(state):
        try:
            one = ledger.read(state, name)
        except VgpuError as error:
            if isinstance(error.__cause__, PermissionError):
                raise CannotSee(ledger.folder(state, name), "may not be read: run the doctor as root") from None
            continue
        if one is not None:
            yield one


def entries_are_good(host: Host) -> Iterator[Result]:
    state, good = host.policy.state_dir, 0
    for name in _names(state):
        path = ledger.folder(state, name)
        try:
            one = ledger.read(state, name)
            if one is None:
                continue  # it ended while we looked
            bindings.read_quota(Path(path, "box/quota"))
            bindings.read_usage(Path(path, "box/usage"))
            good += 1
        except VgpuError as error:
            if isinstance(error.__cause__, PermissionError):
                raise CannotSee(path, "may not be read: run the doctor as root") from None
            if os.path.lexists(path):
                yield refused(error, path)
    yield Seen(f"{good} containers with a slice")


def orphans(host: Host) -> Iterator[Result]:
    state = host.policy.state_dir
    for name in fixes.leftovers(state):
        path = f"{state}/containers/{name}"
        if _age_s(path) > WAITING_S:  # a start that is under way has one for a moment
            yield found("VGPU-STA-001", path, "half of an entry: whoever made it was killed")
    good = 0
    for one in _readable(host):
        owner = one.init or one.creator
        if not ledger.alive(one):
            evidence = f"process {owner.pid} is gone; it still holds {_held(one)}"
            yield found("VGPU-STA-001", ledger.folder(state, one.id), evidence)
        elif waits := _waits(owner.pid, one.id):
            evidence = f"process {owner.pid} is still {waits} and never became the container's program; {_held(one)}"
            remedy = f"kill -9 {owner.pid} && vgpu doctor --fix"
            yield found("VGPU-STA-003", ledger.folder(state, one.id), evidence, remedy=remedy)
        else:
            good += 1
    yield Seen(f"{good} slices have a living process")


def _held(one: Allocation) -> str:
    parts = (f"{part.memory_bytes >> 20} MiB of GPU {part.index}" for part in one.placement.slices)
    return ", ".join(parts)


def _age_s(path: str) -> float:
    try:
        return time.time() - os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _waits(pid: int, container: str) -> str:
    """The runtime's name, if the process is that of a container that was created and not started, for long; else ""."""
    started = ledger.process(pid)
    if started is None:
        return ""
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - started.start_ticks / os.sysconf("SC_CLK_TCK")
    if age_s < WAITING_S:
        return ""
    try:
        comm = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    if comm.startswith("runc:["):  # as runc calls it until it executes the container's program
        return "runc"
    # crun's is a fork of `crun create ID`; a program of that name in a container would have other arguments
    return comm if comm in _FORKING_RUNTIMES and container.encode() in command else ""


def room(host: Host) -> Iterator[Result]:
    """Is more given out than there is, or of a GPU that there no longer is?"""
    policy = host.policy
    try:
        known = {gpu.uuid: gpu for gpu in inventory.load(policy).gpus}
    except VgpuError as error:
        raise CannotSee("what the GPUs have", f"no inventory that can be used: {error.code}") from None
    given: dict[str, list[Slice]] = {}
    for one in _readable(host):
        for part in one.placement.slices if ledger.alive(one) else ():
            given.setdefault(part.uuid, []).append(part)
            if part.uuid not in known:
                evidence = f"{one.name or one.id[:12]} has {part.memory_bytes >> 20} MiB of it, and it is not there"
                yield found("VGPU-STA-005", f"GPU {part.uuid}", evidence)
    good = 0
    for gpu in known.values():
        memory = sum(part.memory_bytes for part in given.get(gpu.uuid, ()))
        cores = sum(part.cores_percent for part in given.get(gpu.uuid, ()))
        if memory > gpu.memory_bytes or cores > 100:
            evidence = (
                f"{memory >> 20} MiB of {gpu.memory_bytes >> 20} MiB and {cores} % of its cores are given out; the "
                f"policy allows memory {policy.overcommit_memory:g} times, cores {policy.overcommit_cores:g} times"
            )
            yield found("VGPU-STA-002", f"GPU {gpu.index}", evidence)
        else:
            good += 1
    yield Seen(f"{good} GPUs are given out no further than the policy allows")


CHECKS: tuple[tuple[str, str, Run], ...] = (
    ("state", "folders", folders),
    ("state", "entries", entries_are_good),
    ("state", "owners", orphans),
    ("state", "room", room),
)
