"""An installation whose driver is four libraries that only carry a mark: for tests of what is mounted where.

Everything else is real: launcher, shim, hook, policy, ledger. The mark tells which file a path in a container shows.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from oci_hook import inventory_scan, policy, sys_build
from oci_hook.launcher import build as launcher_build
from oci_hook.records import Gpu
from tests.harness import installed

VERSION = "550.54.14"
GIB = 1 << 30


def library(
    path: Path,
    soname: str,
    mark: str,
    needed: Path | None = None,
    libraries: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
) -> None:
    """A shared object with `mark` in its bytes. needed: an object that it names in DT_NEEDED; libraries: gcc's -l;
    flags: further ones of gcc's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = f'__attribute__((visibility("default"), used)) const char vgpu_mark[] = "MARK-{mark}-MARK";\n'
    command = ["gcc", "-shared", "-fPIC", "-s", f"-Wl,-soname,{soname}", "-Wl,--no-as-needed", "-o", str(path)]
    linked = [*([str(needed)] if needed else []), *(f"-l{name}" for name in libraries)]
    command += flags
    subprocess.run([*command, "-x", "c", "-", "-x", "none", *linked], input=source, text=True, check=True, timeout=60)


def build(folder: Path) -> None:
    """Fills a build folder as `make build` does, with marked libraries for wrapper and driver."""
    for name in ("cuda", "nvml"):
        stub = folder / f"stub/libvgpu-{'driver' if name == 'cuda' else 'nvml'}.so"
        library(stub, stub.name, "stub")
        soname = "libcuda.so.1" if name == "cuda" else "libnvidia-ml.so.1"
        library(folder / "wrapper" / soname, soname, f"wrapper-{name}", needed=stub)
        library(folder / "sim" / soname.replace(".1", f".{VERSION}"), soname, f"driver-{name}", libraries=("m",))
    launcher_build.build(folder / "launcher", cc="gcc")
    sys_build.build(folder / "python")


def install(folder: Path, runtime: Path) -> installed.Vgpu:
    """As installed.install, with two GPUs of 80 GiB that nobody simulates."""
    build(folder / "build")
    vgpu = installed.Vgpu(folder / "vgpu", folder / "state", folder / "log")
    command = [*installed.install_command(vgpu, runtime, 2, "80GiB"), "--build", str(folder / "build")]
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True, text=True, cwd=installed.ROOT)
    scan(vgpu)
    return vgpu


def scan(vgpu: installed.Vgpu) -> None:
    """Writes the inventory, as `vgpu inventory --refresh` would."""
    settings = policy.load(str(vgpu.prefix / "etc/policy.json"))
    sim = vgpu.state / "sim"
    sim.mkdir(parents=True, exist_ok=True)
    for folder in (vgpu.state, sim):
        folder.chmod(0o755)
    for name, mode in (("ctl", 0o666), ("gpu0", 0o644), ("gpu1", 0o644)):
        (sim / name).write_bytes(b"")
        (sim / name).chmod(mode)
    gpus = [Gpu(index, f"GPU-{index}", "Stub GPU", 80 * GIB, f"0000:0{index}:00.0", index) for index in range(2)]
    inventory_scan.save(settings, inventory_scan.simulated(settings, gpus))
