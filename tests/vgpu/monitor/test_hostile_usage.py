"""A container may write anything into its usage file: what reads it on the host shows figures, and never fails."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry
from samples import GIB, container, process, sample

from libcuda_wrap import bindings
from oci_hook import quota_file
from vgpu import ps
from vgpu.monitor import history, metrics, screen, truth
from vgpu.monitor.explain import explain
from vgpu.monitor.rates import rates
from vgpu.monitor.rows import REST, rows
from vgpu.monitor.sample import Sample, SliceSample
from vgpu.monitor.status import Status

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
GPU_AT = bindings.ffi().offsetof("struct vgw_usage", "gpus")
SLOT_AT = bindings.ffi().offsetof("struct vgw_usage", "slots")
WORDS = st.one_of(st.sampled_from([0, 1, (1 << 32) - 1, 1 << 63, (1 << 64) - 1]), st.integers(0, (1 << 64) - 1))


@st.composite
def usages(draw: st.DrawFn) -> bytes:
    """Header and size as they must be; anything in a GPU's record, in two slots, and in what the header counts."""
    data = bytearray(quota_file.usage_header().ljust(quota_file.USAGE_BYTES, b"\0"))
    places = [16, *range(GPU_AT, GPU_AT + 560, 8), *range(SLOT_AT, SLOT_AT + 2 * 576, 8)]
    for at in draw(st.lists(st.sampled_from(places), max_size=40)):
        data[at : at + 8] = draw(WORDS).to_bytes(8, "little")
    if draw(st.booleans()):
        data[28:32] = draw(st.integers(0, (1 << 32) - 1)).to_bytes(4, "little")  # slots ever used
    return bytes(data)


def look(data: bytes, seconds: float) -> Sample:
    """As `vgpu monitor` sees a container with that usage file, beside the driver's own account of one process."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        usage = bindings.read_usage(Path(file.name))
    pids = frozenset(one.pid for one in usage.processes)
    part = SliceSample(0, "GPU-0", 8 * GIB, 30, usage.gpus[0])
    return sample(
        container(slices=(part,), pids=pids, armed=bool(usage.armed_ns)), processes=(process(),), seconds=seconds
    )


class Once(Collector):
    def __init__(self, seen: Sample, status: Status) -> None:
        self._found = metrics.metrics(seen, status, metrics.Host("1", 1.0, 1.0, {}), 10)

    def collect(self):  # type: ignore[no-untyped-def]
        return self._found


@QUICK
@given(first=usages(), second=usages())
def test_every_reader_of_the_host_takes_it(first: bytes, second: bytes) -> None:
    before, after = look(first, 1), look(second, 2)
    seen = [*rows(before), *rows(after)]
    with tempfile.TemporaryDirectory() as folder:
        with history.Writer(f"{folder}/history", 1 << 16) as writer:
            writer.append(seen)
        kept = history.read(f"{folder}/history")
    assert [row.id for row in kept] == [row.id for row in seen] == ["job", REST, "job", REST]
    for rate in rates(rows(before), rows(after)).values():
        assert 0 <= rate.busy <= 1 and rate.throttled >= 0
    for report in explain(kept, "job", 10):
        assert sum(report.parts.values()) <= report.seconds * 1.001
    found = truth.step({}, truth.suspicions(after), ["job"])
    assert all(len(track.detail) < 500 for track in found.values())
    status = Status(True, {})
    for _, line in screen.text(screen.snapshot(before, after, status, "memory"), 120):
        assert len(line) <= 120
    registry = CollectorRegistry()
    registry.register(Once(after, status))
    assert b"vgpu_containers 1.0" in generate_latest(registry)


@QUICK
@given(data=usages())
def test_ps_takes_it(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        usage = bindings.read_usage(Path(file.name))
    figures = ps._use(usage, 0)
    assert figures["used_bytes"] is not None and 0 <= figures["used_bytes"] <= figures["charged_bytes"]
    since = ps._wall_clock(usage.armed_ns)
    assert ps._in_force({"trouble": None, "in_force": True, "in_force_since_ns": since}).startswith("since ")
