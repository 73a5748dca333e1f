"""What is kept of a start that is refused before the shim has a say, or without a policy that says where to keep it."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from start_path import ID, Installed, install

from oci_hook import audit, ledger, no_policy
from oci_hook.records import Policy

LABELS = {"vgpu.memory": "8GiB"}


@pytest.fixture
def vgpu(tmp_path: Path) -> Installed:
    return install(tmp_path)


def conf(vgpu: Installed) -> Path:
    return vgpu.base / "prefix/etc/launcher.conf"


def kept(vgpu: Installed, name: str = ID) -> dict[str, Any]:
    path = vgpu.state / f"failures/{name}.json"
    status = path.lstat()
    assert (stat.S_ISREG(status.st_mode), stat.S_IMODE(status.st_mode), status.st_uid) == (True, 0o644, os.geteuid())
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def no_interpreter(vgpu: Installed) -> None:
    conf(vgpu).write_text(conf(vgpu).read_text().replace("/usr/bin/python3", "/no/python"))


def no_shim(vgpu: Installed) -> None:
    (vgpu.base / "prefix/lib/vgpu/python/vgpu_shim.py").unlink()


def killed_shim(vgpu: Installed) -> None:
    (vgpu.base / "prefix/lib/vgpu/python/vgpu_shim.py").write_text("import os\nos.kill(os.getpid(), 9)\n")


def open_shim(vgpu: Installed) -> None:
    (vgpu.base / "prefix/lib/vgpu/python/vgpu_shim.py").chmod(0o666)


def no_policy_named(vgpu: Installed) -> None:
    lines = conf(vgpu).read_text().splitlines()
    conf(vgpu).write_text("\n".join(line for line in lines if not line.startswith("policy=")))


def loop(vgpu: Installed) -> None:
    conf(vgpu).write_text(conf(vgpu).read_text().replace(str(vgpu.runc), str(vgpu.launcher)))


@pytest.mark.parametrize(
    ("break_it", "code"),
    [
        (no_interpreter, "VGPU-HOST-004"),
        (no_shim, "VGPU-HOST-004"),
        (killed_shim, "VGPU-HOST-004"),
        (open_shim, "VGPU-HOST-006"),
        (no_policy_named, "VGPU-HOST-001"),
        (loop, "VGPU-HOST-004"),
    ],
)
def test_what_the_launcher_itself_refuses_is_kept_word_for_word(vgpu: Installed, break_it: Any, code: str) -> None:
    vgpu.write_config(labels=LABELS)
    break_it(vgpu)
    done = vgpu.create()
    assert done.returncode == 5
    found = kept(vgpu)
    assert (found["schema"], found["code"], found["id"], found["part"]) == (1, code, ID, "launcher")
    assert found["bundle"] == str(vgpu.bundle)
    assert done.stderr == f"vgpu: {code}: {found['message']}; to mend it: {found['remedy']}\n"
    assert abs(found["time_ns"] - time.time_ns()) < 60e9
    assert os.listdir(vgpu.state / "failures") == [f"{ID}.json"]  # and nothing half-written


def test_a_runtime_that_is_gone_is_kept_of_a_container_that_asks_for_nothing(vgpu: Installed) -> None:
    vgpu.write_config()
    vgpu.runc.unlink()
    assert vgpu.create().returncode == 5
    assert str(vgpu.runc) in kept(vgpu)["message"]


def test_what_the_engine_asks_afterwards_does_not_replace_the_reason(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    no_interpreter(vgpu)
    vgpu.create()
    before = kept(vgpu)
    vgpu.runc.unlink()
    assert vgpu.run("delete", "--force", ID).returncode == 5
    assert kept(vgpu) == before


def test_after_a_boot_the_folders_are_made(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    no_interpreter(vgpu)
    for path in sorted(vgpu.state.rglob("*"), reverse=True):
        path.unlink()
    vgpu.state.rmdir()
    vgpu.create()
    assert kept(vgpu)["code"] == "VGPU-HOST-004"


@pytest.mark.parametrize("container", ["../../escape", ".hidden", "a b", "x" * 201])
def test_an_id_that_is_no_name_is_kept_without_one(vgpu: Installed, container: str) -> None:
    vgpu.write_config(annotations=LABELS)
    no_interpreter(vgpu)
    vgpu.create(container=container)
    assert kept(vgpu, audit.UNNAMED)["code"] == "VGPU-HOST-004"
    assert os.listdir(vgpu.state / "failures") == [f"{audit.UNNAMED}.json"]


def test_hostile_words_are_text(vgpu: Installed) -> None:
    folder = vgpu.base / 'a"b\\c\nd\x1b'
    folder.mkdir()
    vgpu.write_config(annotations=LABELS)
    (vgpu.bundle / "config.json").rename(folder / "config.json")
    no_interpreter(vgpu)
    vgpu.run("create", "--bundle", str(folder), ID)
    assert kept(vgpu)["bundle"] == str(folder)
    vgpu.run("create", "--bundle", str(folder), "--config", "config.json", "--bundle", "x" * 9000, ID)
    assert kept(vgpu)["bundle"] == "x" * 4096


@pytest.mark.parametrize("trap", ["link", "open", "file"])
def test_a_folder_that_is_not_roots_alone_gets_nothing(vgpu: Installed, tmp_path: Path, trap: str) -> None:
    folder, elsewhere = vgpu.state / "failures", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if trap == "link":
        folder.symlink_to(elsewhere)
    elif trap == "open":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.touch()
    vgpu.write_config(labels=LABELS)
    no_interpreter(vgpu)
    assert vgpu.create().returncode == 5  # told, and not kept
    assert os.listdir(elsewhere) == []
    assert trap == "file" or os.listdir(folder) == []


def test_a_link_in_the_folder_is_replaced_and_not_followed(vgpu: Installed, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (vgpu.state / "failures").mkdir()
    (vgpu.state / f"failures/{ID}.json").symlink_to(victim)
    vgpu.write_config(labels=LABELS)
    no_interpreter(vgpu)
    vgpu.create()
    assert kept(vgpu)["code"] == "VGPU-HOST-004" and victim.read_text() == "mine"


def test_the_newest_hundred_stay(vgpu: Installed) -> None:
    folder = vgpu.state / "failures"
    folder.mkdir()
    for number in range(audit.KEPT_FAILURES + 1):
        path = folder / f"c{number}.json"
        path.touch()
        os.utime(path, (number, number))
    vgpu.write_config(labels=LABELS)
    no_interpreter(vgpu)
    vgpu.create()
    left = set(os.listdir(folder))
    assert len(left) == audit.KEPT_FAILURES and f"{ID}.json" in left
    assert not {"c0.json", "c1.json"} & left


@pytest.mark.parametrize("damage", ["missing", "open"])
def test_without_a_launcher_conf_the_default_folder_has_it(vgpu: Installed, needs_root: None, damage: str) -> None:
    vgpu.write_config(labels=LABELS)
    if damage == "missing":
        conf(vgpu).unlink()
    else:
        conf(vgpu).chmod(0o666)
    call = shlex.join([str(vgpu.launcher), "create", "--bundle", str(vgpu.bundle), ID])
    script = f"mount -t tmpfs tmpfs /run && mkdir /run/vgpu && ! {call} 2>/dev/null && cat /run/vgpu/failures/{ID}.json"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["code"] == ("VGPU-HOST-001" if damage == "missing" else "VGPU-HOST-006")
    assert not (vgpu.state / "failures").exists()


@pytest.mark.parametrize("damage", ["missing", "cut", "open"])
def test_a_start_without_a_policy_is_kept_with_its_name(vgpu: Installed, damage: str) -> None:
    vgpu.write_config(labels=LABELS)
    path = vgpu.base / "prefix/etc/policy.json"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_text(path.read_text()[:40])
    else:
        path.chmod(0o666)
    assert vgpu.create().returncode == 5
    found = kept(vgpu)
    assert found["code"] == ("VGPU-HOST-006" if damage == "open" else "VGPU-HOST-001")
    assert (found["part"], found["name"], found["image"]) == ("shim", "web", "cuda:12")
    (vgpu.bundle / "config.json").write_text('{"annotations": {"vgpu.memory": "8GiB"')
    assert vgpu.create().returncode == 5
    assert kept(vgpu)["code"] == "VGPU-OCI-001"


def test_a_hook_whose_interpreter_is_gone_is_kept(vgpu: Installed) -> None:
    folder = ledger.folder(str(vgpu.state), ID)
    os.makedirs(folder)
    command = [str(vgpu.launcher.with_name("vgpu-hook")), folder, "/no/python", "prestart"]
    done = subprocess.run(command, input="{}", capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 5
    found = kept(vgpu)
    assert (found["code"], found["part"]) == ("VGPU-HOST-004", "hook")
    assert done.stderr == f"vgpu: {found['code']}: {found['message']}; to mend it: {found['remedy']}\n"


def test_the_state_folder_of_a_file_that_others_can_write_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "launcher.conf"
    path.write_text("runtime=/a\nstate=/elsewhere\n")
    path.chmod(0o644)
    assert no_policy.state_dir(str(tmp_path / "policy.json")) == "/elsewhere"
    path.chmod(0o666)
    assert no_policy.state_dir(str(tmp_path / "policy.json")) == Policy.state_dir
    path.unlink()
    assert no_policy.state_dir(str(tmp_path / "policy.json")) == Policy.state_dir
