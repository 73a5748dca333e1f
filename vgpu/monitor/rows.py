"""A sample laid flat: one row for each container on each GPU, and one for each GPU's rest. History keeps these rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from libcuda_wrap.bindings import DENIALS
from vgpu.monitor.sample import ContainerSample, GpuTruth, ProcessTruth, Sample, SliceSample

REST = ""  # the id of a GPU's row for all that is in no container of ours


@dataclass(frozen=True, slots=True)
class Row:
    """One container on one GPU at one moment; with id REST the processes that are in none, and the GPU's totals.

    Counters grow from the container's start: denied (in order of DENIALS), launches, busy_ns, throttled_ns, waited.
    nvml_bytes, sm_percent: the driver's account of these processes; gpu_percent: of the GPU; None: not told.
    findings: what the monitor holds against it. known: False if the container's own account could not be read.
    """

    time_ns: int
    wall_ns: int
    id: str
    name: str
    gpu: int
    cores_percent: int
    memory_bytes: int
    used_bytes: int
    peak_bytes: int
    denied: tuple[int, ...]
    launches: int
    busy_ns: int
    throttled_ns: int
    waited: int
    processes: int
    nvml_bytes: int | None
    sm_percent: float | None
    gpu_percent: float | None
    findings: frozenset[str] = frozenset()
    known: bool = True


def rows(sample: Sample, findings: Mapping[tuple[str, int], frozenset[str]] | None = None) -> list[Row]:
    """findings: (container id, GPU index) -> kinds."""
    truth = {gpu.index: gpu for gpu in sample.gpus}
    found = []
    for container in sample.containers:
        for part in container.slices:
            kinds = (findings or {}).get((container.id, part.index), frozenset())
            found.append(_row(sample, container, part, truth.get(part.index), kinds))
    ours = {container.id for container in sample.containers}
    found += [_rest(sample, gpu, ours) for gpu in sample.gpus]
    return found


def _row(
    sample: Sample, container: ContainerSample, part: SliceSample, gpu: GpuTruth | None, findings: frozenset[str]
) -> Row:
    use = part.use
    mine = [process for process in gpu.processes if process.container == container.id] if gpu else []
    # none is listed though some are at work: whose they are could not be found out, which is not the same as none
    told = gpu is not None and bool(mine or not container.pids)
    return Row(
        time_ns=sample.time_ns,
        wall_ns=sample.wall_ns,
        id=container.id,
        name=container.name,
        gpu=part.index,
        cores_percent=part.cores_percent,
        memory_bytes=part.memory_bytes,
        # what ended processes held stays charged until room is needed; it is not in use
        used_bytes=max(0, use.used_bytes - use.ended_bytes) if use else 0,
        peak_bytes=use.peak_bytes if use else 0,
        denied=tuple(use.denied[reason] for reason in DENIALS) if use else (0,) * len(DENIALS),
        launches=use.launches if use else 0,
        busy_ns=use.busy_ns if use else 0,
        throttled_ns=use.throttled_ns if use else 0,
        waited=sum(use.waits) if use else 0,
        processes=len(container.pids),
        nvml_bytes=_memory(mine) if told else None,
        sm_percent=_share(mine) if told else None,
        gpu_percent=gpu.busy_percent if gpu else None,
        findings=findings,
        known=use is not None,
    )


def _rest(sample: Sample, gpu: GpuTruth, ours: set[str]) -> Row:
    others = [process for process in gpu.processes if process.container not in ours]
    return Row(
        time_ns=sample.time_ns,
        wall_ns=sample.wall_ns,
        id=REST,
        name="",
        gpu=gpu.index,
        cores_percent=100,
        memory_bytes=gpu.memory_bytes,
        used_bytes=gpu.used_bytes,
        peak_bytes=0,
        denied=(0,) * len(DENIALS),
        launches=0,
        busy_ns=0,
        throttled_ns=0,
        waited=0,
        processes=len(others),
        nvml_bytes=_memory(others),
        sm_percent=_share(others),
        gpu_percent=gpu.busy_percent,
    )


def _memory(processes: list[ProcessTruth]) -> int | None:
    known = [process.memory_bytes for process in processes if process.memory_bytes is not None]
    return sum(known) if len(known) == len(processes) else None


def _share(processes: list[ProcessTruth]) -> float | None:
    known = [process.sm_percent for process in processes if process.sm_percent is not None]
    return sum(known) if len(known) == len(processes) else None
