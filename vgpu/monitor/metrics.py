"""A sample as Prometheus metrics: base units, quota and use as values. Pure. docs/observability.md has the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from libcuda_wrap.bindings import GpuUse
from vgpu import __version__
from vgpu.monitor import truth
from vgpu.monitor.sample import ContainerSample, GpuTruth, Sample, SliceSample
from vgpu.monitor.status import Status

BACKEND = "wrapper"
_SLICE = ("container", "name", "image", "gpu")
_GPU = ("gpu",)
_LABEL_LENGTH = 128  # an image's name may be long; a series keeps it for ever
# the account's 32 buckets of powers of two, every second from 16 us to 17 s
_WAIT_BUCKETS = range(4, 26, 2)


@dataclass(frozen=True, slots=True)
class Host:
    """What a scrape knows besides the sample. errors: part -> times it could not be read."""

    driver_version: str
    overcommit_memory: float
    overcommit_cores: float
    errors: Mapping[str, int]


def metrics(sample: Sample, status: Status, host: Host, max_containers: int) -> Iterator[Metric]:
    """Containers that have ended are not in the sample, so their series end; the newest above the cap get none."""
    shown = sample.containers[:max_containers]
    yield from _of_slices(shown, {gpu.uuid: gpu for gpu in sample.gpus})
    if status.running:
        yield _findings(shown, status)
    yield from _of_gpus(sample)
    dropped = len(sample.containers) - len(shown)
    yield _one("vgpu_containers", "Containers that have a slice.", len(sample.containers))
    yield _one("vgpu_exporter_dropped_containers", "Containers above the cap, which have no series.", dropped)
    yield _one("vgpu_monitor_running", "1 if vgpu monitor compares and keeps history.", int(status.running))
    yield _one(
        "vgpu_memory_overcommit_limit_ratio", "How often the policy gives out a GPU's memory.", host.overcommit_memory
    )
    yield _one(
        "vgpu_cores_overcommit_limit_ratio", "How often the policy gives out a GPU's compute.", host.overcommit_cores
    )
    errors = CounterMetricFamily("vgpu_scrape_errors", "Times that a part could not be read.", labels=("part",))
    for part, count in sorted(host.errors.items()):
        errors.add_metric((part,), count)
    yield errors
    build = GaugeMetricFamily("vgpu_build_info", "Always 1.", labels=("version", "driver", "simulated"))
    build.add_metric((__version__, host.driver_version, str(sample.simulated).lower()), 1)
    yield build


def _one(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _labels(container: ContainerSample, part: SliceSample) -> tuple[str, ...]:
    return container.id, container.name[:_LABEL_LENGTH], container.image[:_LABEL_LENGTH], part.uuid


def _of_slices(containers: tuple[ContainerSample, ...], gpus: Mapping[str, GpuTruth]) -> Iterator[Metric]:
    slices = [(container, part) for container in containers for part in container.slices]
    yield from _quota(slices)
    yield from _driver(slices, gpus)
    known = [(_labels(container, part), part.use) for container, part in slices if part.use is not None]
    yield from _memory(known)
    yield from _compute(known)


def _quota(slices: list[tuple[ContainerSample, SliceSample]]) -> Iterator[Metric]:
    memory = GaugeMetricFamily("vgpu_memory_limit_bytes", "Device memory that the container may use.", labels=_SLICE)
    cores = GaugeMetricFamily(
        "vgpu_cores_limit_ratio", "Share of the GPU's time that it may use; 1 is no limit.", labels=_SLICE
    )
    active = GaugeMetricFamily(
        "vgpu_enforcement_active", "1 once the wrapper holds it to its quota.", labels=(*_SLICE, "backend")
    )
    processes = GaugeMetricFamily("vgpu_processes", "Its processes that use the driver.", labels=_SLICE)
    for container, part in slices:
        labels = _labels(container, part)
        memory.add_metric(labels, part.memory_bytes)
        cores.add_metric(labels, part.cores_percent / 100)
        active.add_metric((*labels, BACKEND), int(container.armed))
        processes.add_metric(labels, len(container.pids))
    yield from (memory, cores, active, processes)


def _driver(slices: list[tuple[ContainerSample, SliceSample]], gpus: Mapping[str, GpuTruth]) -> Iterator[Metric]:
    memory = GaugeMetricFamily("vgpu_driver_memory_bytes", "Its memory, as the driver tells.", labels=_SLICE)
    busy = GaugeMetricFamily(
        "vgpu_driver_busy_ratio", "Its share of the GPU's time, as the driver tells.", labels=_SLICE
    )
    for container, part in slices:
        gpu = gpus.get(part.uuid)
        if gpu is None:
            continue
        mine = [process for process in gpu.processes if process.container == container.id]
        if container.pids and not mine:  # it is at work, but the driver's list does not show where: not the same as 0
            continue
        labels = _labels(container, part)
        if all(process.memory_bytes is not None for process in mine):
            memory.add_metric(labels, sum(process.memory_bytes or 0 for process in mine))
        if all(process.sm_percent is not None for process in mine):
            busy.add_metric(labels, sum(process.sm_percent or 0 for process in mine) / 100)
    yield from (memory, busy)


def _memory(known: list[tuple[tuple[str, ...], GpuUse]]) -> Iterator[Metric]:
    used = GaugeMetricFamily("vgpu_memory_used_bytes", "Device memory in use.", labels=_SLICE)
    charged = GaugeMetricFamily(
        "vgpu_memory_charged_bytes", "In use, and of ended processes not given back yet.", labels=_SLICE
    )
    peak = GaugeMetricFamily("vgpu_memory_peak_bytes", "The most that was ever charged.", labels=_SLICE)
    denied = CounterMetricFamily("vgpu_denied", "Allocations that were refused.", labels=(*_SLICE, "reason"))
    for labels, use in known:
        used.add_metric(labels, max(0, use.used_bytes - use.ended_bytes))
        charged.add_metric(labels, use.used_bytes)
        peak.add_metric(labels, use.peak_bytes)
        for reason, count in use.denied.items():
            denied.add_metric((*labels, reason), count)
    yield from (used, charged, peak, denied)


def _compute(known: list[tuple[tuple[str, ...], GpuUse]]) -> Iterator[Metric]:
    busy = CounterMetricFamily("vgpu_busy_seconds", "GPU time of its launches, as the limiter measured.", labels=_SLICE)
    launches = CounterMetricFamily("vgpu_launches", "Launches that the limiter has seen.", labels=_SLICE)
    throttled = CounterMetricFamily(
        "vgpu_throttled_seconds", "Time that launches waited for the share, summed over threads.", labels=_SLICE
    )
    waits = HistogramMetricFamily("vgpu_launch_wait_seconds", "How long launches waited that had to.", labels=_SLICE)
    for labels, use in known:
        busy.add_metric(labels, use.busy_ns / 1e9)
        launches.add_metric(labels, use.launches)
        throttled.add_metric(labels, use.throttled_ns / 1e9)
        buckets = [(f"{2**power / 1e6:g}", float(sum(use.waits[: power + 1]))) for power in _WAIT_BUCKETS]
        waits.add_metric(labels, [*buckets, ("+Inf", float(sum(use.waits)))], sum_value=use.throttled_ns / 1e9)
    yield from (busy, launches, throttled, waits)


def _findings(containers: tuple[ContainerSample, ...], status: Status) -> Metric:
    found = GaugeMetricFamily(
        "vgpu_finding", "1 while the monitor holds this against the container.", labels=(*_SLICE, "kind")
    )
    for container in containers:
        for part in container.slices:
            for kind in truth.KINDS:
                held = (container.id, part.index, kind) in status.findings
                found.add_metric((*_labels(container, part), kind), int(held))
    return found


def _of_gpus(sample: Sample) -> Iterator[Metric]:
    info = GaugeMetricFamily("vgpu_gpu_info", "Always 1.", labels=("gpu", "index", "model"))
    total = GaugeMetricFamily("vgpu_gpu_memory_bytes", "Memory of the GPU.", labels=_GPU)
    used = GaugeMetricFamily("vgpu_gpu_memory_used_bytes", "Memory in use, by whomever.", labels=_GPU)
    busy = GaugeMetricFamily("vgpu_gpu_busy_ratio", "Share of the time that the GPU was busy.", labels=_GPU)
    memory = GaugeMetricFamily("vgpu_gpu_memory_given_bytes", "Sum of the quotas on the GPU.", labels=_GPU)
    cores = GaugeMetricFamily("vgpu_gpu_cores_given_ratio", "Sum of the limited shares on the GPU.", labels=_GPU)
    slices = GaugeMetricFamily("vgpu_gpu_slices", "Containers on the GPU.", labels=_GPU)
    for gpu in sample.gpus:
        info.add_metric((gpu.uuid, str(gpu.index), gpu.name), 1)
        total.add_metric((gpu.uuid,), gpu.memory_bytes)
        used.add_metric((gpu.uuid,), gpu.used_bytes)
        if gpu.busy_percent is not None:
            busy.add_metric((gpu.uuid,), gpu.busy_percent / 100)
        parts = [part for one in sample.containers for part in one.slices if part.uuid == gpu.uuid]
        memory.add_metric((gpu.uuid,), sum(part.memory_bytes for part in parts))
        cores.add_metric((gpu.uuid,), sum(part.cores_percent for part in parts if part.cores_percent < 100) / 100)
        slices.add_metric((gpu.uuid,), len(parts))
    yield from (info, total, used, busy, memory, cores, slices)
