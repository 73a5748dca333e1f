"""However a program finds a function, it finds ours where we have one, and the driver's own where we do not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from libcuda_wrap import build
from libcuda_wrap.gen import table
from libcuda_wrap.toolchain import PACKAGE, Toolchain
from tests.libcuda_wrap.wrapped import GIB, OK, Box, part

ROWS = table.read(PACKAGE / "entry_points.yaml")
OURS, DRIVERS = "libcuda.so.1", "libvgpu-driver.so"
LEGACY, PER_THREAD = 0, 2


@pytest.mark.parametrize("how", ["dlsym", "deepbind", "default", "next", "dlvsym"])
def test_by_the_loader(plain_box: Box, how: str) -> None:
    """Twice: who gives way to another library the first time must not the second."""
    plain_box.fresh(part(0, GIB))
    client = plain_box.client()
    for row in [*ROWS, *ROWS]:
        expected = [OURS, row.name] if row.ours else [DRIVERS]
        found = client.words(f"find {how} {row.name}")[1:]
        assert found[: len(expected)] == expected, row.name


@pytest.mark.parametrize("name", ["libcuda.so", "libcuda.so.1", "libcuda.so.580.65.06"])
def test_by_every_name_of_the_library(plain_box: Box, name: str) -> None:
    """The hook mounts the wrapper over all of them; that it does is test_lookups_inside.py's business."""
    for alias in ("libcuda.so", "libcuda.so.580.65.06"):
        path = plain_box.folder / "lib" / alias
        path.unlink(missing_ok=True)
        path.symlink_to(OURS)
    plain_box.fresh(part(0, GIB))
    client = plain_box.client()
    assert client.words(f"find {name} cuMemAlloc_v2")[2] == "cuMemAlloc_v2"
    assert client.words(f"find {name} cuMemAlloc_v2")[1].startswith("libcuda.so")
    assert client.words(f"find {name} cuMemcpy")[1] == DRIVERS


def _asked(name: str) -> tuple[str, int]:
    """The name without version and stream suffix, and the flag that asks for the per-thread kind."""
    base, suffix = re.fullmatch(r"(\w+?)(?:_v\d+)?(_pt[ds][sz])?", name).groups()  # type: ignore[union-attr]
    return base, PER_THREAD if suffix else LEGACY


@pytest.mark.parametrize("how", ["v1", "v2"])
def test_by_the_driver(plain_box: Box, how: str) -> None:
    """Every function that we define, asked for by its base name, its first version and its kind of stream."""
    plain_box.fresh(part(0, GIB))
    plain_box.of_cuda(max(row.since for row in ROWS))
    client = plain_box.client().ready()
    for row in (row for row in ROWS if row.ours):
        base, flags = _asked(row.name)
        result, library, symbol = client.words(f"find {how} {base} {row.since} {flags}")
        assert (result, library, symbol) == ("0", OURS, row.name)


def test_no_driver_function_is_hidden_or_changed(plain_box: Box) -> None:
    """The wrapper exports exactly the functions that it defines."""
    said = subprocess.run(
        ["nm", "-D", "--defined-only", plain_box.folder / "lib" / OURS], capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[-1] for line in said.splitlines()} == {row.name for row in ROWS if row.ours}


@pytest.mark.parametrize("name", ["libcuda.so.1", "libnvidia-ml.so.1"])
def test_no_symbol_version_above_glibc_2_17(plain_box: Box, name: str) -> None:
    said = subprocess.run(
        ["readelf", "-V", plain_box.folder / "lib" / name], capture_output=True, text=True, check=True
    )
    versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", said.stdout)}
    assert versions and max(versions) <= (2, 17)


def test_loading_does_no_work(plain_box: Box) -> None:
    """No constructor, and no file of the box is opened by a program that never calls us."""
    said = subprocess.run(
        ["readelf", "-d", plain_box.folder / "lib" / OURS], capture_output=True, text=True, check=True
    ).stdout
    assert "INIT_ARRAY" not in said and "(INIT)" not in said
    plain_box.fresh(part(0, GIB))
    (plain_box.folder / "quota").unlink()
    code = "import ctypes; ctypes.CDLL('libcuda.so.1'); print(open('/proc/self/maps').read())"
    done = plain_box.run([sys.executable, "-c", code])
    assert done.returncode == OK and "libcuda.so.1" in done.stdout and "/usage" not in done.stdout


def test_the_same_sources_give_the_same_bytes(plain_box: Box, tmp_path: Path) -> None:
    for library in (build.CUDA, build.NVML):
        again = build.wrapper(library, tmp_path, Toolchain(), str(plain_box.folder))
        assert again.read_bytes() == (plain_box.folder / "lib" / library.soname).read_bytes()
