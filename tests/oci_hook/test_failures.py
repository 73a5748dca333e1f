"""What is kept of a start that was refused, or that ended without a word: enough to tell it when all else is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from start_path import ID, Installed, install

from oci_hook import audit, ledger

LABELS = {"vgpu.memory": "8GiB"}


@pytest.fixture
def vgpu(tmp_path: Path) -> Installed:
    return install(tmp_path)


def kept(vgpu: Installed, name: str = ID) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((vgpu.state / f"failures/{name}.json").read_text())
    return found


def test_a_refusal_is_kept_with_name_image_and_bundle(vgpu: Installed) -> None:
    vgpu.write_config(labels={"vgpu.memory": "4"})
    assert vgpu.create().returncode == 3
    found = kept(vgpu)
    assert (found["code"], found["name"], found["image"]) == ("VGPU-REQ-001", "web", "cuda:12")
    assert (found["part"], found["bundle"]) == ("shim", str(vgpu.bundle))


def test_a_bundle_that_cannot_be_read_is_kept_too(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    (vgpu.bundle / "config.json").write_text('{"annotations": {"vgpu.memory": "8GiB"')
    assert vgpu.create().returncode == 5
    assert kept(vgpu)["code"] == "VGPU-OCI-001"


def test_an_id_that_is_no_name_is_kept_without_one(vgpu: Installed) -> None:
    vgpu.write_config(annotations=LABELS)
    assert vgpu.create(container="../../etc").returncode == 5
    found = kept(vgpu, audit.UNNAMED)
    assert found["code"] == "VGPU-OCI-003" and "../../etc" in found["message"]


def test_a_runtime_that_cannot_be_started_is_kept_as_that(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    vgpu.runc.chmod(0o644)
    assert vgpu.create().returncode == 5
    assert kept(vgpu)["code"] == "VGPU-HOST-004"


def test_a_bug_is_kept_as_one(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    source = Path(vgpu.policy.prefix) / "lib/vgpu/python/oci_hook/placement.py"
    source.write_text(source.read_text().replace("rooms = rooms_for(", "rooms = 1 / 0, rooms_for("))
    assert vgpu.create().returncode == 1
    found = kept(vgpu)
    assert (found["code"], "ZeroDivisionError" in found["message"]) == ("VGPU-BUG-001", True)


def ended_runtime(vgpu: Installed) -> None:
    """A slice that was given, and a runtime that is gone before any hook was called."""
    vgpu.write_config(labels=LABELS)
    call = [str(vgpu.launcher), "create", "--bundle", str(vgpu.bundle), ID]
    with subprocess.Popen(call, env={**os.environ, "FAKE_RUNC_SLEEP": "60"}) as start:
        until = time.monotonic() + 20
        while not (vgpu.base / "called").exists():
            assert time.monotonic() < until
            time.sleep(0.005)
        start.send_signal(signal.SIGKILL)


def next_start(vgpu: Installed) -> None:
    """It clears away what the dead have left."""
    vgpu.write_config(annotations=LABELS)
    assert vgpu.create(container="next").returncode == 0


@pytest.mark.parametrize("begun", [False, True])
def test_a_start_that_was_killed_is_known_once_its_slice_is_taken_back(vgpu: Installed, begun: bool) -> None:
    ended_runtime(vgpu)
    if begun:
        Path(ledger.folder(str(vgpu.state), ID), audit.BEGUN).touch()
    assert not (vgpu.state / f"failures/{ID}.json").exists()
    allocation = ledger.read(str(vgpu.state), ID)
    assert allocation is not None
    next_start(vgpu)
    found = kept(vgpu)
    assert (found["code"], found["name"]) == ("VGPU-OCI-005", "web")
    assert found["part"] == ("hook" if begun else "runtime")
    assert ("while its hook was at work" in found["message"]) == begun
    assert found["time_ns"] == allocation.created_ns


def test_what_was_said_is_not_replaced_by_silence(vgpu: Installed) -> None:
    """A hook that was killed between its refusal and the end of its slice."""
    ended_runtime(vgpu)
    said = {"schema": 1, "code": "VGPU-DEP-001"}
    (vgpu.state / f"failures/{ID}.json").write_text(json.dumps(said))
    next_start(vgpu)
    assert kept(vgpu) == said


def test_a_container_that_ran_leaves_no_failure(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    assert vgpu.create().returncode == 0
    init = subprocess.Popen(["sleep", "60"])
    owner = ledger.process(init.pid)
    assert owner is not None
    ledger.arm(str(vgpu.state), ID, owner)
    init.kill()
    init.wait()
    next_start(vgpu)
    assert vgpu.containers() == ["next"]
    assert not (vgpu.state / f"failures/{ID}.json").exists()
