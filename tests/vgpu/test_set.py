"""vgpu set as a user runs it, and what vgpu ps then shows."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from libcuda_wrap import bindings
from oci_hook import inventory, ledger
from oci_hook.fastjson import dumps
from oci_hook.records import Allocation, Gpu, Inventory
from oci_hook.values import as_json
from tests.vgpu.test_commands import GIB, give_out, in_force, prefix, vgpu

__all__ = ["prefix"]  # the fixture


@pytest.fixture
def gpus(prefix: Path) -> Path:
    """The installation, on a host with two GPUs of 80 GiB."""
    policy = in_force(prefix)
    have = tuple(Gpu(index, f"GPU-{index}", "Simulated GPU", 80 * GIB, "", index) for index in range(2))
    found = Inventory("550.54.14", True, inventory.current_key(policy), have, (), (), ())
    path = Path(inventory.path(policy))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dumps(as_json(found)))
    path.chmod(0o644)
    return prefix


def quota(prefix: Path, allocation: Allocation) -> tuple[bindings.GpuQuota, ...]:
    return bindings.read_quota(Path(ledger.folder(in_force(prefix).state_dir, allocation.id), "box/quota"))


def audited(prefix: Path) -> list[dict[str, Any]]:
    lines = Path(in_force(prefix).log_dir, "audit.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def refused(done: subprocess.CompletedProcess[str], exit_code: int, code: str, *words: str) -> None:
    assert (done.returncode, done.stdout) == (exit_code, ""), done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"vgpu: {code}: ")
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("how", ["id", "prefix", "name"])
def test_a_container_is_found_and_its_slice_changes(gpus: Path, how: str) -> None:
    allocation = give_out(gpus, name="job", container="abc" + "0" * 61, gpus=2)
    give_out(gpus, name="other", container="abd" + "0" * 61)
    named = {"id": allocation.id, "prefix": "abc", "name": "job"}[how]
    done = vgpu(gpus, "set", named, "--memory", "12GiB", "--cores", "50", "--gpu", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "job GPU 0: memory 8 GiB, cores not limited",
        "job GPU 1: memory 8 GiB -> 12 GiB, cores 30 % -> 50 %",
        "in force from the next call of its programs",
    ]
    assert [(gpu.memory_bytes, gpu.cores_percent) for gpu in quota(gpus, allocation)] == [
        (8 * GIB, 100),
        (12 * GIB, 50),
    ]
    (_, second) = json.loads(vgpu(gpus, "ps", "--json").stdout)["containers"][0]["gpus"]
    assert (second["memory_bytes"], second["cores_percent"]) == (12 * GIB, 50)
    line = audited(gpus)[-1]
    assert (line["event"], line["id"], line["forced"]) == ("resize", allocation.id, False)
    assert [(line[key][1]["memory_bytes"]) for key in ("before", "after")] == [8 * GIB, 12 * GIB]


def test_json_tells_before_and_after(gpus: Path) -> None:
    allocation = give_out(gpus)
    shown = json.loads(vgpu(gpus, "set", "job", "--memory", "4GiB", "--burst", "soft", "--json").stdout)
    assert (shown["schema"], shown["id"], shown["changed"], shown["burst"]) == (1, allocation.id, True, "soft")
    assert shown["generation"] > 1
    assert shown["gpus"] == [
        {"index": 0, "uuid": "GPU-0", "memory_bytes": 4 * GIB, "cores_percent": 0,
         "before": {"memory_bytes": 8 * GIB, "cores_percent": 0}}
    ]  # fmt: skip
    assert quota(gpus, allocation)[0].flags == 1
    before = len(audited(gpus))
    again = json.loads(vgpu(gpus, "set", "job", "--memory", "4GiB", "--json").stdout)
    assert (again["changed"], again["generation"]) == (False, None)
    assert len(audited(gpus)) == before


def test_what_is_refused_says_why_and_changes_nothing(gpus: Path) -> None:
    allocation = give_out(gpus, name="job", container="abc1" + "0" * 60)
    give_out(gpus, name="twin", container="abc2" + "0" * 60)
    for arguments, exit_code, code, words in [
        (["nobody", "--memory", "1GiB"], 3, "VGPU-SET-001", ["'nobody'", "vgpu ps"]),
        (["abc", "--memory", "1GiB"], 3, "VGPU-SET-001", ["fits 2 containers", "abc10000", "abc20000"]),
        (["", "--memory", "1GiB"], 3, "VGPU-SET-001", ["''"]),
        (["job", "--memory", "4"], 3, "VGPU-REQ-001", ["--memory='4'", "12GiB"]),
        (["job", "--memory", "50%"], 3, "VGPU-REQ-001", ["--memory='50%'"]),
        (["job", "--cores", "0"], 3, "VGPU-REQ-002", ["--cores='0'", "1 to 100"]),
        (["job", "--cores", "x" * 500], 3, "VGPU-REQ-002", ["--cores='xxx", "(500 characters)"]),
        (["job", "--cores", "5", "--gpu", "-1"], 3, "VGPU-REQ-002", ["--gpu='-1'"]),
        (["job", "--cores", "5", "--gpu", "1"], 3, "VGPU-SET-004", ["--gpu=1", "GPU 0"]),
        (["job", "--burst", "maybe"], 3, "VGPU-REQ-006", ["--burst='maybe'"]),
        (["job", "--memory", "73GiB"], 4, "VGPU-PLC-001", ["CardInsufficientMemory", "72 GiB in all"]),
    ]:
        refused(vgpu(gpus, "set", *arguments), exit_code, code, *words)
    assert vgpu(gpus, "set", "job").returncode == 2
    assert quota(gpus, allocation)[0].memory_bytes == 8 * GIB
    assert not Path(in_force(gpus).log_dir, "audit.jsonl").exists()


def test_the_admins_cap_holds_for_set_as_well(gpus: Path) -> None:
    give_out(gpus)
    config = gpus / "etc/config.yaml"
    config.write_text(config.read_text() + "max: {memory: 16GiB, cores: 50}\n")
    assert vgpu(gpus, "config", "apply").returncode == 0
    refused(vgpu(gpus, "set", "job", "--memory", "17GiB"), 3, "VGPU-SET-003", "--memory", "16 GiB", "max.memory")
    refused(vgpu(gpus, "set", "job", "--cores", "60"), 3, "VGPU-SET-003", "--cores", "50 %", "max.cores")
    assert vgpu(gpus, "set", "job", "--memory", "16GiB", "--cores", "50").returncode == 0


def test_without_an_inventory_a_slice_can_shrink_and_not_grow(prefix: Path) -> None:
    give_out(prefix)
    refused(vgpu(prefix, "set", "job", "--memory", "9GiB"), 5, "VGPU-HOST-002", "inventory --refresh")
    assert vgpu(prefix, "set", "job", "--memory", "7GiB").returncode == 0


def test_a_container_that_has_ended_is_cleared_away_as_by_a_start(gpus: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    give_out(gpus, owner=ended.pid)
    refused(vgpu(gpus, "set", "job", "--memory", "1GiB"), 3, "VGPU-SET-001", "'job'")
    assert os.listdir(f"{in_force(gpus).state_dir}/containers") == []


def test_ps_shows_what_is_given_out_more_than_once(gpus: Path) -> None:
    give_out(gpus, name="one", container="1" * 64)
    give_out(gpus, name="two", container="2" * 64, gpus=2)
    assert "overcommitted" not in vgpu(gpus, "ps").stdout
    refused(vgpu(gpus, "set", "two", "--memory", "80GiB", "--gpu", "0"), 4, "VGPU-PLC-001", "CardInsufficientMemory")
    config = gpus / "etc/config.yaml"
    config.write_text(config.read_text() + "overcommit: {memory: 1.5, cores: 1}\n")
    assert vgpu(gpus, "config", "apply").returncode == 0
    assert vgpu(gpus, "set", "two", "--memory", "80GiB", "--gpu", "0").returncode == 0
    _, one, two, second = vgpu(gpus, "ps").stdout.splitlines()
    assert "0 (simulated, overcommitted)" in one and "0 (simulated, overcommitted)" in two
    assert "overcommitted" not in second
    shown = json.loads(vgpu(gpus, "ps", "--json").stdout)["gpus"]
    assert [(gpu["index"], gpu["given_bytes"] // GIB, gpu["overcommitted"]) for gpu in shown] == [
        (0, 88, True),
        (1, 8, False),
    ]
    assert {gpu["overcommit_memory"] for gpu in shown} == {1.5}
