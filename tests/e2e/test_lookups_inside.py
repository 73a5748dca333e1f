"""In a real container: by whatever name or path a program looks for the driver, it finds the slice."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from libcuda_wrap.sim import create
from tests.harness import bundle, rootfs
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e
GIB = 1 << 30
OUT_OF_MEMORY = 2
SLICE = {"vgpu.memory": "8GiB"}
ROOT = Path(__file__).parents[2]
COMPAT = "usr/local/cuda-12.4/compat"
NAMES = (
    "libcuda.so", "libcuda.so.1", f"libcuda.so.{create.DRIVER_VERSION}", "libcuda.so.550.1",
    f"/usr/lib/{rootfs.MULTIARCH}/libcuda.so.1", f"/usr/lib/{rootfs.MULTIARCH}/libcuda.so.550.1",
    f"/{COMPAT}/libcuda.so", f"/{COMPAT}/libcuda.so.1", f"/{COMPAT}/libcuda.so.550.1",
)  # fmt: skip
# the image's own settings first, then what an image's start script may do
SCRIPT = """
look() { find_driver {NAMES}; }
look
echo after ldconfig; ldconfig; look
echo with the folder; echo /{COMPAT} >/etc/ld.so.conf; ldconfig; look
echo by environment; LD_LIBRARY_PATH=/{COMPAT}:/opt/lib look
"""


@pytest.fixture(scope="session")
def image(e2e_folder: Path, needs_build: None) -> Path:
    """A root with drivers of its own, as images of CUDA have them: the simulated one, so that a look-up that reaches
    one of them would show a whole GPU."""
    tree = e2e_folder / "with-drivers"
    tree.mkdir()
    rootfs.glibc_root(tree)
    program = tree / "usr/bin/find_driver"
    command = ["gcc", "-O1", "-Wall", "-Werror", str(ROOT / "tests/fixtures/find_driver.c"), "-o", str(program), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    (tree / "usr/sbin").mkdir()
    (tree / "sbin").symlink_to("usr/sbin")
    shutil.copy2("/sbin/ldconfig", tree / "usr/sbin/ldconfig")
    (tree / "etc/ld.so.conf").write_text(f"/usr/lib/{rootfs.MULTIARCH}\n")
    own = tree / "opt/app/find_driver"  # it brings a driver of its own, and looks there first
    own.parent.mkdir(parents=True)
    subprocess.run([*command[:-3], "-o", str(own), "-ldl", "-Wl,-rpath,$ORIGIN/lib"], check=True, timeout=60)
    driver = ROOT / "build/sim" / f"libcuda.so.{create.DRIVER_VERSION}"
    for folder in (tree / COMPAT, tree / rootfs.LIBDIR, own.parent / "lib"):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(driver, folder / "libcuda.so.550.1")
    (own.parent / "lib/libcuda.so.1").symlink_to("libcuda.so.550.1")
    (tree / COMPAT / "libcuda.so").symlink_to("libcuda.so.1")
    (tree / COMPAT / "libcuda.so.1").symlink_to("libcuda.so.550.1")
    subprocess.run([tree / "usr/sbin/ldconfig", "-r", tree], check=True, timeout=60)
    return tree


def test_no_name_reaches_a_driver_past_the_wrapper(vgpu: Vgpu, image: Path, tmp_path: Path) -> None:
    script = SCRIPT.replace("{NAMES}", " ".join(NAMES)).replace("{COMPAT}", COMPAT)
    args = ["sh", "-c", script]
    with bundle.container(vgpu.runtime, tmp_path / "b", image, args, annotations=SLICE) as box:
        result = box.run()
    assert result.code == 0, result
    lines = [line.split() for line in result.output.splitlines() if line.startswith(("libcuda", "/"))]
    assert len(lines) == 4 * len(NAMES), result.output
    found = [line for line in lines if line[1] != "absent"]
    assert {tuple(line[1:]) for line in found} == {(str(8 * GIB), str(OUT_OF_MEMORY))}, result.output
    assert {"libcuda.so.1", f"/{COMPAT}/libcuda.so.1", f"/{COMPAT}/libcuda.so.550.1"} <= {line[0] for line in found}


def test_a_driver_that_the_programs_own_runpath_leads_to_is_covered(vgpu: Vgpu, image: Path, tmp_path: Path) -> None:
    args = ["/opt/app/find_driver", "libcuda.so.1", "libcuda.so.550.1", "/opt/app/lib/libcuda.so.1"]
    with bundle.container(vgpu.runtime, tmp_path / "b", image, args, annotations=SLICE) as box:
        result = box.run()
    assert [line.split()[1:] for line in result.output.splitlines()] == [[str(8 * GIB), str(OUT_OF_MEMORY)]] * 3, result
    with bundle.container(vgpu.runtime, tmp_path / "c", image, args) as box:  # without a slice: its own, a whole GPU
        result = box.run()
    assert f"libcuda.so.1 {8 * GIB}" not in result.output and "absent" not in result.output, result


def test_without_a_slice_the_image_has_its_own_drivers(vgpu: Vgpu, image: Path, tmp_path: Path) -> None:
    """That the test above would notice: here the same image's copies are loaded."""
    args = ["find_driver", *NAMES]
    with bundle.container(vgpu.runtime, tmp_path / "b", image, args) as box:
        result = box.run()
    assert f"/{COMPAT}/libcuda.so.1 0 " in result.output and "libcuda.so.1 absent" not in result.output
