"""The wrapper as it is installed (zig, glibc 2.17), and once more with the sanitizers."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.libcuda_wrap.wrapped import Box, Client, Start, sharer, simulated_driver


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="session")
def boxes(tmp_path_factory: pytest.TempPathFactory, driver: Path) -> Callable[[str], Box]:
    """A box per sanitizer, built when first asked for."""
    made: dict[str, Box] = {}

    def box(sanitize: str) -> Box:
        if sanitize not in made:
            made[sanitize] = Box.make(tmp_path_factory.mktemp("box"), sanitize, driver)
        return made[sanitize]

    return box


@pytest.fixture(params=["", "address,undefined"], ids=["zig", "sanitized"])
def box(request: pytest.FixtureRequest, boxes: Callable[[str], Box]) -> Iterator[Box]:
    made = boxes(request.param)
    yield made
    made.close()


@pytest.fixture
def plain_box(boxes: Callable[[str], Box]) -> Iterator[Box]:
    """As installed, for tests of many processes or of what other programs see."""
    made = boxes("")
    yield made
    made.close()


@pytest.fixture
def start(box: Box, driver: Path) -> Start:
    """Starts sharers (c/sharer.c), each with a context."""
    program = sharer(box, driver)

    def start() -> Client:
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [program], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=box.environment()
        )  # fmt: skip
        box.clients.append(Client(process))
        return box.clients[-1].ready()

    return start


@pytest.fixture(scope="session")
def include() -> Path:
    """A folder with cuda.h 13.0: the toolkit's, or the one of PyPI's nvidia-cuda-runtime."""
    folders = [Path("/usr/local/cuda/include"), *Path(sysconfig.get_path("purelib")).glob("nvidia/*/include")]
    for folder in folders:
        header = folder / "cuda.h"
        if header.exists() and re.search(r"#define CUDA_VERSION 13000\b", header.read_text()):
            return folder
    pytest.skip("no cuda.h of CUDA 13.0: install the toolkit, or pip install nvidia-cuda-runtime==13.0.*")
