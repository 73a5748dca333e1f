"""The outer loop on real limiters: two containers that never pause have their shares, by the simulated GPU's count.

Only whose process is whose is told by the test; the rest is the monitor's own code and the wrapper's.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from libcuda_wrap.sim import create
from oci_hook import ledger, resize
from tests.libcuda_wrap.wrapped import GIB, Box, part
from tests.vgpu.monitor.host import Host
from vgpu.monitor import calibrate, collect
from vgpu.monitor.rows import rows
from vgpu.monitor.sample import GpuTruth, ProcessTruth, Sample

INTERVAL_S = 0.5


@pytest.fixture
def pair(host: Host, built_box: Box, driver: Path, tmp_path: Path) -> tuple[Box, Box]:
    """Boxes of two containers of the host's ledger."""
    (tmp_path / "second").mkdir()
    second = Box.make(tmp_path / "second", "", driver)
    built_box.fresh(part(0, GIB))
    for name in ("sim", "gpus"):
        (second.folder / name).symlink_to(built_box.folder / name)
    for box, name, cores in ((built_box, "long", 60), (second, "short", 40)):
        box.slice(part(0, GIB, cores))
        place = host.box(host.give_out(name, cores=cores, memory=GIB))
        shutil.copy(place / "quota", box.folder / "quota")
        shutil.rmtree(place)
        place.symlink_to(box.folder)
    return built_box, second


def busy_ns(box: Box) -> dict[int, int]:
    return {one.pid: one.busy_ns for one in create.read_state(box.folder / "sim").gpus[0].processes}


def test_long_kernels_between_short_ones_have_their_share(host: Host, pair: tuple[Box, Box]) -> None:
    """Without the loop the first is charged for the other's time as well: nothing that it measures is undisturbed."""
    ids = [name for _, name in sorted((one.name, one.id) for one in collect.read_containers(host.policy)[0])]
    charges = calibrate.Charges(str(host.state), INTERVAL_S)
    try:
        pids = [pair[0].share("sync", 20000).pid, pair[1].share("flood", 1000).pid]
        before, at, shares = busy_ns(pair[0]), time.monotonic_ns(), [0.0, 0.0]
        for _ in range(40):
            time.sleep(INTERVAL_S)
            after, now = busy_ns(pair[0]), time.monotonic_ns()
            shares = [100 * (after.get(pid, 0) - before.get(pid, 0)) / (now - at) for pid in pids]
            before, at = after, now
            told = [ProcessTruth(pid, pid, name, 0, share) for pid, name, share in zip(pids, ids, shares, strict=True)]
            gpu = GpuTruth(0, create.gpu_uuid(0), "", GIB, 0, 100.0, tuple(told))
            containers, troubles = collect.read_containers(host.policy)
            assert not troubles
            sample = Sample(time.clock_gettime_ns(time.CLOCK_BOOTTIME), 0, tuple(containers), (gpu,))
            charges.look(sample, rows(sample))
            if abs(shares[0] - 60) <= 3 and abs(shares[1] - 40) <= 3:
                return
        pytest.fail(f"{shares}")
    finally:
        for box in pair:
            box.close()
        (pair[0].folder / "share").unlink()
        shutil.rmtree(pair[0].folder / "sim")


def test_what_a_monitor_said_ends_with_it(host: Host, pair: tuple[Box, Box]) -> None:
    box, name = pair[1], next(one.id for one in collect.read_containers(host.policy)[0] if one.name == "short")
    allocation = ledger.read(str(host.state), name)
    assert allocation
    try:
        box.share("flood", 2000)
        with resize.LiveQuota(str(host.state), allocation) as live:
            live.charge(0, 500, int(time.clock_gettime(time.CLOCK_BOOTTIME)) + 4)
        time.sleep(0.5)
        while_it_says = percent(box)
        time.sleep(3.5)
        assert (while_it_says > 60, percent(box) < 45) == (True, True)
    finally:
        box.close()
        shutil.rmtree(pair[0].folder / "sim")


def percent(box: Box) -> float:
    before, start = sum(busy_ns(box).values()), time.monotonic_ns()
    time.sleep(1.5)
    return 100 * (sum(busy_ns(box).values()) - before) / (time.monotonic_ns() - start)
