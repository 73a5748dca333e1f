"""vgpu configure k3s and rke2, as a user runs it, and what configure containerd says of their files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime_config.engines.k3s import BASE, FILES
from vgpu.installer import engines
from vgpu.installer.layout import Prefix

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("needs_root")
_RUNC = "containerd.runtimes.runc.options]\n  SystemdCgroup = true\n"
MADE = {
    2: f"version = 2\n[plugins.'io.containerd.grpc.v1.cri'.{_RUNC}",
    3: f"version = 3\n[plugins.'io.containerd.cri.v1.runtime'.{_RUNC}",
}


class Host:
    """Commands on a host whose /var/lib and /etc are ours alone, and that has no containerd."""

    def __init__(self, base: Path, prefix: Path) -> None:
        self.base, self.prefix = base, prefix
        for name in ("lib", "etc"):
            (base / name).mkdir()

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vgpu", "configure", *arguments, "--prefix", str(self.prefix)]
        script = f'mount --bind {self.base}/lib /var/lib && mount --bind {self.base}/etc /etc && exec "$@"'
        return subprocess.run(
            ["unshare", "--mount", "sh", "-ec", script, "sh", *command],
            capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
            env={**os.environ, "PATH": "/usr/bin:/bin", "VGPU_CONFIG": f"{self.prefix}/etc/config.yaml"},
        )  # fmt: skip

    def folder(self, engine: str) -> Path:
        return self.base / "lib" / Path(FILES[engine]).parent.relative_to("/var/lib")

    def make(self, engine: str, version: int) -> None:
        """As the engine does when it starts: config.toml, of a template if there is one."""
        folder = self.folder(engine)
        folder.mkdir(parents=True, exist_ok=True)
        template = folder / {2: "config.toml.tmpl", 3: "config-v3.toml.tmpl"}[version]
        text = template.read_text() if template.exists() else BASE
        (folder / "config.toml").write_text(text.replace(BASE, MADE[version]))


@pytest.fixture
def host(tmp_path: Path, prefix: Path) -> Host:
    return Host(tmp_path, prefix)


@pytest.mark.parametrize(
    ("engine", "version", "template"),
    [("k3s", 3, "config-v3.toml.tmpl"), ("k3s", 2, "config.toml.tmpl"), ("rke2", 3, "config-v3.toml.tmpl")],
)
def test_shown_made_in_force_after_a_restart_and_undone(host: Host, engine: str, version: int, template: str) -> None:
    host.make(engine, version)
    folder = host.folder(engine)
    shown = host(engine, "--dry-run")
    assert shown.returncode == 2 and f'+    BinaryName = "{host.prefix}/bin/vgpu-runtime"' in shown.stdout, shown
    assert os.listdir(folder) == ["config.toml"]
    early = host(engine, "--verify")
    assert early.returncode == 5 and "VGPU-CFG-004" in early.stderr and f"systemctl restart {engine}" in early.stderr
    assert "    SystemdCgroup = true\n" in (folder / template).read_text()
    host.make(engine, version)
    assert host(engine, "--verify").returncode == 0
    again = host(engine, "--dry-run")
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True)
    undone = host(engine, "--undo", "--json")
    assert undone.returncode == 0, undone
    assert json.loads(undone.stdout)["changed"] is True
    assert os.listdir(folder) == ["config.toml"]


def test_an_upgrade_to_containerd_2_leaves_the_old_template_which_undo_still_finds(host: Host) -> None:
    host.make("k3s", 2)
    assert host("k3s").returncode == 0
    host.make("k3s", 3)
    assert host("k3s").returncode == 0
    folder = host.folder("k3s")
    for left in (2, 1):
        assert len(list(folder.glob("*.tmpl"))) == left
        assert host("k3s", "--undo").returncode == 0
    assert os.listdir(folder) == ["config.toml"]


def test_without_a_start_of_it_there_is_nothing_to_go_by(host: Host) -> None:
    done = host("rke2")
    assert done.returncode == 5 and done.stderr.startswith("vgpu: VGPU-CFG-003: /var/lib/rancher/rke2/agent/etc/")
    assert "start rke2 once" in done.stderr and done.stderr.count("\n") == 1
    assert host("rke2", "--undo").returncode == 0


def test_all_engines_means_these_too_and_their_default_is_theirs(host: Host) -> None:
    host.make("k3s", 3)
    done = host("--all", "--dry-run", "--json")
    assert done.returncode == 2, done
    found = {one["engine"]: one["found"] for one in json.loads(done.stdout)["engines"]}
    assert (found["k3s"], found["rke2"]) == (FILES["k3s"], None)
    refused = host("--all", "--set-default")
    assert refused.returncode == 5 and "default-runtime: vgpu" in refused.stderr
    assert os.listdir(host.folder("k3s")) == ["config.toml"]


@pytest.mark.seeds("VGPU-CFG-011")
def test_a_file_that_would_not_last_or_that_nobody_reads_is_not_written(host: Host) -> None:
    host.make("k3s", 3)
    for path in ("config.toml", "config.toml.tmpl"):
        done = host("containerd", "--config", f"{Path(FILES['k3s']).parent}/{path}")
        assert done.returncode == 5 and done.stderr.startswith("vgpu: VGPU-CFG-011: "), done
        assert f"vgpu configure k3s --config {FILES['k3s']}" in done.stderr
    done = host("containerd")
    assert done.returncode == 5 and "/etc/containerd/config.toml would be read by nobody" in done.stderr
    assert done.stderr.endswith("to mend it: vgpu configure k3s\n")
    snap = host.base / "lib/snap/microk8s/7000/args"
    snap.mkdir(parents=True)
    done = host("containerd", "--config", "/var/lib/snap/microk8s/7000/args/containerd.toml")
    assert "vgpu configure containerd --config /var/lib/snap/microk8s/7000/args/containerd-template.toml" in done.stderr
    assert os.listdir(host.folder("k3s")) == ["config.toml"] and os.listdir(host.base / "etc") == []


def test_an_uninstall_finds_the_templates(host: Host) -> None:
    host.make("rke2", 3)
    assert host("rke2").returncode == 0
    template = host.folder("rke2") / "config-v3.toml.tmpl"
    [(edit, change)] = engines.edits(Prefix(host.prefix), {"rke2-v3": str(template)}, force=False)
    assert (edit.path, change.after) == (str(template), None)
    assert engines.edits(Prefix(host.prefix.with_name("other")), {"rke2-v3": str(template)}, force=False) == []
