"""As much of PyTorch as gpu_check's client asks for: memory by the driver's own functions, arithmetic by numpy.

STAND_IN: "cpu" is a build without CUDA, "broken" one that does not start, "hang" one that never answers.
"""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy
from programs import Driver  # type: ignore[import-not-found]  # beside the client that imports this

KIND = os.environ.get("STAND_IN", "")
__version__ = "0.0"
version = SimpleNamespace(cuda=None if KIND == "cpu" else "13.0")
uint8, float16 = "uint8", "float16"


class Tensor:
    def __init__(self, data: Any = None, release: Any = None) -> None:
        self.data, self.release = data, release

    def __del__(self) -> None:
        if self.release:
            self.release()

    def __matmul__(self, other: Tensor) -> Tensor:
        return Tensor(self.data @ other.data)

    def to(self, device: str) -> Tensor:
        return self

    cpu = abs = max = lambda self: self

    def sub(self, other: Tensor) -> Tensor:
        return Tensor(numpy.abs(self.data - other.data).max())

    def add_(self, number: int) -> Tensor:
        return self

    def __float__(self) -> float:
        return float(self.data)


class _Event:
    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.monotonic()

    def elapsed_time(self, other: _Event) -> float:
        return 1000 * (other.at - self.at)


class _Cuda:
    Event = _Event
    driver = None

    def init(self) -> None:
        print("a package that has something to say", flush=True)
        print("and a lot to warn of\n" * 10000, file=sys.stderr)
        if KIND == "broken":
            raise RuntimeError("CUDA unknown error")
        while KIND == "hang":
            time.sleep(1)
        self.driver = Driver()

    def mem_get_info(self, device: str) -> tuple[int, int]:
        return self.driver.info()

    def memory_reserved(self, device: str) -> int:
        return 0

    def empty_cache(self) -> None:
        pass

    synchronize = empty_cache


cuda = _Cuda()


def device(name: str) -> str:
    return name


def manual_seed(seed: int) -> None:
    pass


def rand(rows: int, columns: int, device: str = "cpu", dtype: str = "") -> Tensor:
    return Tensor(numpy.random.default_rng(1).random((min(rows, 64), min(columns, 64)), numpy.float32))


def zeros(size: int, device: str) -> Tensor:
    return Tensor()


def empty(size: int, dtype: str, device: str) -> Tensor:
    release = cuda.driver.linear(size)
    if release is None:
        raise RuntimeError("CUDA out of memory. Tried to allocate some")
    return Tensor(release=release)
