"""The state file: its layout is the header's, its making is idempotent, and it refuses what it cannot be."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from libcuda_wrap.sim import create
from libcuda_wrap.toolchain import ROOT, Toolchain
from oci_hook.errors import HostError

GIB = 1 << 30
OFFSETS = {
    "sizeof(struct vgs_state)": create.BYTES,
    "sizeof(struct vgs_gpu)": create.GPU.size,
    "sizeof(struct vgs_slot)": create.SLOT_BYTES,
    "sizeof(struct vgs_slot_gpu)": create.SLOT_GPU.size,
    "offsetof(struct vgs_state, fault_count)": create.FAULT_COUNT_AT,
    "offsetof(struct vgs_state, context_bytes)": create.CONTEXT_BYTES_AT,
    "offsetof(struct vgs_state, fault)": create.FAULT_AT,
    "sizeof(((struct vgs_state *)0)->fault)": create.FAULT_BYTES,
    "offsetof(struct vgs_state, gpus)": create.GPUS_AT,
    "offsetof(struct vgs_state, slots)": create.SLOTS_AT,
    "offsetof(struct vgs_gpu, lost)": create.GPU_LOST_AT,
    "offsetof(struct vgs_gpu, xid)": create.GPU_XID_AT,
    "offsetof(struct vgs_gpu, xid_count)": create.GPU_XID_AT + 8,
    "offsetof(struct vgs_gpu, minor)": create.GPU_LOST_AT + 4,
    "offsetof(struct vgs_gpu, memory_bytes)": 48 + 64 + 32,
    "offsetof(struct vgs_gpu, busy_ns)": create.GPU_LOST_AT + 12,
    "offsetof(struct vgs_slot_gpu, end_virtual_ns)": 24,
    "offsetof(struct vgs_slot, gpus)": create.SLOT.size,
    "VGS_MAX_GPUS": create.MAX_GPUS,
    "VGS_MAX_SLOTS": create.SLOTS,
    "VGS_MAGIC": create.MAGIC,
    "VGS_VERSION": create.VERSION,
}


def test_the_layout_is_the_headers(tmp_path: Path) -> None:
    lines = [f'printf("%llu\\n", (unsigned long long)({each}));' for each in OFFSETS]
    source = tmp_path / "layout.c"
    source.write_text(f'#include <stdio.h>\n#include "vgs_state.h"\nint main(void)\n{{{"".join(lines)}return 0;}}\n')
    program = Toolchain().program([source], tmp_path / "layout", flags=[f"-I{ROOT / 'libcuda_wrap/sim'}"])
    values = map(int, subprocess.run([program], capture_output=True, text=True, check=True).stdout.split())
    assert dict(zip(OFFSETS, values, strict=True)) == OFFSETS


def test_made_twice_is_made_once(tmp_path: Path) -> None:
    first = create.create(tmp_path / "sim", gpus=3, memory_bytes=2 * GIB, context_bytes=1 << 20)
    identity = (tmp_path / "sim/ctl").stat().st_ino
    assert create.create(tmp_path / "sim", gpus=3, memory_bytes=2 * GIB, context_bytes=1 << 20) == first
    assert (tmp_path / "sim/ctl").stat().st_ino == identity
    assert [gpu.uuid for gpu in first.gpus] == [create.gpu_uuid(index) for index in range(3)]
    assert [(gpu.memory_bytes, gpu.used_bytes, gpu.minor) for gpu in first.gpus] == [(2 * GIB, 0, i) for i in range(3)]
    assert sorted(path.name for path in (tmp_path / "sim").iterdir()) == ["ctl", "gpu0", "gpu1", "gpu2"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o666 for path in (tmp_path / "sim").iterdir())


def test_another_shape_is_refused_unless_replaced(tmp_path: Path) -> None:
    create.create(tmp_path, gpus=2)
    with pytest.raises(HostError) as caught:
        create.create(tmp_path, gpus=1)
    assert caught.value.code == "VGPU-HOST-003"
    assert len(create.create(tmp_path, gpus=1, replace=True).gpus) == 1
    assert not (tmp_path / "gpu1").exists()


@pytest.mark.parametrize(
    "values",
    [{"gpus": 0}, {"gpus": 17}, {"memory_bytes": -1}, {"memory_bytes": 1 << 50}, {"driver_version": ""},
     {"driver_version": "5" * 24}, {"driver_version": "é"}, {"context_bytes": -1}],
)  # fmt: skip
def test_values_that_cannot_be(tmp_path: Path, values: dict[str, int]) -> None:
    with pytest.raises(HostError) as caught:
        create.create(tmp_path / "sim", **values)  # type: ignore[arg-type]  # one of them is a text
    assert caught.value.code == "VGPU-CFG-003"
    assert not (tmp_path / "sim").exists()


@pytest.mark.parametrize("content", [None, b"", b"\0" * create.BYTES, b"x" * 100])
def test_what_is_no_state_file(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "ctl").write_bytes(content)
    with pytest.raises(HostError) as caught:
        create.read_state(tmp_path)
    assert caught.value.code == "VGPU-HOST-003"
    assert str(tmp_path) in str(caught.value)
