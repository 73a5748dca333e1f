"""The whole way on the simulated GPU: real processes under the wrapper, seen by top and compared by the monitor."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from oci_hook import ledger, quota_file
from tests.libcuda_wrap.wrapped import MIB, OK, OUT_OF_MEMORY, Box, Client, part
from tests.vgpu.monitor.conftest import Start
from tests.vgpu.monitor.host import GIB, Host
from vgpu.monitor import status

pytestmark = pytest.mark.timeout(400)  # the first test builds wrapper and driver
_FAST = ("monitor", "--interval", "0.1", "--history", "1MiB")
_ROUNDS = (*_FAST, "--rounds")


@contextmanager
def watched(host: Host, findings: int) -> Iterator[list[str]]:
    """A monitor that runs and holds so many findings; what it said is in the list after the block."""
    said: list[str] = []
    with host.running(*_FAST) as monitor:
        until = time.monotonic() + 60
        while time.monotonic() < until and len(status.read(str(host.state)).findings) < findings:
            time.sleep(0.1)
        yield said
        monitor.terminate()
        said += monitor.communicate(timeout=30)[1].splitlines()


def init_of(host: Host) -> int:
    """The host's pid of the container's first process."""
    found = ledger.read(str(host.state), b"job".hex().ljust(64, "0"))
    assert found
    assert found.init
    return found.init.pid


def test_memory_and_refusals_are_seen_by_both_accounts(simulated: Host, start: Start) -> None:
    client = start()
    assert client.ask(f"alloc linear 0 {3 * GIB}")[0] == OK
    assert client.ask(f"alloc linear 1 {6 * GIB}")[0] == OUT_OF_MEMORY
    done = simulated.vgpu("top", "--json", "--interval", "0.2")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    (found,) = shown["slices"]
    assert (found["name"], found["used_bytes"], found["driver_bytes"]) == ("job", 3 * GIB, 3 * GIB)
    assert (found["denied"]["quota"], found["denied_now"], found["processes"]) == (1, 0, 1)
    assert (shown["simulated"], shown["troubles"]) == (True, [])
    assert shown["gpus"][0]["used_bytes"] == 3 * GIB
    done = simulated.vgpu(*_ROUNDS, "4")
    assert (done.returncode, done.stderr) == (0, "")  # nothing to hold against it
    assert simulated.vgpu("top", "--once", "--interval", "0.1").returncode == 0


def test_a_process_beside_the_wrapper_is_noticed(simulated: Host, start: Start) -> None:
    client = start(wrapped=False)
    assert client.ask(f"alloc linear 0 {200 * MIB}")[0] == OK
    with watched(simulated, 1) as said:
        (found,) = json.loads(simulated.vgpu("top", "--json", "--interval", "0.1").stdout)["slices"]
    assert found["findings"] == ["enforcement-not-active"]
    assert [line.split(": ")[1:3] for line in said] == [["enforcement-not-active", "job"]]
    audit = [json.loads(line) for line in (simulated.prefix.parent / "log/audit.jsonl").read_text().splitlines()]
    assert [(entry["event"], entry["kind"]) for entry in audit] == [("flag", "enforcement-not-active")]


def test_a_process_that_opens_the_driver_itself_in_a_wrapped_container_is_noticed(
    simulated: Host, start: Start, built_box: Box
) -> None:
    client = start()
    assert client.ask(f"alloc linear 0 {GIB}")[0] == OK
    beside = subprocess.Popen(
        ["nsenter", "--target", str(init_of(simulated)), "--mount", str(built_box.folder / "client")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**built_box.environment(), "LD_LIBRARY_PATH": str(simulated.prefix / "lib/vgpu/sim")},
    )  # fmt: skip
    try:
        assert Client(beside).ready().ask(f"alloc linear 0 {2 * GIB}")[0] == OK
        with watched(simulated, 2) as said:
            shown = simulated.vgpu("top", "--once", "--interval", "0.1").stdout
        assert f"vgpu: bypass-suspected: job: pid {beside.pid} on GPU 0" in said
        assert any("unaccounted-memory: job: " in line for line in said)
        assert "\nbypass-suspected: job, pid" in shown
    finally:
        beside.kill()
        beside.communicate(timeout=20)
    done = simulated.vgpu(*_ROUNDS, "2")
    assert done.stderr == ""  # a new monitor starts without suspicions


def test_a_program_held_by_its_share_is_told_so(simulated: Host, start: Start, built_box: Box) -> None:
    """It asks for all of the GPU's time and has 30 %."""
    start()
    built_box.write("quota", quota_file.quota("c0ffee", [part(0, 8 * GIB, 30)], burst="hard", priority="normal"))
    inside = ["nsenter", "--target", str(init_of(simulated)), "--mount"]
    flood = subprocess.Popen(
        [*inside, str(built_box.folder / "load"), "flood", "5000"], stdout=subprocess.PIPE, text=True,
        env=built_box.environment(),
    )  # fmt: skip
    try:
        assert flood.stdout
        assert flood.stdout.readline() == "ready\n"
        assert simulated.vgpu(*_ROUNDS, "15", "--interval", "0.4").returncode == 0
        (found,) = json.loads(simulated.vgpu("explain", "job", "--json").stdout)["reports"]
    finally:
        flood.kill()
        flood.communicate(timeout=20)
    assert (found["verdict"], found["cores_percent"]) == ("quota", 30)
    assert found["seconds"]["quota"] > found["seconds"]["own"] > 0.2 * found["watched_s"]
    assert "% of the wait is its 30 % share: " in found["advice"]
