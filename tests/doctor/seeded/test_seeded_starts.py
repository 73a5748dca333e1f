"""Faults of a container's start: what it asks, what the host has, what the engine hands over."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from libcuda_wrap.toolchain import Toolchain
from oci_hook.errors import VgpuError
from tests.doctor.seeded.ground import SLICE, Ground, Told, nothing, program, row, seeded, told
from tests.harness import bundle, installed
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e
seeds = pytest.mark.seeds
ROOT = Path(__file__).parents[3]
MEMORY = "vgpu.memory"

ASKED = [
    row(seeds("VGPU-REQ-001"), {MEMORY: "4"}, "vgpu.memory='4' … GiB", {MEMORY: "4GiB"}),
    row(seeds("VGPU-REQ-002"), {**SLICE, "vgpu.cores": "0"}, "vgpu.cores='0' … 1 to 100", {**SLICE, "vgpu.cores": "1"}),
    row(seeds("VGPU-REQ-003"), {"vgpu.memroy": "8GiB"}, "vgpu.memroy … vgpu.memory", {MEMORY: "8GiB"}),
    row(seeds("VGPU-REQ-004"), {"vgpu.cores": "30"}, "vgpu.cores … vgpu.memory", {**SLICE, "vgpu.cores": "30"}),
    row(seeds("VGPU-REQ-005"), {MEMORY: "８GiB"}, "vgpu.memory", {MEMORY: "8GiB"}),
    row(seeds("VGPU-REQ-006"), {**SLICE, "vgpu.policy": "bestfit"}, "'bestfit' … binpack",
        {**SLICE, "vgpu.policy": "binpack"}),
    row(seeds("VGPU-PLC-001"), {MEMORY: "81GiB"}, "2/2 CardInsufficientMemory … GPU 1", {MEMORY: "80GiB"}),
    row(seeds("VGPU-PLC-002"), {**SLICE, "vgpu.devices": "7"}, "7 … vgpu inventory", {**SLICE, "vgpu.devices": "1"}),
]  # fmt: skip


@pytest.mark.parametrize(("code", "asked", "evidence", "better"), ASKED)
def test_what_a_container_asks(
    ground: Ground, code: str, asked: dict[str, str], evidence: str, better: dict[str, str]
) -> None:
    seeded(code, lambda: ground.start(asked), evidence, nothing, again=lambda: ground.start(better))


@pytest.mark.seeds("VGPU-PLC-003")
def test_a_policy_that_is_not_set_up(ground: Ground) -> None:
    asked = {**SLICE, "vgpu.policy": "weighted"}
    weights = "weighted: {binpack: 0.7, topology: 0.3}"  # as the remedy has it
    seeded("VGPU-PLC-003", lambda: ground.start(asked), f"weighted … {weights}", lambda: ground.configured(weights))


@pytest.mark.seeds("VGPU-PLC-004")
def test_a_reservation_that_was_never_made(ground: Ground) -> None:
    reserve = ("reserve", "--gpu", "0", "--memory", "8GiB", "--for", "1h", "--name", "night")
    asked = {**SLICE, "vgpu.reservation": "night"}
    seeded("VGPU-PLC-004", lambda: ground.start(asked), "'night' … vgpu reservations", lambda: ground.vgpu(*reserve))


def with_spoilt_config(ground: Ground, spoil: bytes | None) -> Told:
    with bundle.container(ground.vgpu.runtime, ground.folder / "b", ground.tree, ["true"], annotations=SLICE) as box:
        if spoil is not None:
            box.config.write_bytes(spoil)
        result = box.run()
    return told(result.code, result.refusal)


@pytest.mark.seeds("VGPU-OCI-001")
def test_a_bundle_that_was_damaged(ground: Ground) -> None:
    half = b'{"annotations": {"vgpu.memory": "8GiB"'
    spoilt, created_again = partial(with_spoilt_config, ground, half), partial(with_spoilt_config, ground, None)
    seeded("VGPU-OCI-001", spoilt, "config.json", nothing, again=created_again)


@pytest.mark.seeds("VGPU-OCI-002")
def test_a_hook_that_a_person_calls(ground: Ground) -> None:
    python = f"{ground.vgpu.prefix}/lib/vgpu/python/vgpu_hook.py"
    policy = f"{ground.vgpu.prefix}/etc/policy.json"
    by_hand = ("/usr/bin/python3", "-I", "-S", "-E", python, "prestart", "--policy", policy)
    seeded("VGPU-OCI-002", lambda: program(*by_hand, stdin="{"), "standard input", nothing, again=ground.start)


@pytest.mark.seeds("VGPU-OCI-003")
def test_an_id_that_cannot_be_a_folder(ground: Ground) -> None:
    start = partial(ground.start, SLICE, container_id=".job-1" + "0" * 40)
    again = partial(ground.start, SLICE, container_id="job-1" + "0" * 40)
    seeded("VGPU-OCI-003", start, "'.job-1 … does not begin with a dot", nothing, again)


@pytest.mark.seeds("VGPU-OCI-004")
def test_two_of_one_id(ground: Ground) -> None:
    with ground.running("sleep", "300") as first:
        start = partial(ground.start, SLICE, container_id=first.id)
        seeded("VGPU-OCI-004", start, f"{first.id[:20]} … delete that container", first.delete)


@pytest.mark.seeds("VGPU-HOST-001")
def test_a_policy_that_is_gone(ground: Ground) -> None:
    policy = (ground.vgpu.prefix / "etc/policy.json").resolve()
    policy.unlink()
    seeded("VGPU-HOST-001", ground.start, f"{policy} … vgpu config apply", lambda: ground.vgpu("config", "apply"))


@pytest.mark.seeds("VGPU-HOST-003")
def test_an_entry_of_the_ledger_that_cannot_be_read(ground: Ground) -> None:
    broken = ground.vgpu.state / "containers/broken"
    broken.mkdir()
    seeded("VGPU-HOST-003", ground.start, f"{broken} … remove the folder", lambda: shutil.rmtree(broken))


@pytest.mark.seeds("VGPU-HOST-004")
def test_a_runtime_that_is_gone(ground: Ground) -> None:
    runtime = ground.folder / "runc"
    shutil.copy2(shutil.which("runc", path="/usr/sbin:/usr/bin") or "", runtime)
    config = ground.vgpu.prefix / "etc/config.yaml"
    config.write_text(config.read_text().replace("runtime: ", "#runtime: ", 1) + f"\nruntime: {runtime}\n")
    ground.vgpu("config", "apply")
    runtime.rename(runtime.with_name("away"))
    install = partial(runtime.with_name("away").rename, runtime)
    seeded("VGPU-HOST-004", ground.start, f"{runtime} … install it", install)


@pytest.mark.seeds("VGPU-HOST-006")
def test_a_policy_that_others_can_write(ground: Ground) -> None:
    policy = (ground.vgpu.prefix / "etc/policy.json").resolve()
    policy.chmod(0o666)
    remedy = f"chown root {policy} && chmod 644 {policy}"
    seeded("VGPU-HOST-006", ground.start, remedy, partial(subprocess.run, ["sh", "-c", remedy], check=True))


@pytest.mark.seeds("VGPU-HOST-010")
def test_cordons_that_cannot_be_read(ground: Ground) -> None:
    standing = ground.vgpu.log / "standing.json"
    ground.vgpu("cordon", "0")
    standing.write_text("{")
    seeded("VGPU-HOST-010", ground.start, f"mend or remove {standing}", standing.unlink)


@pytest.mark.seeds("VGPU-IMG-002")
def test_an_image_whose_folder_for_us_leads_out(ground: Ground) -> None:
    tree = ground.folder / "tree"
    shutil.copytree(ground.tree, tree, symlinks=True)
    link = tree / "usr/lib/vgpu"
    link.symlink_to("/proc/1/root/tmp")
    seeded("VGPU-IMG-002", partial(ground.start, SLICE, tree=tree), "/usr/lib/vgpu", link.unlink)


@pytest.mark.seeds("VGPU-IMG-003")
def test_a_volume_over_a_folder_that_the_slice_needs(ground: Ground) -> None:
    volume = ground.folder / "volume"
    volume.mkdir()
    mount = {"destination": "/usr/lib/vgpu", "type": "bind", "source": str(volume), "options": ["rbind", "rw"]}
    covered = partial(ground.start, SLICE, mounts=[mount])
    seeded("VGPU-IMG-003", covered, "/usr/lib/vgpu … mount", nothing, again=ground.start)


@pytest.mark.seeds("VGPU-IMG-004")
def test_a_container_that_ends_while_it_is_set_up(ground: Ground) -> None:
    """The hook is called as the runtime would, for a process that has ended meanwhile."""
    hold = ground.folder / "runtime"
    hold.write_text(f"#!/bin/sh\ntouch {ground.folder}/reached\nexec sleep 300\n")
    hold.chmod(0o755)
    own = Ground(installed.install(ground.folder, hold), ground.tree, ground.folder)
    box = bundle.make(own.vgpu.runtime, ground.folder / "b", ground.tree, ["true"], annotations=SLICE)
    with box.spawn_create() as create:
        while not (ground.folder / "reached").exists():
            assert create.poll() is None
        ended = subprocess.Popen(["true"])
        ended.wait()
        state = {"id": box.id, "pid": ended.pid, "bundle": str(box.folder), "status": "creating"}
        script, policy = own.vgpu.prefix / "lib/vgpu/python/vgpu_hook.py", own.vgpu.prefix / "etc/policy.json"
        hook = ("/usr/bin/python3", "-I", "-S", "-E", str(script), "prestart", "--policy", str(policy))
        call = partial(program, *hook, stdin=json.dumps(state))
        seeded("VGPU-IMG-004", call, "start it again", create.kill, again=ground.start)


@pytest.mark.seeds("VGPU-BUG-001")
def test_an_installation_that_was_damaged(ground: Ground) -> None:
    """Its files are what the remedy's report shows first; installing again mends them."""
    own = installed.install(ground.folder, bundle.low_level("runc", ground.folder))
    damage(own)
    place = Ground(own, ground.tree, ground.folder)
    with bundle.container(own.runtime, ground.folder / "b", ground.tree, ["true"], annotations=SLICE) as box:
        assert box.create().code == 1
    (kept,) = own.failures()
    assert (kept["code"], kept["id"]) == ("VGPU-BUG-001", box.id)
    assert "ZeroDivisionError" in kept["message"] and "vgpu doctor bundle" in kept["remedy"]
    shutil.rmtree(own.state / "failures")
    installed.install(ground.folder, bundle.low_level("runc", ground.folder))
    assert place.start().code == ""


def damage(vgpu: Vgpu) -> None:
    folder = vgpu.prefix / "lib/vgpu/python"
    (folder / "shim.pack").unlink()
    for compiled in (folder / "oci_hook/__pycache__").glob("placement.*"):
        compiled.unlink()
    source = folder / "oci_hook/placement.py"
    text = source.read_text()
    assert "rooms = rooms_for(" in text
    source.write_text(text.replace("rooms = rooms_for(", "rooms = 1 / 0, rooms_for("))


@pytest.mark.seeds("VGPU-INST-001")
def test_a_part_that_was_not_built(ground: Ground) -> None:
    build = ground.folder / "build"
    shutil.copytree(ROOT / "build", build, ignore=lambda folder, names: [
        name for name in names if folder == str(ROOT / "build") and name not in ("launcher", "python", "sim", "wrapper")
    ])  # fmt: skip
    wrapper = build / "wrapper"
    wrapper.rename(ground.folder / "not built")
    vgpu = Vgpu(ground.folder / "p", ground.folder / "s", ground.folder / "l")
    command = installed.install_command(vgpu, bundle.low_level("runc", ground.folder), 1, "80GiB")
    install = partial(program, sys.executable, *command[1:], "--build", str(build))
    seeded("VGPU-INST-001", install, "wrapper … make build", partial((ground.folder / "not built").rename, wrapper))
    assert json.loads((vgpu.prefix / "etc/policy.json").read_text())["simulate_gpus"] == 1


def compiled(ground: Ground, compiler: str) -> Told:
    (ground.folder / "x.c").write_text("int main(void) { return 0; }\n")
    try:
        Toolchain(compiler, "address").program([ground.folder / "x.c"], ground.folder / "x")
    except VgpuError as error:
        return told(error.exit_code, error.line())
    return told(0, "")


@pytest.mark.seeds("VGPU-HOST-008")
def test_a_build_that_the_compiler_cannot_make(ground: Ground) -> None:
    fault, again = partial(compiled, ground, "zig"), partial(compiled, ground, "gcc")
    seeded("VGPU-HOST-008", fault, "--sanitize address … --cc gcc", nothing, again)
