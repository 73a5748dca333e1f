"""Images and layers that are packed with zstd."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from looked import findings

from oci_hook.errors import ImageError
from tests.harness import packed, rootfs
from tests.harness.packed import Entry
from vgpu.doctor.image import layer, zstd
from vgpu.doctor.image.driver import Driver
from vgpu.doctor.image.layer import Budget
from vgpu.doctor.image.tree import Tree

Root = Callable[..., Path]
CONFIG = packed.document()
SKIPPED = b"\x50\x2a\x4d\x18\x05\0\0\0hello"  # a frame that has no content: zstd:chunked keeps its table in one


def compressed(data: bytes, level: int = 1) -> bytes:
    return zstandard.ZstdCompressor(level=level).compress(data)


def unpacked(data: bytes) -> bytes:
    stream, found = zstd.Unpacked(io.BytesIO(data)), b""
    while more := stream.read(1 << 20):
        found += more
    return found


@pytest.mark.parametrize("kind", ["layout", "saved", "tree"])
def test_the_same_fault_is_found_in_layers_packed_with_zstd(
    kind: str, debian_root: Root, tmp_path: Path, driver: Driver
) -> None:
    root = debian_root("bookworm")
    (root / rootfs.LIBDIR / "libm.so.6").unlink()
    one = compressed(packed.layer(packed.of_tree(root)))
    path = tmp_path / "image"
    if kind == "layout":
        packed.written(packed.layout([one], CONFIG, packed=False), path)
    else:
        path.write_bytes(packed.saved([one], CONFIG) if kind == "saved" else one)
    (found,) = [one for one in findings(path, driver) if one.severity == "failure"]
    assert found.code == "VGPU-DEP-001" and "libm.so.6" in found.evidence


def test_several_frames_and_frames_to_skip() -> None:
    data = os.urandom(5000)
    assert unpacked(compressed(data) + SKIPPED + compressed(b"more") + SKIPPED) == data + b"more"
    assert unpacked(b"") == b""


@pytest.mark.parametrize("damage", ["cut", "flipped", "rest"])
def test_a_broken_one_is_told_as_broken(damage: str, tmp_path: Path) -> None:
    whole = compressed(packed.layer([Entry("a", os.urandom(100_000))]))
    data = {"cut": whole[:-3000], "flipped": whole[:9] + b"\xff" * 99, "rest": whole[:-1]}[damage]
    (tmp_path / "image").write_bytes(data)
    assert [one.code for one in findings(tmp_path / "image", None)] == ["VGPU-IMG-007"]


def test_a_bomb_is_stopped_by_its_size_and_never_in_memory() -> None:
    class Few(Budget):
        def __init__(self) -> None:
            super().__init__()
            self.bytes = 8 << 20

    import tarfile

    zeros = tarfile.TarInfo("zeros")
    zeros.size = 1 << 40
    bomb = compressed(zeros.tobuf(tarfile.GNU_FORMAT) + bytes(256 << 20), level=19)
    assert len(bomb) < 1 << 16
    started = time.monotonic()
    with pytest.raises(ImageError, match="more bytes when unpacked"):
        layer.read(io.BytesIO(bomb), Few())
    assert time.monotonic() - started < 20
    stream = zstd.Unpacked(io.BytesIO(bomb))
    assert stream.read(1) and len(stream.read(-1)) < 33 << 20


def test_a_window_that_wants_all_memory_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True, write_content_size=0)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = frame.compress(os.urandom(1000)) + frame.flush()
    with pytest.raises(ImageError, match="cannot be read") as caught:
        Tree([layer.read(io.BytesIO(data), Budget())])
    assert caught.value.code == "VGPU-IMG-007"


def test_without_the_library_the_remedy_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "image").write_bytes(compressed(packed.layer([Entry("a", b"1")])))
    (found,) = findings(tmp_path / "image", None)
    assert found.code == "VGPU-IMG-006"
    assert "python3-zstandard" in found.remedy and "zstd -d" in found.remedy
