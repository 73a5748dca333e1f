"""As much of CuPy as gpu_check's client asks for: memory by the driver's own functions, arithmetic by numpy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy
from programs import Driver  # type: ignore[import-not-found]  # beside the client that imports this

__version__ = "0.0"
uint8 = numpy.uint8
asarray = asnumpy = numpy.asarray


class _Late:
    """The driver, at first need: `import` alone works where there is none."""

    def __getattr__(self, name: str) -> Any:
        global _driver
        _driver = Driver()
        return getattr(_driver, name)


_driver: Any = _Late()


class OutOfMemoryError(MemoryError):
    pass


class _Memory:
    def __init__(self, release: Any) -> None:
        self.release = release

    def __del__(self) -> None:
        self.release()


def empty(size: int, kind: Any) -> _Memory:
    release = _driver.linear(size)
    if release is None:
        raise OutOfMemoryError
    return _Memory(release)


cuda = SimpleNamespace(
    memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    runtime=SimpleNamespace(memGetInfo=lambda: _driver.info()),
)


def get_default_memory_pool() -> Any:
    return SimpleNamespace(free_all_blocks=lambda: None)
