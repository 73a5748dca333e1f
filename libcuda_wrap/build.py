"""python -m libcuda_wrap.build [--cc zig|gcc] [--sanitize WHICH] [--box DIR] [--out DIR]: wrapper and simulated driver.

The wrapper is two libraries that find the driver's own ones beside them in the box, by DT_NEEDED.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from libcuda_wrap.toolchain import PACKAGE, ROOT, Toolchain
from oci_hook.errors import VgpuError

BOX = "/usr/lib/vgpu"
_SHARED = ("layout.c", "region.c", "slot.c", "ledger.c", "bucket.c", "neighbours.c", "past.c", "real.c")


@dataclass(frozen=True)
class Wrapper:
    """driver: name of the driver's own library in the box. sources: of src/, besides the shared ones."""

    soname: str
    driver: str
    key: str
    sources: tuple[str, ...]


CUDA = Wrapper(
    soname="libcuda.so.1",
    driver="libvgpu-driver.so",
    key="cuda",
    sources=(
        "table.c",
        "place.c",
        "answer.c",
        "charge.c",
        "pool.c",
        "poolshare.c",
        "array.c",
        "tiles.c",
        "vmm.c",
        "multicast.c",
        "context.c",
        "green.c",
        "overhead.c",
        "module.c",
        "late.c",
        "limit.c",
        "fill.c",
        "measure.c",
        "cost.c",
        "graphmem.c",
        "ipc.c",
        "external.c",
    ),
)
NVML = Wrapper(soname="libnvidia-ml.so.1", driver="libvgpu-nvml.so", key="nvml", sources=("nvml.c", "nvml_process.c"))


def wrapper(library: Wrapper, out: Path, tools: Toolchain, box: str = BOX) -> Path:
    """Builds one library into the folder `out`. box: where it looks for driver, quota and usage. Raises HostError."""
    source, generated = PACKAGE / "src", PACKAGE / "generated"
    with tempfile.TemporaryDirectory(prefix="vgpu-build-") as folder:
        stub = tools.stub(Path(folder) / library.driver, library.driver)
        return tools.shared(
            [*(source / name for name in (*_SHARED, *library.sources)), generated / f"{library.key}_exports.c"],
            out / library.soname,
            soname=library.soname,
            needed=[stub],
            runpath=f"{box}:$ORIGIN",
            version_script=generated / f"{library.key}_exports.map",
            defines={"VGW_BOX": f'"{box}"', "VGW_DRIVER": f'"{library.driver}"'},
            # never unloaded: the fork handlers, and the mapping that holds the slot's lock, stay as long as the process
            flags=[f"-I{source}", f"-I{generated}", "-Wl,-z,nodelete", "-ldl", "-lpthread"],
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m libcuda_wrap.build", description=__doc__.split("\n\n")[0])
    parser.add_argument("--cc", choices=("zig", "gcc"), default="zig")
    parser.add_argument("--sanitize", default="", help="value of -fsanitize=, with --cc gcc")
    parser.add_argument("--box", default=BOX, help=f"our folder in the container (default {BOX})")
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="gets wrapper/ and sim/ (default build/)")
    options = parser.parse_args(arguments)
    tools = Toolchain(options.cc, options.sanitize)
    try:
        for library in (CUDA, NVML):
            print(wrapper(library, options.out.resolve() / "wrapper", tools, options.box))
        simulated = importlib.import_module("libcuda_wrap.sim.build")
        for path in simulated.build(options.out.resolve() / "sim", tools):
            print(path)
    except VgpuError as err:
        print(err.line(), file=sys.stderr)
        return err.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
