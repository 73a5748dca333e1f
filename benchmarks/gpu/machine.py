"""The GPU that gpu_check measures, the driver's files, and a container's folder without a container.

Standard library only, besides the project's own: a machine with a GPU may have nothing of what `make build` installs.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.nvml import Nvml
from libcuda_wrap import build
from libcuda_wrap.toolchain import PACKAGE, Toolchain
from oci_hook import quota_file
from oci_hook.errors import VgpuError
from oci_hook.records import Slice

ROOT = Path(__file__).resolve().parents[2]
PREBUILT = ROOT / "build/wrapper"  # its folder is compiled in: build.BOX
CARRIED = ROOT / "carried"  # in what `make gpu-check-bundle` makes: all that is compiled; the box's folder is in `box`
USED_AT, ARMED_AT = 128, 16  # in the usage file: include/vgw_usage.h, layout 2
NO_DEVICE, NOT_READY = 100, 802
PROGRAMS = {"measure": ROOT / "benchmarks/c/measure.c", "load": ROOT / "tests/libcuda_wrap/c/share.c"}
_ASK = """
import ctypes
print(ctypes.CDLL("libcuda.so.1").cuInit(0))
print(*sorted({line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "libcuda.so" in line}))
"""


def loaded_from(soname: str) -> Path | None:
    """The file that the loader takes for this name, or None. Asked in a process of its own, which then ends."""
    script = (
        "import ctypes,sys; ctypes.CDLL(sys.argv[1]); "
        "print(next(line.split(maxsplit=5)[5].strip() for line in open('/proc/self/maps') if sys.argv[1][:-2] in line))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, soname], capture_output=True, text=True, timeout=60, check=False
    )
    return Path(done.stdout.strip()).resolve() if done.returncode == 0 else None


def driver_files() -> tuple[Path, Path]:
    """libcuda and libnvidia-ml of this machine's driver. Raises SystemExit."""
    cuda, nvml = loaded_from("libcuda.so.1"), loaded_from("libnvidia-ml.so.1")
    if cuda is None or nvml is None:
        raise SystemExit("gpu_check: no NVIDIA driver here: libcuda.so.1 or libnvidia-ml.so.1 does not load")
    if build.CUDA.driver.encode() in cuda.read_bytes():
        raise SystemExit(f"gpu_check: {cuda} is a wrapper of ours: run it outside a container with a slice")
    return cuda, nvml


def facts(nvml: Nvml) -> dict[str, object]:
    """What results depend on: of another machine, or another day, they are not taken together."""
    return {
        "gpu": nvml.text("nvmlDeviceGetName"),
        "uuid": nvml.text("nvmlDeviceGetUUID"),
        "driver": nvml.driver_version(),
        "cuda": nvml.cuda_version(),
        "kernel": platform.release(),
        "glibc": "-".join(platform.libc_ver()),
        "container": any(Path(name).exists() for name in ("/.dockerenv", "/run/.containerenv")),
        "mps": Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"), "control").exists(),
        "date": time.strftime("%Y-%m-%d"),
    }


@dataclass
class Box:
    """folder: what is /usr/lib/vgpu in a container. wrapper: where our two libraries are. quota_bytes: of the GPU.
    only: the driver is told to show no other GPU.
    """

    folder: Path
    wrapper: Path
    driver: Path
    uuid: str
    quota_bytes: int
    extra: dict[str, str]
    only: bool = False

    @classmethod
    def make(cls, work: Path, driver: Path, nvml: Path, gpu: Nvml, quota_bytes: int, extra: dict[str, str]) -> Box:
        """With the wrapper that came along, or built for a folder of ours, or the one in build/ for /usr/lib/vgpu."""
        folder, wrapper = work / "box", work / "wrapper"
        if CARRIED.exists():
            folder, wrapper = Path((CARRIED / "box").read_text()), CARRIED
        elif (why := _build(wrapper, folder)) is not None:
            if not (PREBUILT / "libcuda.so.1").exists():
                raise SystemExit(f"gpu_check: the wrapper cannot be built ({why}): bring a `make gpu-check-bundle`")
            folder, wrapper = Path(build.BOX), PREBUILT
        _claim(folder)
        shutil.copy(driver, folder / build.CUDA.driver)
        shutil.copy(nvml, folder / build.NVML.driver)
        uuid = gpu.text("nvmlDeviceGetUUID")
        return cls(folder, wrapper, driver, uuid, quota_bytes, extra, only=gpu.chosen)

    def fresh(self, cores_percent: int = 0) -> None:
        """A new quota, of which nothing is used."""
        given = [Slice(index=0, uuid=self.uuid, memory_bytes=self.quota_bytes, cores_percent=cores_percent)]
        quota = quota_file.quota("gpu-check", given, burst="hard", priority="normal")
        usage = quota_file.usage_header().ljust(quota_file.USAGE_BYTES, b"\0")
        for name, data in (("quota", quota), ("usage", usage)):
            (self.folder / name).unlink(missing_ok=True)
            (self.folder / name).write_bytes(data)

    def armed(self) -> bool:
        """Whether a program has come to the wrapper since `fresh`."""
        return self._usage_word(ARMED_AT) != 0

    def used_bytes(self) -> int:
        """What the slice is charged."""
        return self._usage_word(USED_AT) >> 20

    def _usage_word(self, at: int) -> int:
        return int.from_bytes((self.folder / "usage").read_bytes()[at : at + 8], "little")

    def environment(self, *, wrapped: bool) -> dict[str, str]:
        first = self.wrapper if wrapped else self.driver.parent if self.extra else None
        paths = [str(first)] if first else []
        paths += [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
        found = {**os.environ, **self.extra, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        found.pop("CUDA_VISIBLE_DEVICES", None)
        if not wrapped or self.only:
            found["CUDA_VISIBLE_DEVICES"] = self.uuid  # without us: what the slice shows
        return {**found, "LD_LIBRARY_PATH": ":".join(paths), "XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}

    def must_answer(self, python: str) -> None:
        """Raises SystemExit that says why, if a program does not come to the driver through the wrapper."""
        answers = []
        for wrapped in (True, False):
            self.fresh()
            done = subprocess.run(
                [python, "-c", _ASK], env=self.environment(wrapped=wrapped), capture_output=True, text=True,
                timeout=120, check=False,
            )  # fmt: skip
            if done.returncode:
                said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
                raise SystemExit(f"gpu_check: {'the wrapper' if wrapped else 'the driver'} does not load: {said}")
            answers.append(done.stdout.split())
        (code, *files), (alone, *_) = answers
        if code == alone == "0" and str(self.wrapper / build.CUDA.soname) in files:
            return
        why = {
            str(NO_DEVICE): f"it shows no GPU {self.uuid} (is it hidden from CUDA, or split by MIG?)",
            str(NOT_READY): f"quota or usage file in {self.folder} cannot be used",
        }.get(code, f"of libcuda.so were loaded: {' '.join(files)}")
        alone_too = f"cuInit answers {alone} without the wrapper as well" if alone == code else f"alone it is {alone}"
        raise SystemExit(f"gpu_check: cuInit answers {code} behind the wrapper, {alone_too}; {why}")

    def program(self, name: str, work: Path) -> Path:
        """A client in C: the one that came along, or compiled here. Raises VgpuError."""
        if (CARRIED / name).exists():
            return CARRIED / name
        flags = [f"-I{PACKAGE / 'include'}", f"-I{PACKAGE / 'generated'}", "-ldl"]
        if name == "load":
            flags.insert(0, str(self.driver))
        return Toolchain("gcc").program([PROGRAMS[name]], work / name, flags=flags)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _claim(folder: Path) -> None:
    """Makes the box's folder, or takes one that an earlier run has left. Raises SystemExit for any other."""
    try:
        folder.mkdir(parents=True, mode=0o700)
    except FileExistsError:
        state = folder.lstat()
        if folder.is_symlink() or state.st_uid != os.geteuid() or not (folder / ".gpu-check").exists():
            raise SystemExit(
                f"gpu_check: {folder} exists and is not ours: remove it, or run outside a container with a slice"
            ) from None
    except OSError as error:
        raise SystemExit(f"gpu_check: {folder} cannot be made: {error.strerror}") from None
    (folder / ".gpu-check").touch()


def _build(out: Path, folder: Path) -> str | None:
    """Builds both libraries for a box at `folder`; None, or why not."""
    zig = subprocess.run([sys.executable, "-m", "ziglang", "version"], capture_output=True, check=False)
    try:
        for library in (build.CUDA, build.NVML):
            build.wrapper(library, out, Toolchain() if zig.returncode == 0 else Toolchain("gcc"), str(folder))
    except VgpuError as error:
        return str(error)
    return None
