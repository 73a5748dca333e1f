"""Real systems and real drivers: Debian's packages, unpacked below build/."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from oci_hook import inventory_scan
from tests.harness import debian, debian_roots, drivers
from vgpu.doctor.image.driver import Driver


def real_driver(branch: int) -> Driver:
    """NVIDIA's own libraries of a branch, of Debian's non-free archive."""
    try:
        paths = drivers.libraries(branch)
    except debian.NotOffered as missing:
        pytest.skip(str(missing))
    names = {"libcuda": "compute", "libnvidia-ml": "utility"}
    found = tuple(inventory_scan.library(str(path), names[path.name.split(".so")[0]]) for path in paths)
    return Driver(paths[0].name.removeprefix("libcuda.so."), found)


@pytest.fixture(scope="session")
def driver() -> Driver:
    return real_driver(535)


@pytest.fixture
def debian_root(tmp_path: Path) -> Callable[..., Path]:
    """debian_root("trixie", "libstdc++6"): a new tree with libc6 and those packages of the suite."""

    def make(suite: str = "bookworm", *packages: str) -> Path:
        try:
            return debian_roots.root(tmp_path / f"root-{suite}", suite, *packages)
        except debian.NotOffered as missing:
            pytest.skip(str(missing))

    return make


@pytest.fixture
def musl_root(tmp_path: Path) -> Path:
    """Debian's musl and busybox, and nothing of glibc."""
    (tmp_path / "musl").mkdir()
    try:
        return debian_roots.musl(tmp_path / "musl")
    except debian.NotOffered as missing:
        pytest.skip(str(missing))
