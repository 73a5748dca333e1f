"""The whole way on the simulated GPU: real processes under the wrapper, seen by top and compared by the monitor."""

from __future__ import annotations

import json

from tests.libcuda_wrap.wrapped import MIB, OK, OUT_OF_MEMORY
from tests.vgpu.monitor.conftest import Start
from tests.vgpu.monitor.host import GIB, Host

_ROUNDS = ("monitor", "--interval", "0.1", "--history", "1MiB", "--rounds")


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
    done = simulated.vgpu(*_ROUNDS, "4")
    assert done.returncode == 0
    assert done.stderr.count("enforcement-not-active: job: ") == 1
    audit = [json.loads(line) for line in (simulated.prefix.parent / "log/audit.jsonl").read_text().splitlines()]
    assert [(entry["event"], entry["kind"]) for entry in audit] == [("flag", "enforcement-not-active")]
    (found,) = json.loads(simulated.vgpu("top", "--json", "--interval", "0.1").stdout)["slices"]
    assert found["findings"] == ["enforcement-not-active"]
