"""python -m benchmarks.gpu.bundle [--arch x86_64|aarch64] [--out DIR]: gpu_check as one file, for a machine with a GPU.

That machine needs Python 3.10 and its driver, nothing else: no compiler, package, network or root. The wrapper is
built for a folder in /tmp, which anybody can make; clients in C, and the simulated driver (--simulate), are built too.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.gpu.machine import CARRIED, PROGRAMS, ROOT
from libcuda_wrap import build
from libcuda_wrap.sim import build as sim_build
from libcuda_wrap.toolchain import PACKAGE, Toolchain
from oci_hook.errors import VgpuError

NAME = "vgpu-gpu-check"
OLDEST = (3, 10)
BOX = Path("/tmp/vgpu-gpu-check")
MODULES = ("benchmarks.gpu_check", "benchmarks.gpu.simulated")
DATA = ("benchmarks/gpu/client.cu", "LICENSE")
MAIN = f'''"""gpu_check, with all that it needs: python3 {NAME} [--help]; docs/gpu-check.md has more."""
import sys

if sys.version_info < {OLDEST}:
    sys.exit("gpu_check: Python {OLDEST[0]}.{OLDEST[1]} or newer is needed, this is " + sys.version.split()[0])
from benchmarks.gpu_check import main

sys.exit(main())
'''


def modules() -> list[Path]:
    """The project's files that gpu_check imports. Asked without site-packages: it must not need any of them."""
    code = (
        f"import sys, {', '.join(MODULES)}\n"
        "print(*sorted(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for line in done.stdout.splitlines() if (path := Path(line)).is_relative_to(ROOT)]


def compiled(folder: Path, arch: str, box: Path) -> None:
    """Wrapper, simulated driver and clients in `folder`, for glibc 2.17. Raises HostError."""
    tools = Toolchain(arch=arch)
    for library in (build.CUDA, build.NVML):
        build.wrapper(library, folder, tools, str(box))
    (folder / "box").write_text(str(box))
    sim_build.build(folder / "sim", tools)
    shutil.rmtree(folder / "sim/generated")
    flags = [f"-I{PACKAGE / 'include'}", f"-I{PACKAGE / 'generated'}"]
    for name, source in PROGRAMS.items():
        driver = [str(folder / "sim/libcuda.so")] if name == "load" else []
        tools.program([source], folder / name, flags=[*flags, *driver, "-ldl"])


def make(out: Path, arch: str, box: Path = BOX) -> Path:
    """The archive's path. box: the folder for which the wrapper is built. Raises HostError."""
    out.mkdir(parents=True, exist_ok=True)
    archive = out / f"gpu-check-{arch}.tar.gz"
    with tempfile.TemporaryDirectory(prefix="vgpu-bundle-") as folder:
        top = Path(folder) / NAME
        for path in [*modules(), *(ROOT / name for name in DATA)]:
            target = top / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        (top / "__main__.py").write_text(MAIN)
        compiled(top / CARRIED.name, arch, box)
        with tarfile.open(archive, "w:gz") as file:
            file.add(top, NAME)
    return archive


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.bundle", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--arch", choices=("x86_64", "aarch64"), default=platform.machine())
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="default dist/")
    options = parser.parse_args(arguments)
    try:
        archive = make(options.out, options.arch)
    except VgpuError as err:
        print(err.line(), file=sys.stderr)
        return err.exit_code
    print(f"{archive}\nthere: tar xzf {archive.name}\n       python3 {NAME}      results are in {NAME}/results/ then")
    return 0


if __name__ == "__main__":
    sys.exit(main())
