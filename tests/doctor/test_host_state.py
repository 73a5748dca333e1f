"""Policy, launcher and ledger: each fault is made in a real installation, named, and mended by its remedy."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prepared import Installation, fault, look, mended

from oci_hook import ledger, policy, quota_file
from oci_hook.records import Allocation, Ask, Placement, Plan, Policy, Process, Request, Slice
from tests.harness import bundle, installed
from vgpu.doctor.host import state

GIB = 1 << 30


def settings(here: Installation) -> Policy:
    return policy.load(str(here.vgpu.prefix / "etc/policy.json"))


def dead() -> int:
    """The pid of a process that has ended."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    return ended.pid


def gpu_uuid(here: Installation, index: int = 0) -> str:
    from oci_hook import inventory

    return inventory.load(settings(here)).gpus[index].uuid


@contextmanager
def slice_of(
    here: Installation, name: str = "job", uuid: str = "", memory: int = 8 * GIB, cores: int = 0, owner: int = 0
) -> Iterator[Path]:
    """An entry in the ledger, of this process or of `owner`; its folder. Gone afterwards."""
    part = Slice(0, uuid or gpu_uuid(here), memory, cores)
    container = (name * 64)[:64]
    one = Allocation(
        id=container, name=name, image="image:1", state="creating", created_ns=1,
        creator=ledger.process(owner or os.getpid()) or Process(owner, 1), init=None,
        request=Request(asks=(Ask(memory_bytes=memory),)), placement=Placement("binpack", (part,), ()), clamped=(),
        simulated=True, driver_version="1",
    )  # fmt: skip
    quota = quota_file.quota(container, (part,), burst="hard", priority="normal")
    with ledger.Ledger(str(here.vgpu.state)) as book:
        book.add(one, Plan((), ()), quota, quota_file.usage_header(), quota_file.USAGE_BYTES)
    try:
        yield Path(ledger.folder(str(here.vgpu.state), container))
    finally:
        ledger.release(str(here.vgpu.state), container)


def test_a_good_installation_has_nothing_to_mend(here: Installation) -> None:
    with slice_of(here):
        for name in ("policy", "launcher", "folders", "entries", "owners", "room", "inventory", "files", "closure"):
            assert look(here.host, name).state == "ok", look(here.host, name)
        assert look(here.host, "entries").seen == ("1 containers with a slice",)


@pytest.mark.seeds("VGPU-HOST-001")
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_policy_that_cannot_be_used(here: Installation, damage: str) -> None:
    path = (here.vgpu.prefix / "etc/policy.json").resolve()
    with here.kept(path):
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:100])
        fault(here.host, "policy", "VGPU-HOST-001", path.name)
        assert "owners" in look(here.host, "without policy").unseen[0].subject
        here.follow("vgpu config apply")
        mended(here.host, "policy", "VGPU-HOST-001")


@pytest.mark.seeds("VGPU-HOST-006")
def test_a_policy_that_others_can_write(here: Installation) -> None:
    path = (here.vgpu.prefix / "etc/policy.json").resolve()
    path.chmod(0o666)
    here.follow(fault(here.host, "policy", "VGPU-HOST-006", str(path)).remedy.strip("`"))
    mended(here.host, "policy", "VGPU-HOST-006")


@pytest.mark.seeds("VGPU-CFG-005")
def test_a_policy_that_was_edited_and_not_applied(here: Installation) -> None:
    config = Path(here.config)
    with here.kept(config):
        config.write_text(config.read_text() + "max: {memory: 16GiB}\n")
        one = fault(here.host, "policy", "VGPU-CFG-005", str(config), "max_memory_bytes")
        here.follow(one.remedy)
        mended(here.host, "policy", "VGPU-CFG-005")
    here.follow("vgpu config apply")


@pytest.mark.seeds("VGPU-CFG-003")
def test_a_setting_that_does_not_exist(here: Installation) -> None:
    config = Path(here.config)
    with here.kept(config):
        config.write_text(config.read_text() + "placment: spread\n")
        assert "placement" in fault(here.host, "policy", "VGPU-CFG-003", "'placment'").remedy + "placement"
        config.write_text(config.read_text().replace("placment", "placement"))
        here.follow("vgpu config apply")
        mended(here.host, "policy", "VGPU-CFG-003")
    here.follow("vgpu config apply")


@pytest.mark.seeds("VGPU-HOST-004")
def test_a_runtime_that_was_removed(here: Installation, tmp_path: Path) -> None:
    config, runtime = Path(here.config), tmp_path / "runc"
    with here.kept(config):
        shutil.copy2(bundle.low_level("runc", tmp_path), runtime)
        config.write_text(config.read_text().replace(settings(here).runtime, str(runtime)))
        here.follow("vgpu config apply")
        away = runtime.rename(tmp_path / "away")
        one = fault(here.host, "launcher", "VGPU-HOST-004", str(runtime), "no program")
        assert "vgpu config apply" in one.remedy
        away.rename(runtime)  # installed again
        mended(here.host, "launcher", "VGPU-HOST-004")
    here.follow("vgpu config apply")


@pytest.mark.seeds("VGPU-HOST-001")
def test_a_launcher_conf_without_its_paths(here: Installation) -> None:
    path = (here.vgpu.prefix / "etc/launcher.conf").resolve()
    with here.kept(path):
        path.write_text("runtime=runc\n")
        fault(here.host, "launcher", "VGPU-HOST-001", path.name, "runtime, python, shim, policy")
    mended(here.host, "launcher", "VGPU-HOST-001")  # as it was installed


def test_a_launcher_conf_that_keeps_refused_starts_elsewhere(here: Installation) -> None:
    path = (here.vgpu.prefix / "etc/launcher.conf").resolve()
    with here.kept(path):
        path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines() if not line.startswith("state=")))
        one = fault(here.host, "launcher", "VGPU-CFG-005", path.name, "state=", str(here.vgpu.state))
        here.follow(one.remedy)
        mended(here.host, "launcher", "VGPU-CFG-005")


def test_without_a_policy_a_simulated_host_is_not_told_to_install_a_driver(here: Installation) -> None:
    path = (here.vgpu.prefix / "etc/policy.json").resolve()
    with here.kept(path):
        path.unlink()
        fault(here.host, "policy", "VGPU-HOST-001", str(path))
        mended(here.host, "versions", "VGPU-DRV-001")
    mended(here.host, "policy", "VGPU-HOST-001")


@pytest.mark.seeds("VGPU-HOST-006")
def test_a_program_of_ours_that_others_can_replace(here: Installation) -> None:
    folder = (here.vgpu.prefix / "bin").resolve()
    folder.chmod(0o777)
    one = fault(here.host, "launcher", "VGPU-HOST-006", str(folder), "0777")
    here.follow(one.remedy)
    mended(here.host, "launcher", "VGPU-HOST-006")


@pytest.mark.seeds("VGPU-HOST-002")
@pytest.mark.parametrize("damage", ["missing", "cut", "stale"])
def test_an_inventory_that_cannot_be_used(here: Installation, damage: str) -> None:
    path = here.vgpu.state / "inventory.json"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:50])
    else:
        os.utime(here.vgpu.prefix / "lib/vgpu/wrapper/libcuda.so.1")
    one = fault(here.host, "inventory", "VGPU-HOST-002", str(path))
    here.follow(one.remedy)
    mended(here.host, "inventory", "VGPU-HOST-002")


@pytest.mark.seeds("VGPU-HOST-006")
@pytest.mark.parametrize("which", ["state", "container"])
def test_a_state_folder_that_others_can_enter(here: Installation, which: str) -> None:
    with slice_of(here) as folder:
        path = folder if which == "container" else here.vgpu.state / "containers"
        path.chmod(0o777)
        one = fault(here.host, "folders", "VGPU-HOST-006", str(path), "0777")
        here.follow(one.remedy)
        mended(here.host, "folders", "VGPU-HOST-006")
        assert path.stat().st_mode & 0o777 == (0o700 if which == "container" else 0o755)


@pytest.mark.seeds("VGPU-HOST-003")
def test_an_entry_that_cannot_be_read(here: Installation) -> None:
    with slice_of(here) as folder:
        (folder / "allocation.json").write_text("{")
        one = fault(here.host, "entries", "VGPU-HOST-003", str(folder))
        assert str(folder) in one.remedy
        shutil.rmtree(folder)  # as it says, if no such container runs
        mended(here.host, "entries", "VGPU-HOST-003")


@pytest.mark.seeds("VGPU-HOST-009")
@pytest.mark.parametrize("name", ["quota", "usage"])
def test_a_quota_or_usage_file_of_another_version(here: Installation, name: str) -> None:
    with slice_of(here) as folder:
        data = bytearray((folder / "box" / name).read_bytes())
        data[4:8] = (99).to_bytes(4, "little")
        (folder / "box" / name).write_bytes(data)
        one = fault(here.host, "entries", "VGPU-HOST-009", str(folder), "version 99")
        assert "start the container again" in one.remedy
    with slice_of(here):  # that start
        mended(here.host, "entries", "VGPU-HOST-009")


@pytest.mark.seeds("VGPU-STA-001")
def test_an_entry_whose_owner_is_gone(here: Installation) -> None:
    pid = dead()
    with slice_of(here, owner=pid) as folder:
        one = fault(here.host, "owners", "VGPU-STA-001", str(folder), f"process {pid}", "8192 MiB of GPU 0")
        here.vgpu("doctor", "--fix", "--offline", check=False)
        assert one.remedy == "vgpu doctor --fix"
        mended(here.host, "owners", "VGPU-STA-001")
        assert not folder.exists()
    assert here.vgpu.audit()[-1]["event"] == "reap"


@pytest.mark.seeds("VGPU-STA-001")
def test_half_of_an_entry(here: Installation) -> None:
    half = here.vgpu.state / "containers/.new-abc-1"
    (half / "box").mkdir(parents=True)
    mended(here.host, "owners", "VGPU-STA-001")  # a start may be under way
    os.utime(half, (1, 1))
    one = fault(here.host, "owners", "VGPU-STA-001", str(half))
    here.follow(f"{one.remedy} --offline || [ $? -le 2 ]")
    mended(here.host, "owners", "VGPU-STA-001")
    assert not half.exists()


@pytest.mark.seeds("VGPU-STA-002")
@pytest.mark.parametrize(("memory", "cores"), [(50 * GIB, 0), (1 * GIB, 60)])
def test_a_gpu_of_which_too_much_is_given_out(here: Installation, memory: int, cores: int) -> None:
    with slice_of(here, "a", memory=memory, cores=cores):
        with slice_of(here, "b", memory=memory, cores=cores):
            one = fault(here.host, "room", "VGPU-STA-002", "GPU 0", f"{memory >> 19} MiB of", f"{2 * cores} %")
            assert one.severity == "warning"
        mended(here.host, "room", "VGPU-STA-002")  # one of the containers that `vgpu ps` shows was ended


@pytest.mark.seeds("VGPU-STA-005")
def test_a_slice_of_a_gpu_that_is_not_there(here: Installation) -> None:
    with slice_of(here, "job", uuid="GPU-pulled-out"):
        fault(here.host, "room", "VGPU-STA-005", "GPU-pulled-out", "8192 MiB")
    with slice_of(here, "job"):  # started again, on a GPU that is there
        mended(here.host, "room", "VGPU-STA-005")


@pytest.mark.e2e
@pytest.mark.seeds("VGPU-STA-003", "VGPU-OCI-004")
def test_a_first_process_that_nobody_knows_of(
    vgpu: installed.Vgpu, tmp_path: Path, c_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a runtime that was killed before it wrote its state: the process waits, and holds the slice."""
    here = Installation(vgpu)
    ask = {"vgpu.memory": "8GiB"}
    with bundle.container(vgpu.runtime, tmp_path, c_tree, ["true"], annotations=ask) as box:
        assert box.create().code == 0
        shutil.rmtree(tmp_path / ".runtime-state")
        mended(here.host, "owners", "VGPU-STA-003")  # it may still be started
        monkeypatch.setattr(state, "WAITING_S", 0.0)
        one = fault(here.host, "owners", "VGPU-STA-003", box.id, f"process {box.pid}", "8192 MiB of GPU 0")
        again = bundle.Container(vgpu.runtime, box.folder, box.id).create()
        assert "VGPU-OCI-004" in again.refusal
        here.follow(f"({one.remedy}) || [ $? -le 2 ]")
        mended(here.host, "owners", "VGPU-STA-003")
        assert vgpu.containers() == []
        os.waitpid(box.pid, 0)
