"""The wheel: what is in it, and that it is all that one needs to give a container its slice."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from artefacts import archive, closure

from tests.harness import bundle, images, leftovers, wheels
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.timeout(300)  # the first run downloads what an environment needs
ROOT = Path(__file__).parents[2]
GIB = 1 << 30
PARTS = {
    "launcher/vgpu-runtime", "launcher/vgpu-hook", "wrapper/libcuda.so.1", "wrapper/libnvidia-ml.so.1",
    "sim/libcuda.so.580.65.06", "sim/libnvidia-ml.so.580.65.06", "python/oci_hook/_vgsys.abi3.so",
}  # fmt: skip


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """From a folder and with an environment that have nothing to do with the checkout."""
    return subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, timeout=100, cwd="/", check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )  # fmt: skip


def test_one_wheel_serves_every_python_and_glibc_that_we_support(made: wheels.Made) -> None:
    assert made.wheel.name.endswith("-cp311-abi3-manylinux_2_17_x86_64.whl")
    files = archive.read(made.wheel).files
    assert {path.removeprefix("vgpu/parts/") for path, data in files.items() if data[:4] == b"\x7fELF"} == {
        *PARTS, "oci_hook/_vgsys.abi3.so",
    }  # fmt: skip


def test_it_carries_the_bytes_that_make_build_made(made: wheels.Made, needs_build: None) -> None:
    files = archive.read(made.wheel).files
    for part in PARTS:
        assert files[f"vgpu/parts/{part}"] == (ROOT / "build" / part).read_bytes(), part


def test_it_has_no_sources_of_what_is_compiled_and_nothing_of_this_machine(made: wheels.Made) -> None:
    for artefact in (made.wheel, made.sdist):
        files = archive.read(artefact).files
        assert not [path for path, data in files.items() if str(ROOT).encode() in data]
    assert not [path for path in archive.read(made.wheel).files if path.endswith((".c", ".o", ".pyc"))]


def test_every_elf_file_finds_what_it_needs(made: wheels.Made) -> None:
    found = [archive.read(path) for path in (made.wheel, made.sdist)]
    assert [finding.line() for one in found for finding in closure.check(one, closure.rules())] == []
    assert not any(data[:4] == b"\x7fELF" for data in found[1].files.values())  # a source archive has none


def test_an_architecture_that_is_not_built_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"VGPU-HOST-008: no build for 'riscv64'; to mend it: VGPU_ARCH=") as caught:
        wheels.build(tmp_path, environment={"VGPU_ARCH": "riscv64"})
    assert "Traceback" not in str(caught.value)


@pytest.mark.slow
def test_its_command_works_in_an_environment_of_its_own(programs: Path, tmp_path: Path) -> None:
    version = run(programs / "vgpu", "version")
    assert (version.stdout, version.returncode) == (f"{wheels.project()['project']['version']}\n", 0), version
    cluster, trace = tmp_path / "cluster.yaml", tmp_path / "trace.csv"
    cluster.write_text("nodes:\n- {count: 2, gpus: 4, memory: 80GiB}\n")
    common = ["simulate", "--cluster", str(cluster), "--trace", str(trace)]
    made = run(programs / "vgpu", *common, "--generate", "shared", "--jobs", "50")
    assert made.returncode == 0, made
    simulated = run(programs / "vgpu", *common)
    assert simulated.returncode == 0 and "binpack" in simulated.stdout, simulated


IMPORT_ALL = """
import importlib, pkgutil, sys
for name in ("oci_hook", "libcuda_wrap", "runtime_config", "vgpu"):
    package = importlib.import_module(name)
    for found in pkgutil.walk_packages(package.__path__, name + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
            print(found.name)
"""


@pytest.mark.slow
def test_every_module_finds_what_it_imports(programs: Path) -> None:
    """Of the declared dependencies alone: what only the tests' environment has is missing here."""
    done = run(programs / "python", "-I", "-c", IMPORT_ALL)
    assert done.returncode == 0, done
    assert {"vgpu.cli", "oci_hook._vgsys", "vgpu.monitor.exporter"} <= set(done.stdout.split())


@pytest.fixture
def from_wheel(programs: Path, e2e_folder: Path, needs_root: None) -> Iterator[Vgpu]:
    """vgpu installed by the wheel's own command, before runc."""
    folder = e2e_folder / "from-wheel"
    vgpu = Vgpu(folder / "vgpu", folder / "state", folder / "log")
    done = run(
        programs / "vgpu", "install", "--prefix", str(vgpu.prefix), "--runtime", str(bundle.low_level("runc", folder)),
        "--simulate-gpus", "2", "--state-dir", str(vgpu.state), "--log-dir", str(vgpu.log), "--units", "none",
    )  # fmt: skip
    assert done.returncode == 0, done
    vgpu("inventory", "--refresh")
    yield vgpu
    assert vgpu.containers() == []
    done = run(programs / "vgpu", "uninstall", "--prefix", str(vgpu.prefix), "--units", "none")
    assert done.returncode == 0, done
    assert leftovers.mounts(folder) == []


@pytest.mark.e2e
@pytest.mark.slow
def test_a_container_has_its_slice_with_nothing_but_the_wheel(
    from_wheel: Vgpu, e2e_folder: Path, tmp_path: Path, needs_build: None
) -> None:
    tree = images.tree(e2e_folder / "trees", "c")
    ask = {"vgpu.memory": "8GiB", "vgpu.cores": "30"}
    with bundle.container(from_wheel.runtime, tmp_path / "b", tree, ["cuda_client", "fill"], annotations=ask) as box:
        result = box.run()
    assert result.code == 0, result
    assert str(8 * GIB) in result.output and "CUDA_ERROR_OUT_OF_MEMORY" in result.output
    prefix = archive.read(from_wheel.prefix)
    assert [finding.line() for finding in closure.check(prefix, closure.rules())] == []
    assert not [path for path, data in prefix.files.items() if str(ROOT).encode() in data]
