"""The monitor as a service, and what explain makes of what it has seen, on a host without GPUs."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from libcuda_wrap import bindings
from libcuda_wrap.sim import create
from libcuda_wrap.toolchain import ROOT
from oci_hook import ledger
from tests.vgpu.monitor.host import GIB, SECOND, Host, refused
from vgpu.monitor import arguments, calibrate, collect, history, status
from vgpu.monitor.rates import Rate
from vgpu.monitor.rows import rows
from vgpu.monitor.sample import GpuTruth, ProcessTruth, Sample
from vgpu.monitor.truth import BYPASS, INACTIVE, Key, Track

_FAST = ("monitor", "--interval", "0.1", "--history", "1MiB")


def ring(host: Host) -> str:
    return history.path(str(host.state))


def test_it_runs_until_it_is_told_to_end_and_keeps_what_it_saw(host: Host) -> None:
    host.use(host.give_out("job"), used_bytes=GIB)
    with host.running(*_FAST) as monitor:
        until = time.monotonic() + 30
        while time.monotonic() < until and not (os.path.exists(ring(host)) and len(history.read(ring(host))) >= 3):
            time.sleep(0.05)
        refused(host.vgpu(*_FAST), "VGPU-MON-002", "another monitor", "systemctl stop vgpu-monitor")
        assert status.read(str(host.state)).running
    assert monitor.returncode == 0
    rows = history.read(ring(host))
    assert len(rows) >= 3
    assert {(row.name, row.used_bytes, row.memory_bytes, row.cores_percent) for row in rows} == {
        ("job", GIB, 8 * GIB, 30)
    }
    assert os.stat(ring(host)).st_size == 1 << 20
    assert os.stat(ring(host)).st_mode & 0o777 == 0o600


def test_what_cannot_be_read_is_said_once_and_does_not_end_it(host: Host) -> None:
    (host.box(host.give_out("broken")) / "usage").write_bytes(b"")
    host.give_out("job")
    done = host.vgpu(*_FAST, "--rounds", "5")
    assert done.returncode == 0
    assert sorted(line.split(": ")[1] for line in done.stderr.splitlines()) == ["nvml", "usage"]
    assert {row.name: row.known for row in history.read(ring(host))} == {"broken": False, "job": True}


def test_explain_tells_what_the_monitor_saw(host: Host) -> None:
    name = host.give_out("job")
    with host.running(*_FAST):
        until = time.monotonic() + 60  # the machine may be busy
        while time.monotonic() < until and not os.path.exists(ring(host)):
            time.sleep(0.05)
        began = time.monotonic()
        while time.monotonic() < until and (time.monotonic() < began + 3 or len(history.read(ring(host))) < 8):
            seconds = time.monotonic() - began
            host.use(name, launches=int(100 * seconds), busy_ns=int(0.3 * seconds * SECOND),
                     throttled_ns=int(0.6 * seconds * SECOND))  # fmt: skip
            time.sleep(0.02)
    done = host.vgpu("explain", "job", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["reports"]
    assert (found["verdict"], found["cores_percent"]) == ("quota", 30)
    assert 1.2 < found["seconds"]["quota"] / found["seconds"]["own"] < 3  # two to one, but for the edges
    shown = host.vgpu("explain", "job").stdout
    assert "Limited by: its quota. Confidence: low." in shown  # three seconds are too few
    assert "of the wait is its 30 % share" in shown


def test_explain_refuses_what_it_cannot_know(host: Host) -> None:
    refused(host.vgpu("explain", "job"), "VGPU-MON-001", "there is none yet", "vgpu monitor")
    host.give_out("job")
    assert host.vgpu(*_FAST, "--rounds", "2").returncode == 0
    refused(host.vgpu("explain", "jobs"), "VGPU-MON-003", "'jobs'", "choose one of: job")
    time.sleep(1.1)
    refused(host.vgpu("explain", "job", "--since", "1s"), "VGPU-MON-003", "last seen", "--since 10m")
    for text in ("30", "-5m", "1y", "", "9" * 30 + "m"):
        refused(host.vgpu("explain", "job", f"--since={text}"), "VGPU-CFG-003", "--since", "30m")
    Path(ring(host)).write_bytes(b"x" * 5000)
    refused(host.vgpu("explain", "job"), "VGPU-MON-001", "not a history of version 1")


def test_values_that_cannot_be_are_refused(host: Host) -> None:
    for option, text in (
        ("--history", "16"),
        ("--history", "1KiB"),
        ("--history", "9999GiB"),
        ("--allowance", "-1MiB"),
    ):
        refused(host.vgpu("monitor", f"{option}={text}"), "VGPU-CFG-003", option)
    assert not os.path.exists(ring(host))


def test_sizes_durations_and_addresses_are_read() -> None:
    assert arguments.size("--x", "3MiB", least=0, most=1 << 30) == 3 << 20
    assert [arguments.duration_s("--x", text) for text in ("90s", "30m", "2h", "1d")] == [90, 1800, 7200, 86400]
    assert arguments.address("--x", "[::1]:9411") == ("::1", 9411)
    assert arguments.address("--x", ":0") == ("::", 0)
    assert arguments.address("--x", "host.example:80") == ("host.example", 80)


def test_findings_of_a_monitor_that_has_ended_say_nothing_about_now(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = str(host.state)
    (host.state / "monitor").mkdir(parents=True)
    status.write(state, {Key("job", 0, BYPASS): Track(9, 0, True, "pid 1"), Key("job", 0, INACTIVE): Track(1)}, 1.0)
    assert status.read(state) == status.Status(True, {("job", 0, BYPASS): "pid 1"})
    clock = time.clock_gettime_ns
    monkeypatch.setattr(time, "clock_gettime_ns", lambda which: clock(which) + 6 * SECOND)
    assert status.read(state) == status.Status(False, {})
    for content in ("", "[]", "{}", '{"boottime_ns": "x", "interval_s": 1}'):
        Path(status.path(state)).write_text(content)
        assert not status.read(state).running


def rate(busy: float, sm: float | None) -> Rate:
    return Rate(seconds=5, busy=busy, sm=sm, throttled=0, launches=10, denied=())


def test_what_the_limiter_should_charge_is_the_containers_own_part_of_the_measured_time() -> None:
    assert calibrate.Account().charge_permille(calibrate.FULL, rate(0.8, 0.4)) == 750  # half of the way
    assert calibrate.Account().charge_permille(600, rate(0.4, 0.4)) == 600  # charged right: it stays
    assert calibrate.Account().charge_permille(600, rate(0.4, 0.8)) == 900
    assert calibrate.Account().charge_permille(calibrate.FULL, rate(0.1, 1.0)) == calibrate.MOST
    assert calibrate.Account().charge_permille(300, rate(0.8, 0.01)) == calibrate.LEAST
    assert calibrate.Account().charge_permille(500, rate(0.8, None)) is None
    assert calibrate.Account().charge_permille(500, rate(0.8, 0.0)) is None  # a driver that says 0 does not know
    assert calibrate.Account().charge_permille(500, rate(0.01, 0.01)) is None


def test_kernels_longer_than_a_look_are_charged_right_over_several() -> None:
    """Half a second at a time is charged when it has ended, at one look in five; the driver tells it as it runs."""
    account, now = calibrate.Account(), calibrate.FULL
    for look in range(40):
        had = (0.1, 0.3, 0.1, 0.0, 0.0)[look % 5]
        charged = 0.5 * now / calibrate.FULL if look % 5 == 2 else 0.0
        now = account.charge_permille(now, rate(charged, had)) or now
    assert now == pytest.approx(calibrate.FULL, rel=0.2)


def test_the_bounds_are_the_wrappers_own() -> None:
    text = (ROOT / "libcuda_wrap/src/bucket.c").read_text()
    found = dict(re.findall(r"#define CHARGE_(LEAST|MOST) +(\d+)u", text))
    assert found == {"LEAST": str(calibrate.LEAST), "MOST": str(calibrate.MOST)}


def test_a_monitor_writes_what_is_to_be_charged_and_until_when(host: Host) -> None:
    name = host.give_out("job")
    charges = calibrate.Charges(str(host.state), 5.0)
    allocation = ledger.read(str(host.state), name)
    assert allocation
    told = ProcessTruth(7, 7, name, 0, 20.0)
    for second, busy in ((100, 0), (105, 2 * SECOND)):  # 40 % by its own account, 20 % by the driver's
        host.use(name, busy_ns=busy)
        containers, _ = collect.read_containers(host.policy)
        gpu = GpuTruth(0, create.gpu_uuid(0), "", 80 * GIB, 0, 100.0, (told,))
        sample = Sample(second * SECOND, 0, tuple(containers), (gpu,))
        charges.look(sample, rows(sample))
    quota = bindings.read_quota(host.box(name) / "quota")[0]
    assert (quota.charge_permille, quota.charge_until_s) == (750, 105 + 16)
    charges.look(replace(sample, containers=()), [])  # it has ended: nothing is remembered
    (host.box(name) / "quota").write_bytes(b"")
    charges.look(sample, rows(sample))  # and what cannot be written does not end the monitor
