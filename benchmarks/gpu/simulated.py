"""A simulated GPU for gpu_check, so that its own way is tested where there is no real one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from libcuda_wrap.sim import build, create


def simulated_gpu(work: Path) -> tuple[Path, Path, dict[str, str]]:
    """libcuda, libnvidia-ml, and the environment that leads them to the GPU's state."""
    build.build(work / "driver")
    shutil.rmtree(work / "gpus", ignore_errors=True)
    create.create(work / "gpus", 1)
    os.environ["VGPU_SIM_DIR"] = str(work / "gpus")  # for our own use of its NVML
    names = (f"libcuda.so.{create.DRIVER_VERSION}", f"libnvidia-ml.so.{create.DRIVER_VERSION}")
    return work / "driver" / names[0], work / "driver" / names[1], {"VGPU_SIM_DIR": str(work / "gpus")}
