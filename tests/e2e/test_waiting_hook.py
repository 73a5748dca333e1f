"""The hook that the shim leaves behind does the work, and without it the hook that is started does the same."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness import bundle, images, installed
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
    assert "_listen(ledger.folder(" in text
    (package / "standby.py").write_text(text.replace("_listen(ledger", "_listen('/no such folder' + ledger"))
    for compiled in (package / "__pycache__").glob("standby.*"):
        compiled.unlink()
    for pack in ("shim.pack", "hook.pack"):
        (own_vgpu.prefix / "lib/vgpu/python" / pack).unlink()
    result = start(own_vgpu, c_tree, tmp_path / "b")
    assert result.code == 0, result
    shutil.rmtree(tmp_path / "b")
    (own_vgpu.prefix / "lib/vgpu/python/vgpu_hook.py").write_text("import sys; sys.exit(9)\n")
    assert start(own_vgpu, c_tree, tmp_path / "b").code != 0, "then it was not the started hook that did the work"
    subprocess.run([own_vgpu.prefix / "bin/vgpu", "ps"], check=True, capture_output=True, timeout=30)


def bind_mount(source: Path, destination: str) -> dict[str, object]:
    return {"destination": destination, "type": "bind", "source": str(source), "options": ["rbind", "ro"]}


def test_what_a_mount_of_the_user_hides_is_not_taken_as_there(own_vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    """The hook that waits has looked at the image before the runtime made the user's mounts."""
    libraries = tmp_path / "libraries"
    libraries.mkdir(mode=0o755)
    (folder,) = {path.parent for path in c_tree.rglob("libc.so.6")}
    inside = f"/{folder.relative_to(c_tree)}"
    mounts = [bind_mount(libraries, inside)]
    with bundle.container(own_vgpu.runtime, tmp_path / "b", c_tree, ["true"], annotations=SLICE, mounts=mounts) as box:
        assert box.run().code != 0
    (failure,) = own_vgpu.failures()
    assert failure["code"].startswith("VGPU-DEP-"), failure


@pytest.mark.parametrize("destination", ["/usr/local/cuda-13/compat", "/link/cuda-13/compat"])
def test_a_copy_that_a_mount_of_the_user_brings_is_covered(
    own_vgpu: Vgpu, images_folder: Path, tmp_path: Path, destination: str
) -> None:
    """Also where a link of the image leads the runtime to another place than the one that config.json names."""
    tree = tmp_path / "tree"
    shutil.copytree(images.tree(images_folder, "c"), tree, symlinks=True)
    (tree / "usr/local/cuda-13/compat").mkdir(parents=True, exist_ok=True)
    (tree / "link").symlink_to("/usr/local")
    copy = tmp_path / "compat"
    copy.mkdir(mode=0o755)
    (copy / "libcuda.so.1").write_text("not the wrapper")
    mounts = [bind_mount(copy, destination)]
    args = ["busybox", "head", "-c", "4", "/usr/local/cuda-13/compat/libcuda.so.1"]
    with bundle.container(own_vgpu.runtime, tmp_path / "b", tree, args, annotations=SLICE, mounts=mounts) as box:
        result = box.run()
    assert result.code == 0 and result.output.startswith("\x7fELF"), result
