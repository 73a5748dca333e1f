"""Builds the simulated driver: `python -m libcuda_wrap.sim.build [--out DIR] [--cc zig|gcc] [--sanitize KINDS]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from libcuda_wrap.sim import create, exports
from libcuda_wrap.toolchain import PACKAGE, ROOT, Toolchain
from oci_hook.errors import VgpuError

SIM = exports.SIM
SHARED = ("vgs_region.c", "vgs_lock.c", "vgs_clock.c", "vgs_fault.c")
CUDA = (
    "vgs_core.c", "vgs_device.c", "vgs_context.c", "vgs_context_info.c", "vgs_green.c", "vgs_arena.c", "vgs_memory.c",
    "vgs_pointer.c", "vgs_pool.c", "vgs_poolshare.c", "vgs_vmm.c", "vgs_multicast.c", "vgs_array.c", "vgs_tiles.c",
    "vgs_copy.c", "vgs_set.c", "vgs_stream.c", "vgs_module.c", "vgs_launch.c", "vgs_graph.c", "vgs_graphmem.c",
    "vgs_share.c", "vgs_lookup.c", "vgs_error.c",
)  # fmt: skip
NVML = ("nvml_system.c", "nvml_device.c", "nvml_state.c", "nvml_process.c", "nvml_events.c")
# Exported functions have no prototypes: their callers are other people's programs, with other people's headers.
# Never unloaded: its fork handler stays registered, and the lock on its slot is the process's life.
# Inner calls stay inside the library, as the real libcuda's do.
FLAGS = (f"-I{SIM.relative_to(ROOT)}", "-Wno-missing-prototypes", "-pthread", "-fno-strict-aliasing", "-Wl,-z,nodelete")
CUDA_FLAGS = (*FLAGS, "-Wl,-Bsymbolic", "-ftls-model=initial-exec")


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _library(
    out: Path, kind: str, sources: list[Path], generated: list[Path], flags: tuple[str, ...], tools: Toolchain
) -> Path:
    soname = f"{kind}.so.1"
    library = out / f"{kind}.so.{create.DRIVER_VERSION}"
    tools.shared([*sources, *generated], library, soname=soname, flags=flags)
    for link in (soname, f"{kind}.so"):
        (out / link).unlink(missing_ok=True)
        (out / link).symlink_to(library.name)
    return library


def build(out: Path, tools: Toolchain | None = None, *, arena_bytes: int = 0) -> tuple[Path, Path]:
    """libcuda.so.<version> and libnvidia-ml.so.<version> in `out`, with the links that a loader looks for.

    arena_bytes: addresses that are reserved for device memory; 0: 16 TiB, which cost nothing but under an emulator.
    Raises HostError (VGPU-HOST-008) when the compiler is missing or refuses.
    """
    tools = tools or Toolchain()
    shared = [SIM / name for name in SHARED]
    generated = out / "generated"
    cuda = [SIM / name for name in CUDA]
    rows = yaml.safe_load((PACKAGE / "entry_points.yaml").read_text())
    stubs = exports.stubs(rows, exports.implemented(cuda), "vgs_not_supported", tools.arch)
    made = [_write(generated / "exports.c", exports.table(rows)), _write(generated / "stubs.S", stubs)]
    flags = (*CUDA_FLAGS, f"-DVGS_ARENA_BYTES={arena_bytes}ull") if arena_bytes else CUDA_FLAGS
    libcuda = _library(out, "libcuda", [*shared, *cuda], made, flags, tools)
    nvml = [SIM / name for name in NVML]
    names = (SIM / "nvml_functions.txt").read_text().split()
    stubs = exports.stubs(names, exports.implemented(nvml), "vgs_nvml_not_supported", tools.arch)
    made = [_write(generated / "nvml_stubs.S", stubs)]
    libnvml = _library(out, "libnvidia-ml", [*shared, *nvml], made, FLAGS, tools)
    return libcuda, libnvml


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m libcuda_wrap.sim.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "sim")
    parser.add_argument("--cc", choices=("zig", "gcc"), default="zig")
    parser.add_argument("--sanitize", default="", help="for -fsanitize=, as address,undefined; with --cc gcc")
    parser.add_argument("--arch", choices=tuple(exports.JUMP), default="x86_64")
    options = parser.parse_args(arguments)
    try:
        for library in build(options.out.resolve(), Toolchain(options.cc, options.sanitize, options.arch)):
            print(library)
    except VgpuError as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
