"""Compares the containers' own account with the driver's, and holds against a container what does not match.

A single look proves little: the two accounts are read one after the other, and a process may be just starting. So a
finding is raised after RAISE_AFTER looks in a row, and dropped after CLEAR_AFTER good ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vgpu.monitor.sample import ContainerSample, ProcessTruth, Sample, SliceSample

UNACCOUNTED, INACTIVE, BYPASS = "unaccounted-memory", "enforcement-not-active", "bypass-suspected"
KINDS = {
    UNACCOUNTED: "the driver sees more memory of the container's processes than its account has charged",
    INACTIVE: "a process of the container uses the GPU, but the wrapper has never been in use there",
    BYPASS: "a process of the container uses the GPU, but has no place in the container's account",
}
RAISE_AFTER, CLEAR_AFTER = 3, 5
ALLOWANCE_BYTES = 64 << 20  # per process: what the driver keeps for itself and rounds up


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What a finding is about."""

    container: str
    gpu: int
    kind: str


@dataclass(frozen=True, slots=True)
class Track:
    """bad, good: looks in a row. detail: of the last bad one."""

    bad: int = 0
    good: int = 0
    raised: bool = False
    detail: str = ""


def suspicions(sample: Sample, allowance_bytes: int = ALLOWANCE_BYTES) -> dict[Key, str]:
    """What does not match in this one sample, with figures."""
    truth = {gpu.index: gpu for gpu in sample.gpus}
    found: dict[Key, str] = {}
    for container in sample.containers:
        for part in container.slices:
            gpu = truth.get(part.index)
            # a container that has no account yet or none that can be read is told elsewhere (`trouble`)
            if gpu is None or part.use is None:
                continue
            active = [one for one in gpu.processes if one.container == container.id and _at_work(one)]
            for kind, detail in _compare(container, part, active, allowance_bytes):
                found[Key(container.id, part.index, kind)] = detail
    return found


def _at_work(process: ProcessTruth) -> bool:
    return bool(process.memory_bytes or process.sm_percent)


def _compare(
    container: ContainerSample, part: SliceSample, active: list[ProcessTruth], allowance_bytes: int
) -> list[tuple[str, str]]:
    assert part.use is not None
    if not active:
        return []
    pids = ", ".join(str(process.pid) for process in active[:8])
    if not container.armed:
        return [(INACTIVE, f"pid {pids} on GPU {part.index}")]
    found = []
    # inner_pid 0: it has ended since NVML was asked
    outside = [one for one in active if one.inner_pid and one.inner_pid not in container.pids]
    if outside:
        found.append((BYPASS, f"pid {', '.join(str(one.pid) for one in outside[:8])} on GPU {part.index}"))
    held = sum(process.memory_bytes or 0 for process in active)
    extra = held - part.use.used_bytes
    if extra > allowance_bytes * len(active):
        found.append((UNACCOUNTED, f"{held} bytes on GPU {part.index}, {extra} more than charged; pid {pids}"))
    return found


def step(tracks: Mapping[Key, Track], found: Mapping[Key, str], present: Sequence[str]) -> dict[Key, Track]:
    """The tracks after one more look. present: ids of the containers that still run; the others are forgotten."""
    after = {}
    for key in sorted({*tracks, *found}):
        old = tracks.get(key, Track())
        if key.container not in present:
            continue
        if key in found:
            new = Track(old.bad + 1, 0, old.raised or old.bad + 1 >= RAISE_AFTER, found[key])
        else:
            new = Track(0, old.good + 1, old.raised and old.good + 1 < CLEAR_AFTER, old.detail)
        if new.bad or new.raised:
            after[key] = new
    return after


def raised(tracks: Mapping[Key, Track]) -> dict[tuple[str, int], frozenset[str]]:
    """(container id, GPU) -> kinds that are held against it now."""
    found: dict[tuple[str, int], frozenset[str]] = {}
    for key, track in tracks.items():
        if track.raised:
            place = (key.container, key.gpu)
            found[place] = found.get(place, frozenset()) | {key.kind}
    return found
