"""The operator's command as a user runs it: results on stdout, one line per refusal on stderr, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oci_hook import ledger, policy, quota_file
from oci_hook.records import Allocation, Ask, Placement, Plan, Policy, Process, Request, Slice
from runtime_config import launcher_conf, policy_file
from vgpu import output

ROOT = Path(__file__).parents[2]
GIB = 1 << 30


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An installation's etc/ with a policy in force; the programs are not needed here."""
    etc = tmp_path / "prefix/etc"
    etc.mkdir(parents=True)
    text = policy_file.template("/bin/true", str(tmp_path / "state"), str(tmp_path / "log"), simulate_gpus=2)
    (etc / "config.yaml").write_text(text)
    conf = launcher_conf.text(str(etc.parent), "/bin/true", "/usr/bin/python3", str(tmp_path / "state"))
    (etc / "launcher.conf").write_text(conf)
    assert vgpu(etc.parent, "config", "apply").returncode == 0
    return etc.parent


def vgpu(prefix: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vgpu", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "VGPU_CONFIG": f"{prefix}/etc/config.yaml", **environment},
        check=False,
    )


def in_force(prefix: Path) -> Policy:
    return policy.load(f"{prefix}/etc/policy.json")


def give_out(prefix: Path, name: str = "job", container: str = "c" * 64, gpus: int = 1, owner: int = 0) -> Allocation:
    """A slice in the ledger, owned by this process or by `owner`, with a usage file that nobody has used."""
    creator = ledger.process(owner or os.getpid()) or Process(owner, 1)
    slices = tuple(Slice(index, f"GPU-{index}", 8 * GIB, 30 * index) for index in range(gpus))
    allocation = Allocation(
        id=container,
        name=name,
        image="image:1",
        state="creating",
        created_ns=1,
        creator=creator,
        init=None,
        request=Request(asks=(Ask(memory_bytes=8 * GIB),) * gpus),
        placement=Placement("binpack", slices, ()),
        clamped=(),
        simulated=True,
        driver_version="550.54.14",
    )
    quota = quota_file.quota(container, slices, burst="hard", priority="normal")
    with ledger.Ledger(in_force(prefix).state_dir) as held:
        held.add(allocation, Plan((), ()), quota, quota_file.usage_header(), quota_file.USAGE_BYTES)
    return allocation


def refused(done: subprocess.CompletedProcess[str], code: str, *words: str) -> None:
    assert done.returncode == 5, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"vgpu: {code}: ")
    for word in words:
        assert word in done.stderr


def test_config_show_names_every_setting_and_what_is_not_applied(prefix: Path) -> None:
    done = vgpu(prefix, "config", "show")
    assert (done.returncode, done.stderr) == (0, "")
    for name in policy_file.SETTINGS:
        assert f"\n{name} " in done.stdout
    config = prefix / "etc/config.yaml"
    config.write_text(config.read_text() + "max: {memory: 16GiB}\n")
    changed = vgpu(prefix, "config", "show")
    assert "not in force yet" in changed.stderr
    assert "16 GiB" not in changed.stdout  # it shows what holds now
    assert json.loads(vgpu(prefix, "config", "check", "--json").stdout)["applied"] is False
    assert vgpu(prefix, "config", "apply").returncode == 0
    assert "16 GiB" in vgpu(prefix, "config", "show").stdout
    assert in_force(prefix).max_memory_bytes == 16 * GIB
    shown = json.loads(vgpu(prefix, "config", "show", "--json").stdout)
    assert (shown["schema"], shown["applied"], shown["policy"]["max_memory_bytes"]) == (1, True, 16 * GIB)


def test_config_show_tells_quotas_and_weights_in_words(prefix: Path) -> None:
    config = prefix / "etc/config.yaml"
    more = "quotas: [{label: team=a, memory: 40GiB, containers: 4}]\nweighted: {binpack: 0.7, topology: 0.3}\n"
    config.write_text(config.read_text() + more)
    assert vgpu(prefix, "config", "apply").returncode == 0
    shown = vgpu(prefix, "config", "show").stdout
    assert "team=a (memory 40 GiB, containers 4)" in shown
    assert "binpack 0.7, topology 0.3" in shown


def test_a_policy_that_cannot_work_is_not_applied(prefix: Path) -> None:
    config = prefix / "etc/config.yaml"
    before = (prefix / "etc/policy.json").read_bytes()
    good = config.read_text()
    for text, code, words in [
        (good + "placment: spread\n", "VGPU-CFG-003", ["config.yaml: line", "'placment'", "did you mean placement?"]),
        (good + "max: [\n", "VGPU-CFG-001", ["config.yaml: line"]),
        (good.replace("/bin/true", "/no/runc"), "VGPU-CFG-003", ["runtime='/no/runc' is not a program"]),
    ]:
        config.write_text(text)
        refused(vgpu(prefix, "config", "apply"), code, *words)
        refused(vgpu(prefix, "config", "check"), code, *words)
    config.unlink()
    refused(vgpu(prefix, "config", "apply"), "VGPU-CFG-001", "does not exist")
    assert (prefix / "etc/policy.json").read_bytes() == before


def test_apply_tells_the_launcher_which_runtime_to_start(prefix: Path) -> None:
    config = prefix / "etc/config.yaml"
    config.write_text(config.read_text().replace("/bin/true", "/bin/false"))
    assert vgpu(prefix, "config", "apply").returncode == 0
    assert (prefix / "etc/launcher.conf").read_text().splitlines()[0] == "runtime=/bin/false"


def test_a_runtime_that_is_our_launcher_is_refused(prefix: Path) -> None:
    (prefix / "bin").mkdir()
    (prefix / "bin/vgpu-runtime").symlink_to("/bin/true")
    refused(vgpu(prefix, "config", "check"), "VGPU-CFG-003", "vgpu's own launcher")


def test_without_a_policy_each_command_says_what_to_do(tmp_path: Path) -> None:
    for command in (["ps"], ["inventory"], ["inventory", "--refresh"]):
        refused(vgpu(tmp_path, *command), "VGPU-HOST-001", "vgpu config apply")


def test_a_policy_that_others_can_write_is_not_trusted(prefix: Path) -> None:
    (prefix / "etc/policy.json").chmod(0o666)
    refused(vgpu(prefix, "ps"), "VGPU-HOST-006", "chmod 644")


def test_ps_of_nothing_is_an_empty_table(prefix: Path) -> None:
    done = vgpu(prefix, "ps")
    assert (done.returncode, done.stderr, done.stdout.split()[0]) == (0, "", "CONTAINER")
    assert len(done.stdout.splitlines()) == 1
    empty = {"schema": 1, "cores_enforced": True, "gpus": [], "grants": [], "containers": []}
    assert json.loads(vgpu(prefix, "ps", "--json").stdout) == empty


def test_ps_shows_a_slice_of_two_gpus_in_two_lines(prefix: Path) -> None:
    give_out(prefix, gpus=2)
    header, first, second = vgpu(prefix, "ps").stdout.splitlines()
    words = " ".join(first.split())
    assert words == "cccccccccccc job image:1 0 (simulated) 0 B / 8 GiB no limit creating not used yet 0 0"
    assert " ".join(second.split()) == "1 (simulated) 0 B / 8 GiB 30 % 0"
    assert second.index("1") == header.index("GPU")
    (found,) = json.loads(vgpu(prefix, "ps", "--json").stdout)["containers"]
    assert [gpu["memory_bytes"] for gpu in found["gpus"]] == [8 * GIB, 8 * GIB]
    assert [gpu["used_bytes"] for gpu in found["gpus"]] == [0, 0]
    assert (found["in_force"], found["trouble"], found["processes"]) == (False, None, [])


def test_ps_tells_an_entry_whose_owner_is_gone(prefix: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    give_out(prefix, owner=ended.pid)
    assert json.loads(vgpu(prefix, "ps", "--json").stdout)["containers"][0]["state"] == "ended"


def test_names_from_an_image_cannot_speak_to_the_terminal(prefix: Path) -> None:
    give_out(prefix, name="a\x1b[2Jb\nc[bold]d")
    shown = vgpu(prefix, "ps").stdout
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 2
    assert "[bold]" in shown


@pytest.mark.parametrize("damage", ["short", "magic", "missing", "folder"])
def test_a_usage_file_that_the_container_spoilt_is_told_and_hides_nothing(prefix: Path, damage: str) -> None:
    allocation = give_out(prefix)
    usage = Path(ledger.folder(in_force(prefix).state_dir, allocation.id), "box/usage")
    if damage == "short":
        os.truncate(usage, 100)
    elif damage == "magic":
        usage.write_bytes(bytes(quota_file.USAGE_BYTES))
    else:
        usage.unlink()
        if damage == "folder":
            usage.mkdir()
    done = vgpu(prefix, "ps")
    assert (done.returncode, done.stderr) == (0, "")
    assert "? / 8 GiB" in done.stdout
    (found,) = json.loads(vgpu(prefix, "ps", "--json").stdout)["containers"]
    assert found["trouble"]
    assert found["gpus"][0]["used_bytes"] is None


def test_an_entry_that_cannot_be_read_does_not_hide_the_others(prefix: Path) -> None:
    give_out(prefix, container="a" * 64)
    broken = give_out(prefix, container="b" * 64)
    Path(ledger.folder(in_force(prefix).state_dir, broken.id), "allocation.json").write_text("{")
    done = vgpu(prefix, "ps")
    assert done.returncode == 0
    assert "aaaaaaaaaaaa" in done.stdout
    assert done.stderr.startswith("vgpu: VGPU-HOST-003: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_goes_away_is_no_traceback(prefix: Path) -> None:
    for number in range(300):  # more than fits a pipe's buffer
        give_out(prefix, container=f"{number:064d}", gpus=4)
    for arguments in (["ps"], ["ps", "--json"]):
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write) as stdout:
            done = subprocess.run(
                [sys.executable, "-m", "vgpu", *arguments],
                stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=60, check=False,
                env={**os.environ, "VGPU_CONFIG": f"{prefix}/etc/config.yaml"},
            )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr == ""


def test_a_terminal_that_is_ascii_only_is_no_traceback(prefix: Path) -> None:
    give_out(prefix, name="größe")
    done = vgpu(prefix, "ps", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0, done.stderr
    assert "gr\\xf6\\xdfe" in done.stdout


def test_wrong_usage_is_exit_code_2(prefix: Path) -> None:
    for arguments in (["pz"], ["ps", "--nope"], ["configure", "lxc"]):
        done = vgpu(prefix, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr


def test_version(prefix: Path) -> None:
    assert vgpu(prefix, "version").stdout == "0.1.0\n"
    assert json.loads(vgpu(prefix, "version", "--json").stdout) == {"schema": 1, "version": "0.1.0"}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1 KiB"), (1 << 20, "1 MiB"), (8 * GIB, "8 GiB"),
        (8 * GIB - 1, "8192.0 MiB"), (8191 << 20, "8191 MiB"), (80 * GIB + 1, "80.0 GiB"), (10241, "10.0 KiB"),
    ],
)  # fmt: skip
def test_sizes_for_people(count: int, text: str) -> None:
    assert output.size(count) == text
