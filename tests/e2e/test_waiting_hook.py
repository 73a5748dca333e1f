"""The hook that the shim leaves behind does the work, and without it the hook that is started does the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness import bundle, installed
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e
SLICE = {"vgpu.memory": "8GiB"}
FAILS_AT_PRESTART = """
import sys
if sys.argv[1] == "prestart":
    sys.exit(9)
exec(compile(open(__file__.replace("vgpu_hook", "vgpu_real")).read(), __file__, "exec"))
"""


@pytest.fixture
def own_vgpu(low_level: Path, tmp_path: Path) -> Vgpu:
    """An installation that a test may break."""
    return installed.install(tmp_path, low_level)


def start(vgpu: Vgpu, tree: Path, folder: Path) -> bundle.Result:
    with bundle.container(vgpu.runtime, folder, tree, ["cuda_client", "fill"], annotations=SLICE) as box:
        return box.run()


def test_the_hook_that_waits_does_the_work(own_vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    script = own_vgpu.prefix / "lib/vgpu/python/vgpu_hook.py"
    script.rename(script.with_name("vgpu_real.py"))
    script.write_text(FAILS_AT_PRESTART)
    result = start(own_vgpu, c_tree, tmp_path / "b")
    assert result.code == 0, result
    assert "CUDA_ERROR_OUT_OF_MEMORY" in result.output
    assert own_vgpu.containers() == []


def test_without_it_the_hook_is_started(own_vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    package = own_vgpu.prefix / "lib/vgpu/python/oci_hook"
    text = (package / "standby.py").read_text()
    assert "listener = _listen(" in text
    (package / "standby.py").write_text(text.replace("listener = _listen(", "listener = _listen('/no such folder' + "))
    for compiled in (package / "__pycache__").glob("standby.*"):
        compiled.unlink()
    result = start(own_vgpu, c_tree, tmp_path / "b")
    assert result.code == 0, result
    shutil.rmtree(tmp_path / "b")
    (own_vgpu.prefix / "lib/vgpu/python/vgpu_hook.py").write_text("import sys; sys.exit(9)\n")
    assert start(own_vgpu, c_tree, tmp_path / "b").code != 0, "then it was not the started hook that did the work"
    subprocess.run([own_vgpu.prefix / "bin/vgpu", "ps"], check=True, capture_output=True, timeout=30)
