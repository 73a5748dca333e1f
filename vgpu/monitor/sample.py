"""What is seen at one moment: each container's own account, and each GPU as its driver tells it."""

from __future__ import annotations

from dataclasses import dataclass

from libcuda_wrap.bindings import GpuUse


@dataclass(frozen=True, slots=True)
class SliceSample:
    """A container on one GPU. memory_bytes, cores_percent: the quota now (100: no limit). use: None if unreadable."""

    index: int
    uuid: str
    memory_bytes: int
    cores_percent: int
    use: GpuUse | None


@dataclass(frozen=True, slots=True)
class ContainerSample:
    """One container. armed: its wrapper has been used. pids: its live processes, numbered in its own pid namespace.

    init: the host's pid of its first process, 0 while it is being set up. trouble: why its figures cannot be read.
    """

    id: str
    name: str
    image: str
    state: str
    simulated: bool
    init: int
    armed: bool
    pids: frozenset[int]
    slices: tuple[SliceSample, ...]
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class ProcessTruth:
    """A process on a GPU as NVML tells it. pid: the host's; inner_pid: in its own pid namespace, 0 if unknown.

    container: id, "" for none. memory_bytes: None where the driver does not say. sm_percent: of the GPU's time.
    """

    pid: int
    inner_pid: int
    container: str
    memory_bytes: int | None
    sm_percent: float | None


@dataclass(frozen=True, slots=True)
class GpuTruth:
    """A GPU as NVML tells it. busy_percent: None where the driver does not say."""

    index: int
    uuid: str
    name: str
    memory_bytes: int
    used_bytes: int
    busy_percent: float | None
    processes: tuple[ProcessTruth, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """time_ns: CLOCK_BOOTTIME; wall_ns: Unix time. gpus: () without NVML. troubles: (part, what) unreadable."""

    time_ns: int
    wall_ns: int
    containers: tuple[ContainerSample, ...]
    gpus: tuple[GpuTruth, ...]
    troubles: tuple[tuple[str, str], ...] = ()
    simulated: bool = False
