"""Builds all that is compiled, in the folders that an installation is made from: launcher, wrapper, sim, python."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from libcuda_wrap import build as wrapper_build
from libcuda_wrap.sim import build as sim_build
from libcuda_wrap.toolchain import Toolchain
from oci_hook import sys_build
from oci_hook.errors import HostError
from oci_hook.launcher import build as launcher_build

ARCHITECTURES = ("x86_64", "aarch64")
VARIABLE = "VGPU_ARCH"  # for another architecture than this machine's: a build backend takes no arguments


def architecture() -> str:
    """The one to build for. Raises VGPU-HOST-008 for one that is not supported."""
    asked = os.environ.get(VARIABLE) or platform.machine()
    if asked not in ARCHITECTURES:
        raise HostError("VGPU-HOST-008", f"no build for {asked!r}", remedy=f"{VARIABLE}=x86_64 or aarch64")
    return asked


def build(out: Path, arch: str) -> None:
    """Everything, by zig. Raises HostError or subprocess.CalledProcessError when a compiler refuses."""
    launcher_build.build(out / "launcher", arch=arch)
    tools = Toolchain(arch=arch)
    for library in (wrapper_build.CUDA, wrapper_build.NVML):
        wrapper_build.wrapper(library, out / "wrapper", tools)
    sim_build.build(out / "sim", tools)
    sys_build.extension_module(out / "python/oci_hook", arch)


def built(out: Path) -> Iterator[Path]:
    """What of it is given away, relative to `out`: no links, no intermediate sources."""
    for pattern in ("launcher/vgpu-*", "wrapper/lib*.so.1", "sim/lib*.so.*", "python/oci_hook/_vgsys*.so"):
        for path in sorted(out.glob(pattern)):
            if not path.is_symlink():
                yield path.relative_to(out)
