"""Images in the private daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import images
from tests.harness.dockerd import Docker


@pytest.fixture(scope="session")
def c_image(docker: Docker, c_tree: Path) -> str:
    """glibc, busybox and the C client."""
    return images.load(docker, c_tree, "vgpu-test:c")


@pytest.fixture(scope="session")
def python_image(docker: Docker, images_folder: Path) -> str:
    """Python with real clients of CUDA and NVML, and tests/fixtures/cuda_python.py in its root."""
    return images.load(docker, images.tree(images_folder, "python"), "vgpu-test:python")
