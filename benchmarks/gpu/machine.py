"""The GPU that gpu_check measures, the driver's files, and a container's folder without a container.

Standard library only, besides the project's own: a machine with a GPU may have nothing of what `make build` installs.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from ctypes import byref, c_int, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from pathlib import Path

from libcuda_wrap import build
from libcuda_wrap.toolchain import Toolchain
from oci_hook import quota_file
from oci_hook.errors import VgpuError
from oci_hook.records import Slice

ROOT = Path(__file__).resolve().parents[2]
PREBUILT = ROOT / "build/wrapper"  # its folder is compiled in: build.BOX


class Memory(ctypes.Structure):
    _fields_ = [("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong)]


class Utilization(ctypes.Structure):
    _fields_ = [("gpu", c_uint), ("memory", c_uint)]


class Nvml:
    """The driver's own NVML, not ours: what GPU 0 really holds."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._device = c_void_p()
        self._call("nvmlInit_v2")
        self._call("nvmlDeviceGetHandleByIndex_v2", c_uint(0), byref(self._device))

    def _call(self, name: str, *arguments: object) -> None:
        result = getattr(self._library, name)(*arguments)
        if result != 0:
            raise SystemExit(f"gpu_check: {name}: NVML error {result}")

    def used_bytes(self) -> int:
        memory = Memory()
        self._call("nvmlDeviceGetMemoryInfo", self._device, byref(memory))
        return int(memory.used)

    def busy_percent(self) -> int:
        """Of the time of the driver's last sample."""
        found = Utilization()
        self._call("nvmlDeviceGetUtilizationRates", self._device, byref(found))
        return int(found.gpu)

    def text(self, name: str) -> str:
        """nvmlDeviceGetUUID and its like."""
        found = ctypes.create_string_buffer(96)
        self._call(name, self._device, found, c_uint(96))
        return found.value.decode()

    def driver_version(self) -> str:
        found = ctypes.create_string_buffer(96)
        self._call("nvmlSystemGetDriverVersion", found, c_uint(96))
        return found.value.decode()

    def cuda_version(self) -> str:
        found = c_int()
        self._call("nvmlSystemGetCudaDriverVersion", byref(found))
        return f"{found.value // 1000}.{found.value % 1000 // 10}"


def loaded_from(soname: str) -> Path | None:
    """The file that the loader takes for this name, or None. Asked in a process of its own, which then ends."""
    script = (
        "import ctypes,sys; ctypes.CDLL(sys.argv[1]); "
        "print(next(line.split(maxsplit=5)[5].strip() for line in open('/proc/self/maps') if sys.argv[1][:-2] in line))"
    )
    done = subprocess.run([sys.executable, "-c", script, soname], capture_output=True, text=True, check=False)
    return Path(done.stdout.strip()).resolve() if done.returncode == 0 else None


@dataclass
class Box:
    """folder: what is /usr/lib/vgpu in a container. wrapper: where our two libraries are. quota_bytes: of GPU 0."""

    folder: Path
    wrapper: Path
    driver: Path
    uuid: str
    quota_bytes: int
    extra: dict[str, str]

    @classmethod
    def make(cls, work: Path, driver: Path, nvml: Path, uuid: str, quota_bytes: int, extra: dict[str, str]) -> Box:
        """Builds the wrapper for a folder of ours, or takes the one in build/, whose folder is /usr/lib/vgpu then."""
        folder, wrapper = work / "box", work / "wrapper"
        why = _build(wrapper, folder)
        if why is not None and not (PREBUILT / "libcuda.so.1").exists():
            raise SystemExit(f"gpu_check: the wrapper cannot be built ({why}), and there is no {PREBUILT}: bring one")
        if why is not None:
            folder, wrapper = Path(build.BOX), PREBUILT
        if folder == Path(build.BOX) and folder.exists() and not (folder / ".gpu-check").exists():
            raise SystemExit(f"gpu_check: {folder} exists and is not ours: run it outside a container with a slice")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gpu-check").touch()
        shutil.copy(driver, folder / "libvgpu-driver.so")
        shutil.copy(nvml, folder / "libvgpu-nvml.so")
        return cls(folder, wrapper, driver, uuid, quota_bytes, extra)

    def fresh(self, cores_percent: int = 0) -> None:
        """A new quota, of which nothing is used."""
        given = [Slice(index=0, uuid=self.uuid, memory_bytes=self.quota_bytes, cores_percent=cores_percent)]
        quota = quota_file.quota("gpu-check", given, burst="hard", priority="normal")
        usage = quota_file.usage_header().ljust(quota_file.USAGE_BYTES, b"\0")
        for name, data in (("quota", quota), ("usage", usage)):
            (self.folder / name).unlink(missing_ok=True)
            (self.folder / name).write_bytes(data)

    def environment(self, *, wrapped: bool) -> dict[str, str]:
        first = self.wrapper if wrapped else self.driver.parent if self.extra else None
        paths = [str(first)] if first else []
        paths += [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
        found = {**os.environ, **self.extra, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        found.pop("CUDA_VISIBLE_DEVICES", None)
        if not wrapped:
            found["CUDA_VISIBLE_DEVICES"] = "0"  # as the slice: GPU 0 alone
        return {**found, "LD_LIBRARY_PATH": ":".join(paths), "XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _build(out: Path, folder: Path) -> str | None:
    """Builds both libraries for a box at `folder`; None, or why not."""
    zig = subprocess.run([sys.executable, "-m", "ziglang", "version"], capture_output=True, check=False)
    try:
        for library in (build.CUDA, build.NVML):
            build.wrapper(library, out, Toolchain() if zig.returncode == 0 else Toolchain("gcc"), str(folder))
    except VgpuError as error:
        return str(error)
    return None
