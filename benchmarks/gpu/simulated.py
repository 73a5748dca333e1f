"""A simulated GPU for gpu_check, so that its own way is tested where there is no real one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from benchmarks.gpu.machine import CARRIED
from libcuda_wrap.sim import create


def simulated_gpu(work: Path) -> tuple[Path, Path, dict[str, str]]:
    """libcuda, libnvidia-ml, and the environment that leads them to the GPU's state."""
    driver = CARRIED / "sim"
    if not driver.exists():
        from libcuda_wrap.sim import build  # needs more than the standard library

        driver = work / "driver"
        build.build(driver)
    shutil.rmtree(work / "gpus", ignore_errors=True)
    create.create(work / "gpus", 1)
    os.environ["VGPU_SIM_DIR"] = str(work / "gpus")  # for our own use of its NVML
    names = (f"libcuda.so.{create.DRIVER_VERSION}", f"libnvidia-ml.so.{create.DRIVER_VERSION}")
    return driver / names[0], driver / names[1], {"VGPU_SIM_DIR": str(work / "gpus")}
