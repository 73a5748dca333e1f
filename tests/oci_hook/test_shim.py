"""A request becomes a folder, our hooks in config.json and runc; or one refusal that leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from start_path import GIB, ID, Installed, install, simulated_inventory

from oci_hook import ledger
from oci_hook.records import DeviceFile
from oci_hook.values import replace

LABELS = {"vgpu.memory": "8GiB", "vgpu.cores": "30"}


@pytest.fixture
def vgpu(tmp_path: Path) -> Installed:
    return install(tmp_path)


def refused(vgpu: Installed, code: str, exit_code: int, container: str = ID) -> str:
    """Create, and check all that a refusal promises. Returns the line."""
    before = (vgpu.bundle / "config.json").read_bytes()
    done = vgpu.create(container=container)
    assert done.returncode == exit_code, done.stderr
    line = done.stderr.removesuffix("\n")
    assert "\n" not in line
    assert line.startswith(f"vgpu: {code}: ")
    assert [entry["msg"] for entry in vgpu.log()] == [line]
    assert vgpu.called() is None
    assert (vgpu.bundle / "config.json").read_bytes() == before
    assert vgpu.containers() == []
    assert os.listdir(vgpu.bundle) == ["config.json"]
    return line


def test_labels_become_a_slice(vgpu: Installed) -> None:
    vgpu.write_config(labels={**LABELS, "maintainer": "x"})
    done = vgpu.create()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    words = vgpu.called()
    assert words is not None
    assert words[-6:] == ["create", "--bundle", str(vgpu.bundle), "--pid-file", "/x/create", ID]
    allocation = ledger.read(str(vgpu.state), ID)
    assert allocation is not None
    assert (allocation.name, allocation.image, allocation.state) == ("web", "cuda:12", "creating")
    part = allocation.placement.slices[0]
    assert (part.index, part.memory_bytes, part.cores_percent) == (0, 8 * GIB, 30)
    assert len(allocation.placement.candidates) == 2
    plan = ledger.read_plan(str(vgpu.state), ID)
    assert {mount.target for mount in plan.mounts} >= {"/usr/lib/vgpu", "libcuda.so.1", "libvgpu-driver.so"}
    assert vgpu.audit()[-1]["event"] == "allocate"
    assert vgpu.audit()[-1]["request"]["asks"][0]["memory_bytes"] == 8 * GIB


def test_config_json_gets_hooks_and_annotations_and_keeps_the_rest(vgpu: Installed) -> None:
    foreign = {"path": "/usr/bin/other", "args": ["other"]}
    before = json.loads(vgpu.write_config(labels={**LABELS, "x": "y"}, hooks={"prestart": [foreign]}))
    vgpu.create()
    after = vgpu.config()
    python = f"{vgpu.policy.prefix}/lib/vgpu/python"
    policy = f"{vgpu.policy.prefix}/etc/policy.json"
    waiting = [f"{vgpu.policy.prefix}/bin/vgpu-hook", f"{vgpu.policy.state_dir}/containers/{ID}"]
    ours = {}
    for stage, word, first in (("createRuntime", "prestart", waiting), ("poststop", "poststop", [])):
        hook = ["/usr/bin/python3", "-I", "-S", "-E", f"{python}/vgpu_hook.py", word, "--policy", policy]
        ours[stage] = {
            "path": (first or hook)[0],
            "args": first + hook,
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"],
            "timeout": 10,
        }
    assert after.pop("hooks") == {"prestart": [foreign]} | {stage: [hook] for stage, hook in ours.items()}
    annotations = after.pop("annotations")
    assert json.loads(annotations.pop("io.vgpu.edits")) == {"annotations": sorted(LABELS), "devices": []}
    assert annotations == LABELS
    before.pop("hooks")
    assert after == before
    assert list(after) == list(before)


def test_mode_and_owner_of_config_json_stay(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    path = vgpu.bundle / "config.json"
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 2345)
    before = path.stat()
    vgpu.create()
    after = path.stat()
    assert (before.st_mode, before.st_uid, before.st_gid) == (after.st_mode, after.st_uid, after.st_gid)
    assert before.st_ino != after.st_ino


def test_a_second_start_of_the_same_bundle_changes_nothing_more(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    vgpu.create()
    once = (vgpu.bundle / "config.json").read_bytes()
    assert vgpu.create().returncode == 0  # its creator is dead: docker restart
    assert (vgpu.bundle / "config.json").read_bytes() == once
    assert vgpu.containers() == [ID]


def test_labels_that_changed_win_over_the_annotations_of_an_earlier_start(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    vgpu.create()
    edited = (vgpu.bundle / "config.json").read_bytes()
    vgpu.write_config(labels={"vgpu.memory": "1GiB"})
    (vgpu.bundle / "config.json").write_bytes(edited)
    vgpu.create()
    assert vgpu.config()["annotations"]["vgpu.memory"] == "1GiB"
    assert "vgpu.cores" not in vgpu.config()["annotations"]


def test_real_gpus_get_device_nodes_and_rules_once(vgpu: Installed) -> None:
    nodes = (
        DeviceFile("/dev/null", "/dev/nvidiactl", None, "node"),
        DeviceFile("/dev/zero", "/dev/nvidia0", 0, "node"),
        DeviceFile("/dev/full", "/dev/nvidia1", 1, "node"),
    )
    vgpu.set_inventory(replace(simulated_inventory(vgpu.policy), devices=nodes))
    vgpu.write_config(labels={**LABELS, "vgpu.devices": "1"})
    for _ in range(2):
        vgpu.create()
        linux = vgpu.config()["linux"]
        assert [(d["path"], d["major"], d["minor"]) for d in linux["devices"]] == [
            ("/dev/nvidiactl", 1, 3),
            ("/dev/nvidia1", 1, 7),
        ]
        rules = linux["resources"]["devices"]
        assert rules[0] == {"allow": False, "access": "rwm"}
        assert [(r["allow"], r["major"], r["minor"], r["access"]) for r in rules[1:]] == [
            (True, 1, 3, "rw"),
            (True, 1, 7, "rw"),
        ]


def test_a_device_node_that_is_gone_is_the_hosts_fault(vgpu: Installed) -> None:
    nodes = (DeviceFile("/dev/null/none", "/dev/nvidiactl", None, "node"),)
    vgpu.set_inventory(replace(simulated_inventory(vgpu.policy), devices=nodes))
    vgpu.write_config(labels=LABELS)
    refused(vgpu, "VGPU-HOST-002", 5)


BAD = [
    ({"vgpu.memory": "-1"}, "VGPU-REQ-001"),
    ({"vgpu.memory": "4"}, "VGPU-REQ-001"),
    ({"vgpu.memory": "4GB"}, "VGPU-REQ-001"),
    ({"vgpu.memory": "1e999"}, "VGPU-REQ-001"),
    ({"vgpu.memory": "８GiB"}, "VGPU-REQ-005"),
    ({"vgpu.memory": "8GiB\0"}, "VGPU-REQ-005"),
    ({"vgpu.memory": "9" * (1 << 20)}, "VGPU-REQ-005"),
    ({"vgpu.memory": '4096\n"}],"x":{"'}, "VGPU-REQ-005"),
    ({"vgpu.memory": "\ud800"}, "VGPU-REQ-005"),
    ({"vgpu.memroy": "8GiB"}, "VGPU-REQ-003"),
    ({"vgpu.cores": "30"}, "VGPU-REQ-004"),
]


@pytest.mark.parametrize(("labels", "code"), BAD)
def test_a_bad_label_is_one_line_and_leaves_no_trace(vgpu: Installed, labels: dict[str, str], code: str) -> None:
    vgpu.write_config(labels=labels)
    line = refused(vgpu, code, 3)
    assert next(iter(labels)) in line
    failure = json.loads((vgpu.state / f"failures/{ID}.json").read_text())
    assert failure["code"] == code
    assert failure["remedy"] in line
    assert [entry["event"] for entry in vgpu.audit()] == ["deny"]


def test_no_room_says_why_of_each_gpu(vgpu: Installed) -> None:
    vgpu.write_config(labels={"vgpu.memory": "100GiB"})
    line = refused(vgpu, "VGPU-PLC-001", 4)
    assert "2/2 CardInsufficientMemory" in line
    assert "GPU 0: CardInsufficientMemory (asked 102400 MiB, the GPU has 81920 MiB)" in line
    denial = vgpu.audit()[-1]
    assert [item["reject"] for item in denial["placement"]["candidates"]] == ["CardInsufficientMemory"] * 2


def test_the_admins_cap_holds_for_the_images_label_and_variable(vgpu: Installed) -> None:
    vgpu.set_policy(max_memory_bytes=4 * GIB)
    for asking in ({"labels": {"vgpu.memory": "999GiB"}}, {"env": ["VGPU_MEMORY=999GiB"]}):
        vgpu.write_config(**asking)  # type: ignore[arg-type]
        assert vgpu.create().returncode == 0
        allocation = ledger.read(str(vgpu.state), ID)
        assert allocation is not None
        assert allocation.placement.slices[0].memory_bytes == 4 * GIB
        assert allocation.clamped == ("memory: 999 GiB asked, 4 GiB allowed",)
        ledger.release(str(vgpu.state), ID)
        (vgpu.base / f"docker/containers/{ID}/config.v2.json").unlink(missing_ok=True)


def test_a_source_that_is_not_allowed_is_no_request(vgpu: Installed) -> None:
    vgpu.set_policy(sources=("annotation",))
    before = vgpu.write_config(labels=LABELS, env=["VGPU_MEMORY=nonsense"])
    assert vgpu.create().returncode == 0
    assert (vgpu.bundle / "config.json").read_bytes() == before
    assert vgpu.containers() == []


def test_what_only_looked_like_a_request_is_passed_on_untouched(vgpu: Installed) -> None:
    before = vgpu.write_config(labels={"com.vgpu.team": "x"}, env=["MY_VGPU_X=1"])
    assert vgpu.create().returncode == 0
    assert vgpu.called() is not None
    assert (vgpu.bundle / "config.json").read_bytes() == before


CONFIGS: list[tuple[bytes, str]] = [
    (b"", "VGPU-OCI-001"),
    (b'"vgpu."', "VGPU-OCI-001"),
    (b'\xef\xbb\xbf{"annotations":{"vgpu.memory":"8GiB"}}', "VGPU-OCI-001"),
    (b'{"annotations":{"vgpu.memory":8}}', "VGPU-OCI-001"),
    (b'{"annotations":["vgpu.memory"]}', "VGPU-OCI-001"),
    (b'{"annotations":{"vgpu.memory":"8GiB"},"hooks":[]}', "VGPU-OCI-001"),
    (b'{"annotations":{"vgpu.memory":"8GiB"},"hooks":[1]}', "VGPU-OCI-001"),
    (b'{"annotations":{"vgpu.memory":"8GiB"},"mounts":{"a":1}}', "VGPU-OCI-001"),
    (b'{"annotations":{"vgpu.memory":"8GiB","io.vgpu.edits":"{}"}}', "VGPU-OCI-001"),
    (b'{"annotations":{"vgpu.memory":"8GiB"},"process":{"env":[1]}}', "VGPU-OCI-001"),
    (b'{"annotations":{"vgpu.memory":"8GiB"}', "VGPU-OCI-001"),
    (b"vgpu." + b"[" * 100_000, "VGPU-OCI-001"),
    (b'{"annotations":{"vgpu.memory":"8GiB"},"x":1e999}', "VGPU-OCI-001"),
    (b'{"annotations":{"vgpu.memory":"8GiB"},"x":"\xff"}', "VGPU-OCI-001"),
    (b'{"annotations":{"vgpu.memory":"8GiB"}}', ""),  # no process, no linux, no mounts
    (b'{"annotations":{"vgpu.memory":"8GiB"},"process":null,"linux":null,"hooks":null}', ""),
]


@pytest.mark.parametrize(("data", "code"), CONFIGS)
def test_a_config_json_of_any_shape(vgpu: Installed, data: bytes, code: str) -> None:
    vgpu.bundle.mkdir()
    (vgpu.bundle / "config.json").write_bytes(data)
    if code:
        refused(vgpu, code, 5)
    else:
        assert vgpu.create().returncode == 0
        assert vgpu.containers() == [ID]


def test_config_json_must_be_a_file_of_its_own(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    path = vgpu.bundle / "config.json"
    os.rename(path, vgpu.base / "elsewhere.json")
    path.symlink_to(vgpu.base / "elsewhere.json")
    refused(vgpu, "VGPU-OCI-001", 5)
    path.unlink()
    path.touch()
    os.truncate(path, (64 << 20) + 1)  # sparse
    done = vgpu.create()
    assert (done.returncode, "longer than 64 MiB" in done.stderr) == (5, True)
    path.unlink()
    assert vgpu.create().returncode == 5
    assert "no such file or directory" not in vgpu.log()[0]["msg"].lower()


@pytest.mark.parametrize("container", ["../../etc", "..", ".", ".hidden", "a/b", "a b", "ä", "a" * 201, "a\nb"])
def test_an_id_that_no_engine_gives(vgpu: Installed, container: str) -> None:
    vgpu.write_config(annotations=LABELS)
    line = refused(vgpu, "VGPU-OCI-003", 5, container=container)
    assert repr(container)[1:40] in line
    assert os.listdir(vgpu.state / "failures") == [".unnamed.json"]  # never a file of that name


def test_dockers_file_must_be_dockers(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    path = vgpu.base / f"docker/containers/{ID}/config.v2.json"
    path.chmod(0o666)
    refused(vgpu, "VGPU-HOST-006", 5)
    path.write_text('{"Config": {"Labels": {"vgpu.memory": 5}}}')
    path.chmod(0o600)
    refused(vgpu, "VGPU-OCI-001", 5)
    path.unlink()
    path.symlink_to("/etc/passwd")
    vgpu.write_config(annotations=LABELS)
    refused(vgpu, "VGPU-OCI-001", 5)


def test_a_living_container_of_the_same_id_keeps_its_slice(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    call = [str(vgpu.launcher), "create", "--bundle", str(vgpu.bundle), ID]
    with subprocess.Popen(call, env={**os.environ, "FAKE_RUNC_SLEEP": "30"}) as first:
        until = time.monotonic() + 10
        while vgpu.containers() != [ID] and time.monotonic() < until:
            time.sleep(0.01)
        done = vgpu.create()
        first.kill()
    assert (done.returncode, "VGPU-OCI-004" in done.stderr) == (5, True)
    assert vgpu.containers() == [ID]
    assert vgpu.create().returncode == 0  # dead now, and cleared away
    assert [entry["event"] for entry in vgpu.audit()] == ["allocate", "deny", "reap", "allocate"]


def test_a_runtime_that_cannot_be_started_is_told_before_anything_is_given_out(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    vgpu.runc.chmod(0o644)
    done = vgpu.create()
    assert done.returncode == 5
    assert done.stderr.startswith("vgpu: VGPU-HOST-004: ")
    assert vgpu.containers() == []
    assert [entry["event"] for entry in vgpu.audit()] == ["deny"]


def test_a_stale_inventory_is_made_anew_once(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    fresh = (vgpu.state / "inventory.json").read_text()
    vgpu.set_inventory(replace(simulated_inventory(vgpu.policy), key="old"))
    assert "vgpu inventory --refresh" in refused(vgpu, "VGPU-HOST-002", 5)
    command = vgpu.base / "vgpu"  # the operator's command, as far as the shim uses it
    (vgpu.base / "fresh.json").write_text(fresh)
    command.write_text(
        f'#!/bin/sh\n[ "$*" = "inventory --refresh" ] && cp {vgpu.base}/fresh.json {vgpu.state}/inventory.json\n'
    )
    vgpu.set_policy(vgpu_command=str(command))
    refused(vgpu, "VGPU-HOST-002", 5)  # it cannot be executed
    command.chmod(0o755)
    assert vgpu.create().returncode == 0
    (vgpu.state / "inventory.json").unlink()
    ledger.release(str(vgpu.state), ID)
    assert vgpu.create().returncode == 0


def test_a_missing_policy_or_state_folder_is_the_hosts_fault(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    (vgpu.state / "containers").write_text("")
    done = vgpu.create()
    assert (done.returncode, "VGPU-HOST-006" in done.stderr) == (5, True)
    (vgpu.state / "containers").unlink()
    (vgpu.base / "prefix/etc/policy.json").unlink()
    refused(vgpu, "VGPU-HOST-001", 5)


def test_an_entry_that_cannot_be_read_stops_the_next_start(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    broken = vgpu.state / "containers/other"
    broken.mkdir(parents=True)
    done = vgpu.create()
    assert done.returncode == 5
    assert done.stderr.startswith("vgpu: VGPU-HOST-003: ")
    assert str(broken) in done.stderr
    assert vgpu.containers() == ["other"]


def test_the_log_in_text_form_and_none_at_all(vgpu: Installed) -> None:
    vgpu.write_config(labels={"vgpu.memory": '4"'})
    log = vgpu.base / "plain.log"
    vgpu.run("--log", str(log), "create", "-b", str(vgpu.bundle), ID)
    assert log.read_text().startswith('level=error msg="vgpu: VGPU-REQ-001: vgpu.memory=')
    done = vgpu.run("create", "-b", str(vgpu.bundle), ID)
    assert done.returncode == 3
    assert vgpu.run("--log", "/nowhere/x", "create", "-b", str(vgpu.bundle), ID).returncode == 3


def test_a_bug_is_told_to_the_engine_and_shows_its_traceback(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    source = Path(vgpu.policy.prefix) / "lib/vgpu/python/oci_hook/placement.py"
    source.write_text(source.read_text().replace("rooms = rooms_for(", "rooms = 1 / 0, rooms_for("))
    done = vgpu.create()
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "Traceback" in done.stderr
    assert "a bug: ZeroDivisionError" in vgpu.log()[0]["msg"]
    assert vgpu.called() is None
    assert vgpu.containers() == []


def test_python_variables_and_files_of_others_are_not_used(vgpu: Installed, tmp_path: Path) -> None:
    vgpu.write_config(labels=LABELS)
    for name in ("os", "fcntl", "sitecustomize", "json", "oci_hook"):
        (vgpu.bundle / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    env = {"PYTHONPATH": str(vgpu.bundle), "PYTHONSTARTUP": str(vgpu.bundle / "os.py"), "PYTHONHOME": str(vgpu.bundle)}
    assert vgpu.create(env={**os.environ, **env}, cwd=vgpu.bundle).returncode == 0
    assert not (tmp_path / "ran").exists()


def test_killed_at_random_moments_the_next_start_finds_the_ledger_right(vgpu: Installed) -> None:
    """Kills spread over the 30 ms or so that a start takes; the ledger's own storm is in test_ledger.py."""
    original = vgpu.write_config(labels={"vgpu.memory": "40GiB"})
    call: list[Any] = [str(vgpu.launcher), "create", "--bundle", str(vgpu.bundle)]
    for round_number in range(60):
        (vgpu.bundle / "config.json").write_bytes(original)
        with subprocess.Popen([*call, ID]) as start:
            time.sleep(0.0008 * round_number)
            start.send_signal(signal.SIGKILL)
    (vgpu.bundle / "config.json").write_bytes(original)
    assert vgpu.create().returncode == 0
    assert vgpu.containers() == [ID]
    assert sorted(os.listdir(vgpu.bundle)) == ["config.json"]
