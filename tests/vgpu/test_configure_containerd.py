"""vgpu configure containerd, as a user runs it, with Debian 12's containerd to read what it has written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import engines

ROOT = Path(__file__).parents[2]
ORIGINAL = b'version = 2\n# ours since 2021\nroot = "/srv/containerd"\n'


@pytest.fixture
def config_toml(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_bytes(ORIGINAL)
    return path


def configure(prefix: Path, path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vgpu", "configure", "containerd", "--prefix", str(prefix), "--config", str(path)]
    environment = {**engines.docker().environment(), "VGPU_CONFIG": f"{prefix}/etc/config.yaml"}
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment, check=False
    )


def test_shown_made_and_undone(prefix: Path, config_toml: Path) -> None:
    shown = configure(prefix, config_toml, "--dry-run")
    assert shown.returncode == 2 and f'+    BinaryName = "{prefix}/bin/vgpu-runtime"' in shown.stdout
    assert config_toml.read_bytes() == ORIGINAL
    made = configure(prefix, config_toml, "--verify")
    assert made.returncode == 0, made
    assert "containerd reads the runtime handler vgpu there" in made.stdout
    again = configure(prefix, config_toml, "--dry-run")
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True)
    undone = configure(prefix, config_toml, "--undo", "--verify", "--json")
    assert undone.returncode == 0, undone
    assert json.loads(undone.stdout)["changed"] is True
    assert config_toml.read_bytes() == ORIGINAL
    assert sorted(path.name for path in config_toml.parent.iterdir()) == ["config.toml", "prefix"]


def test_what_containerd_cannot_read_is_told(prefix: Path, config_toml: Path) -> None:
    config_toml.write_bytes(ORIGINAL + b'oom_score = "high"\n')
    done = configure(prefix, config_toml, "--verify")
    assert done.returncode == 5
    assert done.stderr.startswith("vgpu: VGPU-CFG-004: containerd cannot read")
    missing = configure(prefix, config_toml, "--verify", "--program", "/no/containerd")
    assert (missing.returncode, missing.stderr.count("\n")) == (5, 1)


def test_a_broken_file_is_left_alone(prefix: Path, config_toml: Path) -> None:
    config_toml.write_bytes(b"version = \n")
    done = configure(prefix, config_toml)
    assert (done.returncode, config_toml.read_bytes()) == (5, b"version = \n")
    assert done.stderr.startswith("vgpu: VGPU-CFG-001:")


def test_kubernetes_runtime_class_is_printed(prefix: Path, config_toml: Path) -> None:
    done = configure(prefix, config_toml, "--runtime-class")
    assert "kind: RuntimeClass" in done.stdout and "handler: vgpu" in done.stdout
    assert config_toml.read_bytes() == ORIGINAL
