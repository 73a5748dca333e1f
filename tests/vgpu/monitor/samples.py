"""Samples and rows for tests: what is not named is unremarkable."""

from __future__ import annotations

from typing import Any

from libcuda_wrap.bindings import DENIALS, GpuUse
from vgpu.monitor.rows import REST, Row
from vgpu.monitor.sample import ContainerSample, GpuTruth, ProcessTruth, Sample, SliceSample

GIB, SECOND = 1 << 30, 1_000_000_000


def use(**figures: Any) -> GpuUse:
    plain: dict[str, Any] = {
        "used_bytes": 0, "ended_bytes": 0, "peak_bytes": 0, "denied": dict.fromkeys(DENIALS, 0), "denied_bytes": 0,
        "launches": 0, "busy_ns": 0, "throttled_ns": 0, "waits": (0,) * 32,
    }  # fmt: skip
    return GpuUse(**(plain | figures))


def container(name: str = "job", **figures: Any) -> ContainerSample:
    """On GPU 0 with 8 GiB and 30 %."""
    plain: dict[str, Any] = {
        "id": name, "name": name, "image": "image:1", "state": "armed", "simulated": True, "init": 1, "armed": True,
        "pids": frozenset({1}), "slices": (SliceSample(0, "GPU-0", 8 * GIB, 30, use()),),
    }  # fmt: skip
    return ContainerSample(**(plain | figures))


def process(container: str = "job", **figures: Any) -> ProcessTruth:
    plain: dict[str, Any] = {
        "pid": 100, "inner_pid": 1, "container": container, "memory_bytes": GIB, "sm_percent": 0.0
    }  # fmt: skip
    return ProcessTruth(**(plain | figures))


def sample(*containers: ContainerSample, processes: tuple[ProcessTruth, ...] = (), seconds: float = 0) -> Sample:
    gpu = GpuTruth(0, "GPU-0", "Simulated GPU", 80 * GIB, 10 * GIB, 50.0, processes)
    at = int(seconds * SECOND)
    return Sample(at, at, containers, (gpu,), (), True)


def row(container: str, seconds: float, **figures: Any) -> Row:
    """Of that container on GPU 0 at that time; REST for the GPU's own."""
    at = int(seconds * SECOND)
    plain: dict[str, Any] = {
        "time_ns": at, "wall_ns": at, "id": container, "name": container, "gpu": 0, "cores_percent": 100,
        "memory_bytes": 80 * GIB if container == REST else 8 * GIB, "used_bytes": 0, "peak_bytes": 0,
        "denied": (0,) * len(DENIALS), "launches": 0, "busy_ns": 0, "throttled_ns": 0, "waited": 0, "processes": 1,
        "nvml_bytes": 0, "sm_percent": 0.0, "gpu_percent": 50.0,
    }  # fmt: skip
    return Row(**(plain | figures))
