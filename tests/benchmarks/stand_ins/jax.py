"""As much of JAX as gpu_check's client asks for: memory by the driver's own functions, arithmetic by numpy.

STAND_IN: "cpu" is an installation without a plugin for CUDA.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from programs import Driver  # type: ignore[import-not-found]  # beside the client that imports this

__version__ = "0.0"


class _Late:
    """The driver, at first need: `import` alone works where there is none."""

    def __getattr__(self, name: str) -> Any:
        global _driver
        _driver = Driver()
        return getattr(_driver, name)


_driver: Any = _Late()
numpy = SimpleNamespace(matmul=lambda left, right, precision: left @ right)


def default_backend() -> str:
    return "cpu" if os.environ.get("STAND_IN") == "cpu" else "gpu"


class _Array:
    def __init__(self, release: Any) -> None:
        self.delete = release

    def block_until_ready(self) -> _Array:
        return self


def device_put(array: Any) -> _Array:
    release = _driver.linear(array.nbytes)
    if release is None:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
    return _Array(release)
