"""Images in the private daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import hostile, images, rootfs, stub_driver
from tests.harness.dockerd import Docker
from tests.harness.installed import Vgpu


@pytest.fixture(scope="session")
def c_image(docker: Docker, c_tree: Path) -> str:
    """glibc, busybox and the C client."""
    return images.load(docker, c_tree, "vgpu-test:c")


@pytest.fixture(scope="session")
def python_image(docker: Docker, images_folder: Path) -> str:
    """Python with real clients of CUDA and NVML, and tests/fixtures/cuda_python.py in its root."""
    return images.load(docker, images.tree(images_folder, "python"), "vgpu-test:python")


@pytest.fixture(scope="session")
def stub_vgpu(low_level: Path, e2e_folder: Path) -> Vgpu:
    """vgpu before one low-level runtime, with marked files for driver and wrapper."""
    return stub_driver.install(e2e_folder / f"stub-{low_level.name}", low_level)


@pytest.fixture(scope="session")
def plain_tree(e2e_folder: Path) -> Path:
    """A root with glibc and busybox."""
    tree = e2e_folder / "plain-tree"
    tree.mkdir()
    rootfs.glibc_root(tree)
    return tree


@pytest.fixture
def ground(stub_vgpu: Vgpu, plain_tree: Path, tmp_path: Path) -> Iterator[hostile.Ground]:
    """For one attack; afterwards the host must be as it was."""
    with hostile.ground(stub_vgpu, tmp_path, plain_tree) as made:
        yield made
