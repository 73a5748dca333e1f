"""Real systems and real drivers: Debian's packages, unpacked below build/."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from looked import real_driver

from tests.harness import debian, debian_roots
from vgpu.doctor.image.driver import Driver


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
