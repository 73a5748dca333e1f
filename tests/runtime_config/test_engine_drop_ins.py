"""Podman's and CRI-O's drop-ins, and the files of hooks.d: text in, text out."""

from __future__ import annotations

import json
import tomllib
from types import ModuleType

import pytest

from oci_hook.errors import VgpuError
from runtime_config.engines import crio, hooks_d, podman
from runtime_config.engines.drop_in import Found
from runtime_config.engines.hooks_d import HookFile

LAUNCHER = "/opt/vgpu/bin/vgpu-runtime"
GOLDEN = {
    podman: """\
# vgpu: added by `vgpu configure podman`, which also takes it out
[engine.runtimes]
vgpu = ["/opt/vgpu/bin/vgpu-runtime"]
# vgpu: end
""",
    crio: """\
# vgpu: added by `vgpu configure crio`, which also takes it out
[crio.runtime.runtimes.vgpu]
runtime_path = "/opt/vgpu/bin/vgpu-runtime"
runtime_type = "oci"
runtime_root = "/run/runc"
# vgpu: end
""",
}
GOLDEN_DEFAULT = {
    podman: GOLDEN[podman].replace("[engine.runtimes]", '[engine]\nruntime = "vgpu"\n[engine.runtimes]'),
    crio: GOLDEN[crio].replace("[crio.runtime.", '[crio.runtime]\ndefault_runtime = "vgpu"\n[crio.runtime.', 1),
}
OTHERS = ["", "# ours\n", "# no end of line", "[network]\nx = 1\n", "a = 1\n\n\n"]
both = pytest.mark.parametrize("engine", [podman, crio], ids=["podman", "crio"])


@both
def test_the_file_is_what_it_should_be(engine: ModuleType) -> None:
    assert engine.add("", LAUNCHER) == GOLDEN[engine]
    assert engine.add("", LAUNCHER, set_default=True) == GOLDEN_DEFAULT[engine]
    tomllib.loads(GOLDEN_DEFAULT[engine])


@both
@pytest.mark.parametrize("original", OTHERS)
@pytest.mark.parametrize("set_default", [False, True])
def test_others_lines_stay_and_undo_gives_the_same_bytes(engine: ModuleType, original: str, set_default: bool) -> None:
    text = engine.add(original, LAUNCHER, set_default=set_default)
    assert original in text
    assert engine.find(text) == Found(LAUNCHER, set_default)
    assert engine.add(text, LAUNCHER) == text
    later = engine.add(engine.add(original, LAUNCHER), LAUNCHER, set_default=set_default)
    assert later == text
    assert engine.remove(text, original or None) == (original or None)
    assert engine.remove(original, None) == original


@both
def test_what_an_admin_has_written_since_stays(engine: ModuleType) -> None:
    text = engine.add("# before\n", LAUNCHER) + "# since\n"
    assert engine.remove(text, "# before\n") == "# before\n# since\n"


@both
def test_another_launcher_takes_the_place_and_the_default_stays(engine: ModuleType) -> None:
    text = engine.add("", "/old/bin/vgpu-runtime", set_default=True)
    assert engine.add(text, LAUNCHER) == GOLDEN_DEFAULT[engine]


@pytest.mark.parametrize(
    ("engine", "text", "code", "named"),
    [
        (podman, "x = ", "VGPU-CFG-001", "not TOML"),
        (crio, "x = ", "VGPU-CFG-001", "not TOML"),
        (podman, 'engine = "x"\n', "VGPU-CFG-003", "engine='x' is not a table"),
        (podman, "[engine]\nruntimes = 3\n", "VGPU-CFG-003", "engine.runtimes"),
        (podman, '[engine.runtimes]\nvgpu = ["/usr/bin/crun"]\n', "VGPU-CFG-003", "not ours: '/usr/bin/crun'"),
        (podman, "[engine.runtimes]\nvgpu = []\n", "VGPU-CFG-003", "not ours"),
        (podman, '[engine.runtimes]\nother = ["/x"]\n', "VGPU-CFG-003", "in the way"),
        (crio, '[crio.runtime.runtimes.vgpu]\nruntime_path = "/usr/bin/crun"\n', "VGPU-CFG-003", "not ours"),
        (crio, "[crio]\nruntime = 1\n", "VGPU-CFG-003", "crio.runtime=1 is not a table"),
    ],
)
def test_what_cannot_be_edited_is_refused(engine: ModuleType, text: str, code: str, named: str) -> None:
    with pytest.raises(VgpuError) as caught:
        engine.add(text, LAUNCHER, path="/etc/x.conf")
    assert caught.value.code == code
    assert str(caught.value).startswith("/etc/x.conf: ") and named in str(caught.value)


@both
def test_a_runtime_of_ours_that_was_moved_is_not_taken_out_by_guess(engine: ModuleType) -> None:
    moved = "\n".join(line for line in GOLDEN[engine].splitlines() if not line.startswith("#")) + "\n"
    with pytest.raises(VgpuError) as caught:
        engine.remove(moved, None)
    assert caught.value.code == "VGPU-CFG-003"


def test_hooks_are_one_file_a_stage_as_the_schema_wants_it() -> None:
    for stage, word in hooks_d.STAGES.items():
        file = HookFile(stage, "/usr/bin/python3", "/opt/vgpu")
        hook = json.loads(file.add("", LAUNCHER))
        assert list(hook) == ["version", "hook", "when", "stages"] and hook["version"] == "1.0.0"
        assert hook["stages"] == [stage] and hook["when"] == {"annotations": {"^vgpu\\..*$": ".*"}}
        assert hook["hook"]["path"] == "/usr/bin/python3" and hook["hook"]["args"][4:6] == [
            "/opt/vgpu/lib/vgpu/python/vgpu_hook.py", word,
        ]  # fmt: skip
        assert hook["hook"]["env"] and hook["hook"]["timeout"] == 10
        assert file.add(file.text(), LAUNCHER) == file.text()
        assert file.remove(file.text(), None) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"hook": {"args": ["/usr/bin/other"]}}', '{"hook": {"args": [3]}}'])
def test_a_hook_of_somebody_else_is_left_alone(text: str) -> None:
    file = HookFile("createRuntime", "/usr/bin/python3", "/opt/vgpu")
    for change in (lambda: file.add(text, LAUNCHER, path="/h/a.json"), lambda: file.remove(text, None, "/h/a.json")):
        with pytest.raises(VgpuError) as caught:
            change()
        assert caught.value.code == "VGPU-CFG-001" and "/h/a.json" in str(caught.value)
