"""Images in the private daemon."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import hostile, images, rootfs, stub_driver
from tests.harness.dockerd import Docker
from tests.harness.installed import Vgpu

MATRIX = "VGPU_MATRIX"  # the file to which results go; where it is not set, other versions are left out


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    extra = [item for item in items if item.get_closest_marker("matrix") and MATRIX not in os.environ]
    if extra:
        config.hook.pytest_deselected(items=extra)
        items[:] = [item for item in items if item not in extra]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One JSON object a line: what a test that ran to its end was run with, and how it ended."""
    programs = dict(report.user_properties)
    if MATRIX in os.environ and report.when == "call" and "suite" in programs:
        with Path(os.environ[MATRIX]).open("a") as results:
            results.write(json.dumps({"test": report.nodeid, "outcome": report.outcome, **programs}) + "\n")


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
