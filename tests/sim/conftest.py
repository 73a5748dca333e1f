"""The simulated driver, built once, and a folder of small GPUs for each test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from libcuda_wrap.sim import build, create
from libcuda_wrap.toolchain import INCLUDE, ROOT, Toolchain

MIB = 1 << 20
CODE = Path(__file__).parent / "c"


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of libcuda.so.1 and libnvidia-ml.so.1, as they are shipped."""
    out = tmp_path_factory.mktemp("driver")
    build.build(out)
    return out


@pytest.fixture
def gpus(tmp_path: Path) -> Path:
    """Two GPUs of 1 GiB: small enough to be filled with bytes."""
    create.create(tmp_path / "sim", gpus=2, memory_bytes=1024 * MIB)
    return tmp_path / "sim"


@pytest.fixture
def environment(driver: Path, gpus: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "VGPU_", "LD_"))}
    return {**kept, "LD_LIBRARY_PATH": str(driver), "VGPU_SIM_DIR": str(gpus), "TERM": "dumb", "COLUMNS": "160"}


@pytest.fixture
def python(environment: dict[str, str]) -> Callable[..., str]:
    """Runs Python code with the simulated driver and gives what it printed."""

    def run(code: str, **extra: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], env={**environment, **extra}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def compile_test(name: str, libraries: Path, out: Path, tools: Toolchain) -> Path:
    flags = [f"-I{ROOT / 'libcuda_wrap/sim'}", f"-I{INCLUDE}", f"-L{libraries}", "-lcuda", "-lpthread", "-ldl"]
    return tools.program([CODE / f"{name}.c"], out / name, flags=flags)
