"""vgpu doctor --last-failure over what refused starts leave: records, dead starts, and the audit log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from oci_hook import audit, ledger
from oci_hook.errors import ImageError, RequestError, VgpuError
from oci_hook.records import Policy
from tests.vgpu.test_commands import give_out, in_force, prefix
from vgpu.doctor import failures

__all__ = ["prefix"]  # the fixture
ROOT = Path(__file__).parents[2]
BAD_SIZE = RequestError("VGPU-REQ-001", "vgpu.memory='4': not a size", remedy="write vgpu.memory=4GiB")
NO_LIBRARY = ImageError("VGPU-DEP-001", "libm.so.6 is not in the image", remedy="install it")
MOBY = "/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby/"


def keep(policy: Policy, container: str, error: VgpuError = BAD_SIZE, **facts: str) -> None:
    audit.failure(policy.state_dir, container, error, **facts)


def doctor(prefix: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vgpu", "doctor", "--last-failure", *arguments]
    env = {**os.environ, "VGPU_CONFIG": f"{prefix}/etc/config.yaml"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=env, check=False)


def test_no_refused_start_is_well(prefix: Path) -> None:
    done = doctor(prefix)
    assert (done.returncode, done.stderr) == (0, "")
    assert failures.last(in_force(prefix), None) is None


def test_the_last_one_with_all_that_is_known(prefix: Path) -> None:
    policy = in_force(prefix)
    keep(policy, "a" * 64)
    keep(policy, "b" * 64, NO_LIBRARY, name="web", image="cuda:12", part="hook", bundle=MOBY + "b" * 64)
    done = doctor(prefix)
    assert done.returncode == 2
    for words in ("VGPU-DEP-001", "libm.so.6 is not in the image", "install it", "web", "cuda:12", "Docker", "UTC",
                  "docs/troubleshooting.md#vgpu-dep-001"):  # fmt: skip
        assert words in done.stdout, words
    assert all(len(line) < 80 for line in done.stdout.splitlines())
    found = json.loads(doctor(prefix, "--json").stdout)
    jsonschema.validate(found, json.loads((ROOT / "docs/doctor.schema.json").read_text()))
    assert (found["kind"], found["name"], found["facts"]["engine"]) == ("failure", "web", "Docker")
    assert found["facts"]["message"] == str(NO_LIBRARY)


@pytest.mark.parametrize("wanted", ["a" * 64, "aaa", "job", "/job"])
def test_one_container_by_id_beginning_or_name(prefix: Path, wanted: str) -> None:
    policy = in_force(prefix)
    keep(policy, "a" * 64, name="job")
    keep(policy, "b" * 64, NO_LIBRARY)
    found = failures.last(policy, wanted)
    assert found is not None and found.code == "VGPU-REQ-001"


def test_a_name_is_the_newest_of_that_name_and_a_beginning_must_be_one(prefix: Path) -> None:
    policy = in_force(prefix)
    keep(policy, "ab1", name="job")
    keep(policy, "ab2", NO_LIBRARY, name="job")
    found = failures.last(policy, "job")
    assert found is not None and found.id == "ab2"
    with pytest.raises(RequestError, match="fits 2 containers: ab1, ab2") as caught:
        failures.last(policy, "ab")
    assert caught.value.code == "VGPU-SET-001"
    done = doctor(prefix, "nobody")
    assert (done.returncode, done.stdout, done.stderr[:20]) == (3, "", "vgpu: VGPU-PLC-005: ")


def test_a_start_that_is_dead_and_was_not_cleared_away(prefix: Path) -> None:
    policy = in_force(prefix)
    ended = subprocess.Popen(["true"])
    ended.wait()
    give_out(prefix, owner=ended.pid)  # still "creating"
    found = failures.last(policy, None)
    assert found is not None
    assert (found.code, found.name, found.part) == ("VGPU-OCI-005", "job", "runtime")
    Path(ledger.folder(policy.state_dir, found.id), audit.BEGUN).touch()
    found = failures.last(policy, "job")
    assert found is not None and "while its hook was at work" in found.message


def test_after_a_reboot_the_audit_log_tells(prefix: Path) -> None:
    policy = in_force(prefix)
    audit.append(policy.log_dir, "deny", "c1", code="VGPU-REQ-001", message="vgpu.memory='4'")
    audit.append(policy.log_dir, "fail", "c2", code="VGPU-DEP-001", message="libm", remedy="install", name="web")
    candidates = [{"ask": 0, "index": 0, "uuid": "GPU-0", "score": None, "reject": "CardInsufficientMemory"}]
    placed: dict[str, Any] = {"policy": "binpack", "slices": [], "candidates": candidates}
    audit.append(policy.log_dir, "deny", "c3", placement=placed, name="big")
    for wanted, code, words in [
        ("web", "VGPU-DEP-001", "libm"),
        ("c1", "VGPU-REQ-001", "'4'"),
        ("big", "VGPU-PLC-001", "CardInsufficientMemory"),
        (None, "VGPU-PLC-001", "no room"),
    ]:
        found = failures.last(policy, wanted)
        assert found is not None and found.code == code and words in found.message and found.remedy


def test_what_others_could_have_written_is_passed_over(prefix: Path) -> None:
    policy = in_force(prefix)
    keep(policy, "good")
    folder = Path(policy.state_dir, "failures")
    forged = json.dumps({"time_ns": time.time_ns() * 2, "code": "VGPU-DEP-001", "message": "forged"})
    (folder / "loose.json").write_text(forged)
    (folder / "loose.json").chmod(0o666)
    (folder / "link.json").symlink_to(folder / "loose.json")
    (folder / "cut.json").write_text('{"time')
    (folder / "list.json").write_text("[]")
    os.mkfifo(folder / "fifo.json")
    done = doctor(prefix)
    assert "VGPU-REQ-001" in done.stdout and "forged" not in done.stdout
    assert len(done.stderr.splitlines()) == 5


def test_a_hostile_value_is_shown_and_not_sent(prefix: Path) -> None:
    keep(in_force(prefix), "x", RequestError("VGPU-REQ-005", "a\x1b[2Jb\nc", remedy="r"), name="\x1b]0;t\x07")
    done = doctor(prefix)
    assert done.returncode == 2
    assert "\x1b" not in done.stdout and "\x07" not in done.stdout


def test_without_a_policy_the_launchers_folder_is_looked_at(prefix: Path) -> None:
    policy = in_force(prefix)
    keep(policy, "a" * 12, part="launcher")
    (prefix / "etc/policy.json").write_text("{")
    done = doctor(prefix, "aaa")
    assert (done.returncode, "VGPU-REQ-001" in done.stdout) == (2, True)
    assert f"only {policy.state_dir} was looked at" in done.stderr


def test_bytes_that_are_no_text_do_not_hide_a_record(prefix: Path) -> None:
    policy = in_force(prefix)
    keep(policy, "a" * 12)
    path = Path(policy.state_dir, f"failures/{'a' * 12}.json")
    path.write_bytes(path.read_bytes().replace(b"not a size", b"not \xff"))  # the launcher writes what it was given
    found = failures.last(policy, None)
    assert found is not None and "not \ufffd" in found.message


@pytest.mark.parametrize(
    ("bundle", "engine"),
    [
        (MOBY + "x", "Docker"),
        ("/run/containerd/io.containerd.runtime.v2.task/k8s.io/x", "Kubernetes, by containerd"),
        ("/run/containerd/io.containerd.runtime.v2.task/default/x", "containerd, namespace default"),
        ("/run/containerd/io.containerd.runtime.v2.task", "containerd, namespace "),
        ("/var/lib/containers/storage/overlay-containers/x/userdata", "Podman or CRI-O"),
        ("/tmp/bundle", ""),
        ("", ""),
    ],
)
def test_the_engine_is_known_by_where_the_bundle_lies(bundle: str, engine: str) -> None:
    assert failures.engine_of(bundle) == engine
