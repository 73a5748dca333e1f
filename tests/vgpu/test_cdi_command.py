"""vgpu cdi and vgpu configure crio, as an admin runs them on an installation with simulated GPUs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.harness import installed
from tests.harness.installed import Vgpu


@pytest.fixture(scope="module")
def vgpu(tmp_path_factory: pytest.TempPathFactory, needs_build: None) -> Vgpu:
    return installed.install(tmp_path_factory.mktemp("cdi"), Path("/bin/true"))


def run(vgpu: Vgpu, *words: str) -> tuple[int, str]:
    done: subprocess.CompletedProcess[str] = vgpu(*words, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_generated_listed_checked_and_removed(vgpu: Vgpu, tmp_path: Path) -> None:
    spec = tmp_path / "cdi/vgpu.json"
    where = ("--output", str(spec))
    code, diff = run(vgpu, "cdi", "generate", *where, "--dry-run")
    assert code == 2 and f"+++ {spec}" in diff and not spec.exists()
    assert run(vgpu, "cdi", "generate", *where)[0] == 0
    assert spec.stat().st_mode & 0o777 == 0o644
    written = spec.read_bytes()
    assert "nothing to do" in run(vgpu, "cdi", "generate", *where)[1]
    assert spec.read_bytes() == written and run(vgpu, "cdi", "generate", *where, "--dry-run") == (0, "")
    assert run(vgpu, "cdi", "generate", "--output", "-")[1].encode() == written
    listed = json.loads(run(vgpu, "cdi", "list", "--json", "--spec-dir", str(spec.parent))[1])
    assert [one["name"] for one in listed["devices"]][-1] == "vgpu.dev/gpu=all" and len(listed["devices"]) == 5
    assert "vgpu.dev/gpu=all" in run(vgpu, "cdi", "list", "--spec-dir", str(spec.parent))[1]
    assert run(vgpu, "cdi", "check", "--spec-dir", str(spec.parent)) == (0, "1 spec, nothing wrong\n")
    assert run(vgpu, "cdi", "generate", *where, "--undo")[0] == 0
    assert list(spec.parent.iterdir()) == []


def test_it_names_files_that_stay_when_a_version_is_removed(vgpu: Vgpu, tmp_path: Path) -> None:
    spec = json.loads(run(vgpu, "cdi", "generate", "--output", "-")[1])
    words = [word for hook in spec["containerEdits"]["hooks"] for word in hook["args"] if str(vgpu.prefix) in word]
    assert len(words) == 4 and not any("versions" in word for word in words), words
    assert all(Path(word).is_file() for word in words)


def test_a_stale_spec_is_named_and_generate_mends_it(vgpu: Vgpu, tmp_path: Path) -> None:
    spec = tmp_path / "vgpu.json"
    run(vgpu, "cdi", "generate", "--output", str(spec))
    spec.write_text(spec.read_text().replace(str(vgpu.state), "/run/elsewhere"))
    code, said = run(vgpu, "cdi", "check", "--spec-dir", str(tmp_path), "--json")
    found = json.loads(said)
    assert code == 1 and found["ok"] is False
    assert "/run/elsewhere/sim/ctl" in found["findings"][0]["found"]
    subprocess.run(found["findings"][0]["remedy"].split(), check=True, capture_output=True)
    assert run(vgpu, "cdi", "check", "--spec-dir", str(tmp_path))[0] == 0


def test_a_spec_of_somebody_else_is_not_overwritten(vgpu: Vgpu, tmp_path: Path) -> None:
    spec = tmp_path / "nvidia.json"
    text = '{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": []}'
    spec.write_text(text)
    for words in (("--undo",), ()):
        code, said = run(vgpu, "cdi", "generate", "--output", str(spec), *words)
        assert code == 5 and "VGPU-CFG-003" in said and "nvidia.com/gpu" in said
    assert spec.read_text() == text


def test_broken_specs_do_not_hide_the_others(vgpu: Vgpu, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("devices: [")
    run(vgpu, "cdi", "generate", "--output", str(tmp_path / "vgpu.json"))
    code, said = run(vgpu, "cdi", "list", "--spec-dir", str(tmp_path))
    assert code == 0 and "VGPU-CFG-001" in said and "vgpu.dev/gpu=1" in said


def test_crio_shown_made_and_undone(vgpu: Vgpu, tmp_path: Path) -> None:
    drop_in = tmp_path / "crio.conf.d/99-vgpu.conf"
    command = ("configure", "crio", "--config", str(drop_in))
    assert run(vgpu, *command, "--dry-run")[0] == 2 and not drop_in.exists()
    assert run(vgpu, *command)[0] == 0
    made = drop_in.read_bytes()
    assert f'runtime_path = "{vgpu.runtime}"'.encode() in made
    assert run(vgpu, *command, "--dry-run") == (0, "nothing to do\n")
    assert json.loads(run(vgpu, *command, "--json")[1])["changed"] == []
    assert run(vgpu, *command, "--undo")[0] == 0
    assert list(drop_in.parent.iterdir()) == []


def test_podman_that_cannot_be_asked_is_told(vgpu: Vgpu, tmp_path: Path) -> None:
    command = ("configure", "podman", "--config", str(tmp_path / "v.conf"), "--hooks-dir", str(tmp_path))
    code, said = run(vgpu, *command, "--verify", "--program", "/no/podman")
    assert code == 5 and "VGPU-CFG-004" in said and "--program" in said
    (tmp_path / "vgpu-createRuntime.json").write_text("{}")
    code, said = run(vgpu, *command, "--hooks")
    assert code == 5 and "VGPU-CFG-001" in said and "vgpu-createRuntime.json" in said
