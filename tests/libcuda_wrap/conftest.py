"""The wrapper as it is installed (zig, glibc 2.17), and once more with the sanitizers."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.libcuda_wrap.wrapped import GIB, Box, Start, part, simulated_driver, starter


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
    return starter(box, driver)


@pytest.fixture(scope="session")
def three(boxes: Callable[[str], Box], tmp_path_factory: pytest.TempPathFactory, driver: Path) -> list[Box]:
    """Three containers on one GPU. The first has the GPU's files, the others share them."""
    made = [boxes(""), *(Box.make(tmp_path_factory.mktemp("beside"), "", driver) for _ in range(2))]
    for box in made[1:]:
        for name in ("sim", "gpus"):
            (box.folder / name).symlink_to(made[0].folder / name)
    return made


@pytest.fixture
def side_by_side(three: list[Box]) -> Iterator[list[Box]]:
    three[0].fresh(part(0, GIB))
    yield three
    for box in three:
        box.close()
        (box.folder / "share").unlink(missing_ok=True)  # as the end of a container: its links are not valid any more


@pytest.fixture(scope="session")
def include() -> Path:
    """A folder with cuda.h 13.5: the toolkit's, or the one of PyPI's nvidia-cuda-runtime."""
    folders = [Path("/usr/local/cuda/include"), *Path(sysconfig.get_path("purelib")).glob("nvidia/*/include")]
    for folder in folders:
        header = folder / "cuda.h"
        if header.exists() and re.search(r"#define CUDA_VERSION 13050\b", header.read_text()):
            return folder
    pytest.skip("no cuda.h of CUDA 13.5: install the toolkit, or pip install nvidia-cuda-runtime==13.5.*")
