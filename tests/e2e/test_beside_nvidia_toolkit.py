"""Beside NVIDIA's container toolkit: a stand-in for its hooks mounts a real driver, before or after ours; whoever is
first, the program is under its quota, and the start works. On runc and crun."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import bundle, debian, installed, leftovers, matrix, nvidia, rootfs
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e
GIB = 1 << 30
SLICE = {"vgpu.memory": "8GiB", "vgpu.cores": "30"}
LIBDIR = f"/{rootfs.LIBDIR}"
ELSEWHERE = f"{LIBDIR}/nvidia/current"  # where Debian has them: the cache makes that a folder of the loader
BRANCHES = [550, *(pytest.param(branch, marks=pytest.mark.matrix) for branch in (470, 525, 535, 555))]
Change = Callable[[dict[str, Any]], None]
# the program, and every file that any loader or program could take for the driver
CHECK = f"""cuda_client fill && for file in $(busybox find /usr -name 'libcuda.so*'); do
    busybox cmp -s $file {LIBDIR}/libcuda.so.1 && echo ours: $file || echo theirs: $file; done"""
FILL = ("sh", "-c", CHECK)


def run(vgpu: Vgpu, folder: Path, tree: Path, change: Change, *args: str) -> bundle.Result:
    with bundle.container(vgpu.runtime, folder, tree, args, annotations=SLICE) as box:
        spec = json.loads(box.config.read_text())
        change(spec)
        box.config.write_text(json.dumps(spec))
        return box.run()


def require_quota(result: bundle.Result) -> None:
    assert result.code == 0, result
    assert f"took {8 * GIB} bytes" in result.output, result
    assert "one byte more: CUDA_ERROR_OUT_OF_MEMORY" in result.output
    assert "ours: " in result.output and "theirs: " not in result.output, result


def stand_in(*args: Any, **options: Any) -> nvidia.Toolkit:
    try:
        return nvidia.toolkit(*args, **options)
    except debian.NotOffered as missing:
        pytest.skip(str(missing))


@pytest.fixture(params=["prestart"])
def below(
    request: pytest.FixtureRequest, low_level: Path, e2e_folder: Path, needs_build: None, tmp_path: Path
) -> Iterator[Vgpu]:
    """vgpu above the stand-in's runtime, which appends its hook to a spec that has ours, and heeds nothing."""
    folder = e2e_folder / f"above-nvidia-{low_level.name}"
    toolkit = stand_in(folder / "toolkit", 550, low_level, heed_void=False, stage=request.param)
    vgpu = Vgpu(folder / "vgpu", folder / "state", folder / "log")
    if not vgpu.prefix.exists():
        installed.install(folder, toolkit.runtime)
    yield vgpu
    assert vgpu.containers() == [] and leftovers.mounts(tmp_path, vgpu.state) == []


@pytest.mark.parametrize("branch", BRANCHES)
def test_stand_in_prestart_hook_before_ours(
    vgpu: Vgpu, low_level: Path, c_tree: Path, tmp_path: Path, branch: int, record_property: matrix.Record
) -> None:
    toolkit = stand_in(tmp_path / "toolkit", branch, low_level, heed_void=False)
    beside = f"{matrix.SIMULATED}, beside NVIDIA {toolkit.libraries[0].name.partition('.so.')[2]}"
    program = Path("/usr/bin/crun" if low_level.name.startswith("crun") else low_level)
    matrix.row(record_property, engine="none (OCI bundle)", runtime=program, driver=beside)
    require_quota(run(vgpu, tmp_path, c_tree, toolkit.legacy, *FILL))


def test_stand_in_prestart_hook_alone_would_win(low_level: Path, c_tree: Path, tmp_path: Path) -> None:
    """The test of the tests: without us the program gets the real driver, which finds no GPU here."""
    toolkit = stand_in(tmp_path / "toolkit", 550, low_level)
    for change in (toolkit.legacy, toolkit.cdi):
        with bundle.container(low_level, tmp_path, c_tree, ("cuda_client", "fill")) as box:
            spec = json.loads(box.config.read_text())
            change(spec)
            box.config.write_text(json.dumps(spec))
            result = box.run()
        assert result.code == 1 and "CUDA_ERROR_NO_DEVICE" in result.output, result


def test_stand_in_prestart_hook_after_ours(below: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    require_quota(run(below, tmp_path, c_tree, lambda spec: None, *FILL))


def test_a_hook_of_others_at_our_stage_comes_first(vgpu: Vgpu, low_level: Path, c_tree: Path, tmp_path: Path) -> None:
    """An engine, or a tool that stands above ours, has a createRuntime hook that mounts a driver."""
    toolkit = stand_in(tmp_path / "toolkit", 550, low_level, heed_void=False)
    require_quota(run(vgpu, tmp_path, c_tree, lambda spec: toolkit.legacy(spec, "createRuntime"), *FILL))


@pytest.mark.parametrize("below", ["createRuntime"], indirect=True)
def test_a_hook_of_others_after_ours_leaves_the_drivers_name_ours(below: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    """A runtime below ours adds it behind our back. What loads libcuda.so.1 is held; the file that came later has a
    name of its own, and is not covered: docs/engines.md."""
    result = run(below, tmp_path, c_tree, lambda spec: None, *FILL)
    assert result.code == 0 and f"took {8 * GIB} bytes" in result.output, result
    assert f"ours: {LIBDIR}/libcuda.so.1\n" in result.output
    assert result.output.count("theirs: ") == 1 and f"theirs: {LIBDIR}/libcuda.so.550." in result.output, result


@pytest.mark.parametrize("libdir", [LIBDIR, ELSEWHERE, "/usr/lib64"])
def test_stand_in_cdi_mounts_and_hooks(vgpu: Vgpu, low_level: Path, c_tree: Path, tmp_path: Path, libdir: str) -> None:
    toolkit = stand_in(tmp_path / "toolkit", 550, low_level, libdir=libdir)
    require_quota(run(vgpu, tmp_path, c_tree, toolkit.cdi, *FILL))
    cached = run(vgpu, tmp_path, c_tree, toolkit.cdi, "grep", "-ac", libdir, "/etc/ld.so.cache")
    assert cached.code == 0, cached  # its hook did run


def test_stand_in_legacy_hook_stays_and_brings_nothing(
    vgpu: Vgpu, low_level: Path, c_tree: Path, tmp_path: Path
) -> None:
    """The driver comes once: NVIDIA_VISIBLE_DEVICES is void, which the hook heeds as the real one does."""
    toolkit = stand_in(tmp_path / "toolkit", 550, low_level)
    seen = run(vgpu, tmp_path, c_tree, toolkit.legacy, "sh", "-c", "cat /proc/mounts; env")
    assert seen.code == 0, seen
    assert "NVIDIA_VISIBLE_DEVICES=void" in seen.output
    assert not [library.name for library in toolkit.libraries if library.name in seen.output]
    assert f"{LIBDIR}/libcuda.so.1 " in seen.output
