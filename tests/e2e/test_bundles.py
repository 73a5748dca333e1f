"""The way of one container on plain runc and crun, without an engine: annotations ask, as Podman passes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness import bundle, images
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e
GIB = 1 << 30
SLICE = {"vgpu.memory": "8GiB", "vgpu.cores": "30"}


def test_a_container_sees_its_slice_and_nothing_above(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    with bundle.container(vgpu.runtime, tmp_path / "b", c_tree, ["cuda_client", "fill"], annotations=SLICE) as box:
        result = box.run()
    assert result.code == 0, result
    assert str(8 * GIB) in result.output
    assert "CUDA_ERROR_OUT_OF_MEMORY" in result.output
    assert str(80 * GIB) not in result.output


@pytest.mark.parametrize("options", [{"readonly": True}, {"uid": 1000}, {"readonly": True, "uid": 1000}], ids=str)
def test_a_slice_needs_neither_a_writable_root_nor_root(
    vgpu: Vgpu, c_tree: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    args = ["cuda_client", "fill"]
    with bundle.container(vgpu.runtime, tmp_path / "b", c_tree, args, annotations=SLICE, **options) as box:
        result = box.run()
    assert result.code == 0, result
    assert "CUDA_ERROR_OUT_OF_MEMORY" in result.output


def test_the_environment_asks_too(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    args = ["cuda_client", "info"]
    with bundle.container(vgpu.runtime, tmp_path / "b", c_tree, args, env=["NVIDIA_GPU_MEMORY_LIMIT=1024"]) as box:
        result = box.run()
    assert result.code == 0, result
    assert str(1 * GIB) in result.output


def test_exec_sees_the_same_slice(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    with bundle.container(vgpu.runtime, tmp_path / "b", c_tree, ["sleep", "60"], annotations=SLICE) as box:
        assert box.create().code == 0
        box.start()
        done = box.exec(["cuda_client", "fill"])
        bundle.kill(box.pid)
    assert done.returncode == 0, done
    assert str(8 * GIB) in done.stdout


def test_what_asks_for_nothing_is_not_even_read_twice(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    with bundle.container(vgpu.runtime, tmp_path / "b", c_tree, ["ls", "/usr/lib"]) as box:
        before, status = box.config.read_bytes(), os.stat(box.config)
        result = box.run()
        assert box.config.read_bytes() == before
        after = os.stat(box.config)
    assert (after.st_ino, after.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert result.code == 0
    assert "vgpu" not in result.output
    assert vgpu.containers() == []
    assert [entry for entry in vgpu.audit() if entry["id"] == box.id] == []


def test_binpack_fills_one_gpu_and_spread_takes_the_other(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    boxes = [
        bundle.make(vgpu.runtime, tmp_path / "b", c_tree, ["sleep", "60"], annotations={**SLICE, "vgpu.policy": policy})
        for policy in ("binpack", "binpack", "spread")
    ]
    try:
        for box in boxes:
            assert box.create().code == 0
        placed = [vgpu.allocation(box.id)["placement"]["slices"][0]["index"] for box in boxes]
        assert placed == [0, 0, 1]
        assert vgpu.given_out() == {0: 16 * GIB, 1: 8 * GIB}
    finally:
        for box in boxes:
            box.delete()


def test_what_does_not_fit_is_refused_with_the_reason_of_each_gpu(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    args = ["true"]
    with bundle.container(vgpu.runtime, tmp_path / "b", c_tree, args, annotations={"vgpu.memory": "81GiB"}) as box:
        result = box.create()
    assert result.code == 4, result
    assert "VGPU-PLC-001" in box_line(result)
    assert box_line(result).count("CardInsufficientMemory") >= 2
    assert "GPU 0" in box_line(result) and "GPU 1" in box_line(result)
    assert vgpu.failures()[-1]["code"] == "VGPU-PLC-001"
    assert vgpu.containers() == []


@pytest.mark.parametrize(
    ("tree", "code", "named"),
    [
        ("no-libpthread", "VGPU-DEP-001", "libpthread.so.0"),
        ("old-glibc", "VGPU-DEP-002", "libc.so.6"),
        ("musl", "VGPU-DEP-003", "musl"),
        ("no-glibc", "VGPU-DEP-004", "libc.so.6"),
    ],
)
def test_an_image_in_which_the_driver_cannot_load_is_refused(
    vgpu: Vgpu, images_folder: Path, tmp_path: Path, tree: str, code: str, named: str
) -> None:
    root = images.tree(images_folder, tree)
    with bundle.container(vgpu.runtime, tmp_path / "b", root, ["busybox", "true"], annotations=SLICE) as box:
        result = box.create()
    assert result.code != 0
    failure = vgpu.failures()[-1]  # crun throws away what a hook says: the record is what an operator reads
    assert failure["code"] == code, failure
    assert named in failure["message"]
    assert failure["remedy"]
    assert vgpu.containers() == []


def test_delete_gives_the_slice_back_and_the_audit_log_tells(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    with bundle.container(vgpu.runtime, tmp_path / "b", c_tree, ["true"], annotations=SLICE) as box:
        assert box.run().code == 0
    assert vgpu.containers() == []
    assert [entry["event"] for entry in vgpu.audit() if entry["id"] == box.id] == ["allocate", "arm", "release"]


def box_line(result: bundle.Result) -> str:
    """The one line of ours in what the runtime said."""
    lines = [line for line in result.output.splitlines() if line.startswith("vgpu: ")]
    assert len(lines) == 1, result
    return lines[0]
