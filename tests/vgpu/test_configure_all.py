"""vgpu configure --all, on a host whose /etc is ours alone, with Docker's and containerd's real programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import engines

ROOT = Path(__file__).parents[2]
DAEMON_JSON, CONFIG_TOML = '{"debug": false}\n', "version = 2\n# ours\n"
pytestmark = pytest.mark.usefixtures("needs_root")


class Host:
    """Commands with a private /etc, below `etc`, that stays from one to the next."""

    def __init__(self, prefix: Path, etc: Path, path: str) -> None:
        self.prefix, self.etc, self.path = prefix, etc, path

    def __call__(self, *arguments: str, setup: str = "true") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vgpu", "configure", *arguments, "--prefix", str(self.prefix)]
        script = f'mount --bind {self.etc} /etc && {setup} && exec "$@"'
        return subprocess.run(
            ["unshare", "--mount", "sh", "-ec", script, "sh", *command],
            capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
            env={**engines.docker().environment(), "PATH": self.path},
        )  # fmt: skip

    def files(self) -> dict[str, str]:
        return {str(path.relative_to(self.etc)): path.read_text() for path in self.etc.rglob("*") if path.is_file()}


@pytest.fixture
def host(prefix: Path, tmp_path: Path) -> Host:
    etc = tmp_path / "etc"
    for name, text in (("docker/daemon.json", DAEMON_JSON), ("containerd/config.toml", CONFIG_TOML)):
        (etc / name).parent.mkdir(parents=True)
        (etc / name).write_text(text)
    return Host(prefix, etc, engines.docker().environment()["PATH"])


def test_every_engine_is_shown_changed_and_undone(host: Host) -> None:
    before = host.files()
    shown = host("--all", "--dry-run")
    assert shown.returncode == 2, shown
    assert f"docker: found, {engines.docker().program('dockerd')}\n--- /etc/docker/daemon.json\n" in shown.stdout
    assert "containerd: found, " in shown.stdout and "\n+++ /etc/containerd/config.toml\n" in shown.stdout
    assert host.files() == before
    made = host("--all", "--set-default")
    assert made.returncode == 0, made
    assert "/etc/docker/daemon.json: changed" in made.stdout and "config.toml: changed" in made.stdout
    assert "systemctl reload docker" in made.stderr and "systemctl restart containerd" in made.stderr
    after = host.files()
    assert json.loads(after["docker/daemon.json"])["default-runtime"] == "vgpu"
    assert 'default_runtime_name = "vgpu"' in after["containerd/config.toml"]
    again = json.loads(host("--all", "--set-default", "--dry-run", "--json").stdout)
    assert [one["changed"] for one in again["engines"][:2]] == [False, False]
    undone = host("--all", "--undo", "--json")
    assert undone.returncode == 0, undone
    assert [one["changed"] for one in json.loads(undone.stdout)["engines"][:2]] == [True, True]
    assert host.files() == before


@pytest.mark.parametrize("broken", ["docker/daemon.json", "containerd/config.toml"])
def test_one_that_fails_does_not_half_do_the_others(host: Host, broken: str) -> None:
    (host.etc / broken).write_text("= neither JSON nor TOML\n")
    before = host.files()
    done = host("--all", "--json")
    assert done.returncode == 5, done
    results = {one["engine"]: one for one in json.loads(done.stdout)["engines"]}
    failed, fine = ("docker", "containerd") if broken.startswith("docker") else ("containerd", "docker")
    assert results[failed]["error"]["code"] == "VGPU-CFG-001" and results[failed]["error"]["remedy"]
    assert results[fine]["changed"] and "error" not in results[fine]
    changed = {name for name, text in before.items() if host.files()[name] != text}
    assert changed == {results[fine]["file"].removeprefix("/etc/")}
    told = host("--all")
    assert (told.returncode, f"\nvgpu: 1 failed; done in full: {fine}" in told.stderr) == (5, True), told


def test_a_disk_that_is_full_or_read_only_leaves_that_engines_file(host: Host) -> None:
    read_only = host("--all", setup="mount --bind /etc/docker /etc/docker && mount -o remount,bind,ro /etc/docker")
    assert read_only.returncode == 5 and "VGPU-CFG-002" in read_only.stderr and "Read-only" in read_only.stderr
    assert host.files()["docker/daemon.json"] == DAEMON_JSON
    assert "BinaryName" in host.files()["containerd/config.toml"]
    full = "mount -t tmpfs -o size=4k none /etc/docker && printf '{}' >/etc/docker/daemon.json"
    done = host("--all", setup=f"{full}; cat /dev/zero >/etc/docker/rest 2>/dev/null || true")
    assert done.returncode == 5 and "No space left" in done.stderr, done


@pytest.mark.seeds("VGPU-CFG-010")
def test_an_engine_that_is_not_there_is_left_out_and_none_at_all_is_told(host: Host) -> None:
    host.path = "/usr/bin:/bin:/usr/sbin:/sbin"
    (host.etc / "docker/daemon.json").unlink()
    # the machine's own, if it has any
    hidden = "for name in dockerd containerd; do f=$(command -v $name) && mount --bind /dev/null $f; done; true"
    done = host("--all", setup=hidden)
    assert done.returncode == 0, done
    assert "docker: not on this host (no dockerd, no /etc/docker/daemon.json)" in done.stdout
    assert "containerd: found, /etc/containerd/config.toml" in done.stdout
    assert "docker/daemon.json" not in host.files()
    assert host("--all", "--undo", setup=hidden).returncode == 0
    file = host.etc / "containerd/config.toml"
    kept = file.read_text()
    file.unlink()
    none = host("--all", setup=hidden)
    assert none.returncode == 5 and none.stderr.startswith(
        "vgpu: VGPU-CFG-010: none of docker, containerd, podman, crio"
    ), none
    assert host("--all", "--undo", setup=hidden).returncode == 0
    file.write_text(kept)  # an engine whose file is there is one
    assert host("--all", setup=hidden).returncode == 0


def test_options_before_an_engines_name_are_not_lost_silently(host: Host) -> None:
    before = host.files()
    command = [sys.executable, "-m", "vgpu", "configure", "--dry-run", "docker"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 2 and "behind its name" in done.stderr
    assert host.files() == before


def test_what_was_made_for_podman_and_crio_goes_with_the_rest(host: Host) -> None:
    """Also where the engine itself has gone meanwhile."""
    before = host.files()
    for engine in ("podman", "crio"):
        made = host(engine)
        assert made.returncode == 0, made
    assert {"containers/containers.conf.d/vgpu.conf", "crio/crio.conf.d/99-vgpu.conf"} <= host.files().keys()
    shown = json.loads(host("--all", "--undo", "--dry-run", "--json").stdout)
    changed = {one["engine"] for one in shown["engines"] if one.get("changed")}
    assert changed == {"podman", "crio"}
    undone = host("--all", "--undo")
    assert undone.returncode == 0, undone
    assert "podman: found, " in undone.stdout and "crio: found, /etc/crio/crio.conf.d/99-vgpu.conf" in undone.stdout
    assert host.files() == before
