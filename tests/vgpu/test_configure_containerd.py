"""vgpu configure containerd, as a user runs it, with Debian 12's containerd to read what it has written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runtime_config.engines import containerd
from tests.harness import engines, suites

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


FOREIGN = """version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other]
  runtime_type = "io.containerd.runc.v2"
"""
RUNC = """[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = true
"""


def importing(folder: Path, version: int = 2) -> Path:
    """A config.toml with a handler, that imports conf.d."""
    path = folder / "config.toml"
    runc = RUNC if version == 2 else RUNC.replace("grpc.v1.cri", "cri.v1.runtime")
    path.write_text(f'version = {version}\nimports = ["{folder}/conf.d/*.toml"]\n{runc}')
    (folder / "conf.d").mkdir()
    return path


def all_files(folder: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in folder.rglob("*") if path.is_file() and "prefix" not in path.parts}


@pytest.mark.seeds("VGPU-CFG-009")
def test_a_handler_that_an_imported_file_would_hide_is_not_written(prefix: Path, tmp_path: Path) -> None:
    """containerd 1.6: a table of the imported file replaces that of the same plugin."""
    path = importing(tmp_path)
    assert configure(prefix, path, "--dry-run").returncode == 2  # nothing is imported yet
    (tmp_path / "conf.d/other.toml").write_text(FOREIGN)
    before = all_files(tmp_path)
    done = configure(prefix, path)
    assert done.returncode == 5, done
    assert done.stderr.startswith("vgpu: VGPU-CFG-009: containerd would not see the handler vgpu in ")
    assert "--config" in done.stderr and all_files(tmp_path) == before
    # the remedy, and it is undone like any other
    assert configure(prefix, tmp_path / "conf.d/other.toml").returncode == 0
    dump = [engines.docker().program("containerd"), "--config", path, "config", "dump"]
    environment = engines.docker().environment()
    said = subprocess.run(dump, capture_output=True, text=True, check=True, env=environment, timeout=60).stdout
    assert f'BinaryName = "{prefix}/bin/vgpu-runtime"' in said
    assert configure(prefix, tmp_path / "conf.d/other.toml", "--undo").returncode == 0
    assert all_files(tmp_path) == before


def test_a_drop_in_that_would_hide_others_goes_again(prefix: Path, tmp_path: Path) -> None:
    path = importing(tmp_path)
    before = all_files(tmp_path)
    done = configure(prefix, path, "--drop-in")
    assert done.returncode == 5, done
    assert "VGPU-CFG-009" in done.stderr and "changes other handlers (runc)" in done.stderr
    assert all_files(tmp_path) == before


def test_a_drop_in_that_nobody_imports_goes_again(prefix: Path, config_toml: Path, tmp_path: Path) -> None:
    before = all_files(tmp_path)
    (tmp_path / "conf.d").mkdir()
    done = configure(prefix, config_toml, "--drop-in")
    assert done.returncode == 5 and "is not read, and was taken away again" in done.stderr, done
    assert all_files(tmp_path) == before


@pytest.mark.matrix
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("set_default", [False, True])
def test_containerd_that_merges_takes_a_drop_in(prefix: Path, tmp_path: Path, set_default: bool, version: int) -> None:
    """2.1: whole, with runc's SystemdCgroup, beside the handler that is there; config.toml is not touched."""
    path = importing(tmp_path, version)
    before = all_files(tmp_path)
    program = str(suites.engine("forky").program("containerd"))
    more = ["--set-default"] if set_default else []
    dry = configure(prefix, path, "--drop-in", "--program", program, "--dry-run", *more)
    assert dry.returncode == 2 and f"+version = {version}" in dry.stdout, dry
    assert configure(prefix, path, "--drop-in", "--program", program, "--verify", *more).returncode == 0
    written = (tmp_path / "conf.d/90-vgpu.toml").read_text()
    assert "SystemdCgroup = true" in written and ('default_runtime_name = "vgpu"' in written) == set_default
    again = configure(prefix, path, "--drop-in", "--program", program, "--dry-run", *more)
    assert again.returncode == 0, again
    said = subprocess.run([program, "--config", path, "config", "dump"], capture_output=True, text=True, check=True)
    assert containerd.find(said.stdout) == containerd.Found(
        f"{prefix}/bin/vgpu-runtime", set_default, "vgpu" if set_default else "runc", 3
    )
    assert containerd.handlers(said.stdout)["runc"]["options"]["SystemdCgroup"] is True
    assert configure(prefix, path, "--drop-in", "--undo", "--program", program, "--verify").returncode == 0
    assert all_files(tmp_path) == before
