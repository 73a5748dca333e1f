"""vgpu configure docker, as a user runs it: on files of all kinds, and on a running daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import dockerd

ROOT = Path(__file__).parents[2]
ORIGINAL = b'{\r\n\t"log-driver": "json-file",\r\n\t"debug": false\r\n}'


@pytest.fixture
def daemon_json(tmp_path: Path) -> Path:
    path = tmp_path / "docker/daemon.json"
    path.parent.mkdir()
    path.write_bytes(ORIGINAL)
    return path


def configure(prefix: Path, path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vgpu", "configure", "docker"]
        + ["--prefix", str(prefix), "--config", str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "VGPU_CONFIG": f"{prefix}/etc/config.yaml"},
        check=False,
    )


def test_a_dry_run_shows_the_change_and_makes_none(prefix: Path, daemon_json: Path) -> None:
    done = configure(prefix, daemon_json, "--dry-run")
    assert (done.returncode, done.stderr) == (2, "")
    assert f"--- {daemon_json}\n+++ {daemon_json}\n" in done.stdout
    assert f'+\t\t\t"path": "{prefix}/bin/vgpu-runtime"' in done.stdout
    assert "\\ No newline at end of file" in done.stdout
    assert daemon_json.read_bytes() == ORIGINAL
    assert os.listdir(daemon_json.parent) == ["daemon.json"]


def test_the_diff_is_one_that_patch_accepts(prefix: Path, daemon_json: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vgpu", "configure", "docker", "--dry-run"]
        + ["--prefix", str(prefix), "--config", str(daemon_json)],
        capture_output=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip
    copy = tmp_path / "copy.json"
    copy.write_bytes(ORIGINAL)
    subprocess.run(["patch", "--binary", "-s", str(copy)], input=done.stdout, check=True, timeout=30)
    assert configure(prefix, daemon_json).returncode == 0
    assert copy.read_bytes() == daemon_json.read_bytes()


def test_edit_again_and_undo(prefix: Path, daemon_json: Path) -> None:
    first = configure(prefix, daemon_json)
    assert first.returncode == 0, first
    assert "changed" in first.stdout
    assert "systemctl reload docker" in first.stderr
    edited = daemon_json.read_bytes()
    assert json.loads(edited)["runtimes"]["vgpu"]["path"] == f"{prefix}/bin/vgpu-runtime"
    assert daemon_json.with_name("daemon.json.vgpu-backup").read_bytes() == ORIGINAL
    again = configure(prefix, daemon_json, "--dry-run")
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True)
    assert configure(prefix, daemon_json).returncode == 0
    assert daemon_json.read_bytes() == edited
    assert configure(prefix, daemon_json, "--set-default").returncode == 0
    assert json.loads(daemon_json.read_bytes())["default-runtime"] == "vgpu"
    undone = configure(prefix, daemon_json, "--undo")
    assert undone.returncode == 0, undone
    assert "do not reload dockerd" in undone.stderr
    assert daemon_json.read_bytes() == ORIGINAL
    assert os.listdir(daemon_json.parent) == ["daemon.json"]
    assert "nothing to do" in configure(prefix, daemon_json, "--undo").stdout


def test_a_missing_file_comes_and_goes(prefix: Path, tmp_path: Path) -> None:
    path = tmp_path / "etc/docker/daemon.json"
    dry = configure(prefix, path, "--dry-run")
    assert "--- /dev/null" in dry.stdout
    assert configure(prefix, path).returncode == 0
    assert os.listdir(path.parent) == ["daemon.json"]
    assert configure(prefix, path, "--undo", "--dry-run").returncode == 2
    assert configure(prefix, path, "--undo").returncode == 0
    assert os.listdir(path.parent) == []
    assert configure(prefix, path, "--undo").returncode == 0


def test_an_empty_file_comes_back_empty(prefix: Path, daemon_json: Path) -> None:
    daemon_json.write_bytes(b"")
    assert configure(prefix, daemon_json).returncode == 0
    assert configure(prefix, daemon_json, "--undo").returncode == 0
    assert daemon_json.read_bytes() == b""
    assert os.listdir(daemon_json.parent) == ["daemon.json"]


def test_undo_keeps_what_others_changed_meanwhile(prefix: Path, daemon_json: Path) -> None:
    assert configure(prefix, daemon_json).returncode == 0
    daemon_json.write_bytes(daemon_json.read_bytes().replace(b"false", b"true"))
    assert configure(prefix, daemon_json, "--undo").returncode == 0
    assert daemon_json.read_bytes() == ORIGINAL.replace(b"false", b"true")
    # configured once more, the backup is of the file as it is now
    assert configure(prefix, daemon_json).returncode == 0
    assert configure(prefix, daemon_json, "--undo").returncode == 0
    assert daemon_json.read_bytes() == ORIGINAL.replace(b"false", b"true")


def test_json_output_is_one_object(prefix: Path, daemon_json: Path) -> None:
    dry = json.loads(configure(prefix, daemon_json, "--dry-run", "--json").stdout)
    assert dry["schema"] == 1 and dry["changed"] and dry["dry_run"] and "vgpu-runtime" in dry["diff"]
    done = json.loads(configure(prefix, daemon_json, "--json").stdout)
    assert done["changed"] and done["launcher"] == f"{prefix}/bin/vgpu-runtime"
    assert not json.loads(configure(prefix, daemon_json, "--json").stdout)["changed"]


def refused(done: subprocess.CompletedProcess[str], code: str, *words: str) -> None:
    """One line on stderr with all `words`, nothing on stdout, the admin's exit code."""
    assert done.returncode == 5, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"vgpu: {code}: ")
    for word in words:
        assert word in done.stderr


def test_what_cannot_be_edited_is_refused_in_one_line(prefix: Path, daemon_json: Path) -> None:
    daemon_json.write_text('{\n  // debug\n  "debug": true\n}')
    refused(configure(prefix, daemon_json), "VGPU-CFG-001", "line 2, column 3", "a comment")
    daemon_json.write_text('{"runtimes": {"vgpu": {"path": "/usr/bin/other"}}}')
    refused(configure(prefix, daemon_json), "VGPU-CFG-003", "not ours", "/usr/bin/other")
    refused(configure(prefix.parent, daemon_json), "VGPU-CFG-003", "there is no", "--prefix")
    daemon_json.unlink()
    daemon_json.mkdir()
    refused(configure(prefix, daemon_json), "VGPU-CFG-001", "Is a directory")


def test_no_daemon_is_one_line_too(prefix: Path, daemon_json: Path, tmp_path: Path) -> None:
    assert configure(prefix, daemon_json).returncode == 0
    for host in (f"unix://{tmp_path}/none.sock", "nonsense://x", "tcp://127.0.0.1:1", "unix://"):
        done = configure(prefix, daemon_json, "--verify", "-H", host)
        assert done.returncode == 5, done
        assert done.stderr.startswith("vgpu: VGPU-CFG-004: dockerd at "), done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    done = configure(prefix, daemon_json, "--reload", "-H", f"unix://{tmp_path}/none.sock")
    assert "was not found" in done.stderr, done


@pytest.fixture(scope="module")
def daemon(needs_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dockerd.Docker]:
    """A private daemon that does not know us."""
    with dockerd.running(tmp_path_factory.mktemp("dockerd"), {}) as made:
        yield made


def runtimes(daemon: dockerd.Docker) -> tuple[list[str], str]:
    shown = daemon("info", "--format", "{{json .Runtimes}}\n{{.DefaultRuntime}}", check=True).stdout.splitlines()
    return sorted(json.loads(shown[0])), shown[1]


@pytest.mark.e2e
@pytest.mark.parametrize("arguments", [(), ("--set-default",)], ids=["runtime", "default"])
def test_a_running_daemon_takes_it_and_forgets_it(
    prefix: Path, daemon: dockerd.Docker, arguments: tuple[str, ...]
) -> None:
    original = daemon.config.read_bytes()
    before = runtimes(daemon)
    assert "vgpu" not in before[0]
    on = ("-H", daemon.host)
    not_yet = configure(prefix, daemon.config, *on, "--verify", *arguments)
    assert not_yet.returncode == 5, not_yet
    assert "has no runtime vgpu" in not_yet.stderr
    done = configure(prefix, daemon.config, *on, "--reload", *arguments)
    assert done.returncode == 0, done
    assert "vgpu" in runtimes(daemon)[0]
    assert runtimes(daemon)[1] == ("vgpu" if arguments else before[1])
    assert configure(prefix, daemon.config, *on, "--verify", *arguments).returncode == 0
    undone = configure(prefix, daemon.config, *on, "--undo", "--reload")
    assert undone.returncode == 0, undone
    after = runtimes(daemon)  # 20.10 no longer lists containerd's own after any reload
    assert "vgpu" not in after[0]
    assert after[1] == before[1]
    assert daemon.config.read_bytes() == original
    assert json.loads(configure(prefix, daemon.config, *on, "--undo", "--reload", "--json").stdout)["verified"]
    os.kill(daemon.pid, signal.SIGHUP)  # a plain reload ends 20.10 if it still thinks that vgpu is its default
    time.sleep(1)
    assert runtimes(daemon) == after


@pytest.mark.e2e
def test_a_file_without_runtimes_is_restored_and_the_daemon_forgets(prefix: Path, daemon: dockerd.Docker) -> None:
    kept = daemon.config.read_bytes()
    plain = {key: value for key, value in json.loads(kept).items() if key != "runtimes"}
    daemon.config.write_text(json.dumps(plain))
    original = daemon.config.read_bytes()
    try:
        assert configure(prefix, daemon.config, "-H", daemon.host, "--reload").returncode == 0
        done = configure(prefix, daemon.config, "-H", daemon.host, "--undo", "--reload")
        assert done.returncode == 0, done
        assert "vgpu" not in runtimes(daemon)[0]
        assert daemon.config.read_bytes() == original
    finally:
        daemon.config.write_bytes(kept)
