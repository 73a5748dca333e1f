"""The bytes that the shim writes are what the C headers say: read back through cffi from the headers themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cffi
import pytest

from oci_hook import quota_file
from oci_hook.records import Slice

INCLUDE = Path(__file__).parents[2] / "libcuda_wrap/include"
SLICES = (Slice(1, "GPU-one", 8 << 30, 30), Slice(0, "GPU-" + "9" * 36, (1 << 44) - 1, 0))


@pytest.fixture(scope="module")
def layout() -> Any:
    ffi = cffi.FFI()
    texts = [(INCLUDE / name).read_text() for name in ("vgw_quota.h", "vgw_usage.h")]
    numbers = dict(re.findall(r"#define\s+(VGW_\w+)\s+(\d+)u", "\n".join(texts)))
    for text in texts:
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
        text = re.sub(r"^(#|_Static_assert).*$", "", text, flags=re.M)
        for name, value in numbers.items():
            text = text.replace(name, value)
        ffi.cdef(text)
    return ffi


def constants() -> dict[str, int]:
    text = "".join((INCLUDE / name).read_text() for name in ("vgw_quota.h", "vgw_usage.h"))
    return {name: int(value, 0) for name, value in re.findall(r"#define\s+(VGW_\w+)\s+(0x[0-9a-fA-F]+|\d+)u", text)}


def test_the_quota_file_read_by_the_header(layout: Any) -> None:
    data = quota_file.quota("c" * 64, SLICES, burst="soft", priority="high")
    assert len(data) == layout.sizeof("struct vgw_quota")
    found = layout.from_buffer("struct vgw_quota *", data)
    assert (found.magic, found.version) == (constants()["VGW_QUOTA_MAGIC"], constants()["VGW_QUOTA_VERSION"])
    assert (found.bytes, found.gpu_count, found.generation) == (len(data), 2, 1)
    assert layout.string(found.container_id) == b"c" * 64
    for part, slice_ in zip(found.gpus, SLICES, strict=False):
        assert layout.string(part.uuid).decode() == slice_.uuid
        assert part.memory_bytes == slice_.memory_bytes
        assert part.cores_percent == (slice_.cores_percent or 100)
        assert part.flags == constants()["VGW_FLAG_SOFT"]
        assert part.priority == 2
        assert part.charge_permille == 0
        assert (part.charge_until_s, bytes(layout.buffer(part.reserved))) == (0, bytes(52))
    assert bytes(layout.buffer(found.gpus + 2, (16 - 2) * 128)) == bytes((16 - 2) * 128)


def test_a_long_id_is_cut_and_ends_with_nul(layout: Any) -> None:
    found = layout.from_buffer("struct vgw_quota *", quota_file.quota("x" * 200, SLICES, burst="hard", priority="low"))
    assert layout.string(found.container_id) == b"x" * 79
    assert (found.gpus[0].flags, found.gpus[0].priority) == (0, 0)


def test_the_usage_header_read_by_the_header(layout: Any) -> None:
    size = layout.sizeof("struct vgw_usage")
    assert size == quota_file.USAGE_BYTES
    header = quota_file.usage_header()
    assert len(header) == layout.offsetof("struct vgw_usage", "gpus")
    found = layout.from_buffer("struct vgw_usage *", header.ljust(size, b"\0"))
    assert (found.magic, found.version) == (constants()["VGW_USAGE_MAGIC"], constants()["VGW_USAGE_VERSION"])
    assert (found.bytes, found.slot_count) == (size, constants()["VGW_MAX_SLOTS"])
    assert (found.armed_ns, found.wrapper_version, found.slot_high) == (0, 0, 0)
