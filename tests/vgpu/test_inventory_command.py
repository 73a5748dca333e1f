"""vgpu inventory: what it finds, and the simulated GPUs that it makes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from libcuda_wrap.sim import create
from oci_hook import ledger, quota_file
from oci_hook.errors import HostError
from oci_hook.records import Allocation, Ask, Placement, Plan, Policy, Process, Request, Slice
from oci_hook.values import replace
from tests.harness import installed
from vgpu import inventory

GIB = 1 << 30


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return Policy(
        runtime="/bin/true", prefix=str(tmp_path), state_dir=str(tmp_path / "state"), simulate_gpus=2,
        simulate_memory_bytes=GIB,
    )  # fmt: skip


def give_out(policy: Policy, creator: Process) -> None:
    allocation = Allocation(
        id="c1", name="job", image="image", state="creating", created_ns=1, creator=creator, init=None,
        request=Request(asks=(Ask(memory_bytes=GIB),)),
        placement=Placement("binpack", (Slice(0, "GPU-0", GIB, 0),), ()),
        clamped=(), simulated=True, driver_version="1",
    )  # fmt: skip
    with ledger.Ledger(policy.state_dir) as held:
        held.add(allocation, Plan((), ()), b"", quota_file.usage_header(), quota_file.USAGE_BYTES)


def test_simulated_gpus_are_made_once(policy: Policy) -> None:
    made = inventory.simulate(policy)
    assert [(gpu.index, gpu.memory_bytes, gpu.health) for gpu in made] == [(0, GIB, "ok"), (1, GIB, "ok")]
    ctl = Path(policy.state_dir, "sim/ctl")
    before = ctl.stat()
    assert inventory.simulate(policy) == made
    assert (ctl.stat().st_ino, ctl.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_others_replace_them_while_nobody_uses_them(policy: Policy) -> None:
    inventory.simulate(policy)
    give_out(policy, Process(1 << 22, 1))  # its owner is dead
    assert len(inventory.simulate(replace(policy, simulate_gpus=4))) == 4


def test_they_stay_while_a_container_uses_them(policy: Policy) -> None:
    inventory.simulate(policy)
    creator = ledger.process(os.getpid())
    assert creator is not None
    give_out(policy, creator)
    ctl = Path(policy.state_dir, "sim/ctl").read_bytes()
    with pytest.raises(HostError, match="1 of its slices are in use") as caught:
        inventory.simulate(replace(policy, simulate_gpus=4))
    assert caught.value.code == "VGPU-HOST-003"
    assert Path(policy.state_dir, "sim/ctl").read_bytes() == ctl
    assert len(inventory.simulate(policy)) == 2


def test_a_gpu_that_is_lost_is_not_healthy(policy: Policy) -> None:
    inventory.simulate(policy)
    create.lose_gpu(Path(policy.state_dir, "sim"), 1)
    assert [gpu.health for gpu in inventory.simulate(policy)] == ["ok", "lost"]


def test_the_command_shows_what_it_wrote(tmp_path: Path, needs_build: None) -> None:
    vgpu = installed.install(tmp_path, Path("/bin/true"), gpus=3, memory="16GiB")
    text = vgpu("inventory").stdout
    assert text.startswith("simulated driver ")
    assert "3 GPUs" in text
    assert text.count("16 GiB") == 3
    shown = json.loads(vgpu("inventory", "--json").stdout)
    assert shown["inventory"] == json.loads(Path(shown["path"]).read_text())
    assert [gpu["memory_bytes"] for gpu in shown["inventory"]["gpus"]] == [16 * GIB] * 3


def test_a_missing_or_stale_inventory_is_refused_with_the_remedy(tmp_path: Path, needs_build: None) -> None:
    vgpu = installed.install(tmp_path, Path("/bin/true"))
    os.utime(vgpu.prefix / "lib/vgpu/wrapper/libcuda.so.1", (1, 1))
    stale = vgpu("inventory", check=False)
    (vgpu.state / "inventory.json").unlink()
    missing = vgpu("inventory", check=False)
    for done in (stale, missing):
        assert (done.returncode, done.stdout) == (5, "")
        assert done.stderr.startswith("vgpu: VGPU-HOST-002: ")
        assert "vgpu inventory --refresh" in done.stderr
    assert vgpu("inventory", "--refresh").returncode == 0
    assert vgpu("inventory").returncode == 0
