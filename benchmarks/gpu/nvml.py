"""The driver's own NVML, not ours: what the GPU really holds. By ctypes: the machine may lack every package."""

from __future__ import annotations

import ctypes
import os
from ctypes import byref, c_int, c_uint, c_ulonglong, c_void_p
from pathlib import Path

MIB = 1 << 20
ROOM = 512 * MIB  # beside the quota, for what the driver takes before a slice can be filled
LISTED = 256
PROHIBITED = 2  # of nvmlComputeMode_t
DRIVER_MISMATCH = 18  # of nvmlReturn_t


class NvmlError(RuntimeError):
    """A call that was not answered; the text has the function and the driver's words."""


class _Memory(ctypes.Structure):
    _fields_ = [("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong)]


class _Utilization(ctypes.Structure):
    _fields_ = [("gpu", c_uint), ("memory", c_uint)]


class _Process(ctypes.Structure):
    _fields_ = [("pid", c_uint), ("bytes", c_ulonglong), ("gpu_instance", c_uint), ("compute_instance", c_uint)]


class Nvml:
    """One GPU. gpu: index or UUID; "": the first of CUDA_VISIBLE_DEVICES, or 0. chosen: it was asked for.

    Raises SystemExit where there is none; the questions raise NvmlError.
    """

    def __init__(self, path: Path, gpu: str = "") -> None:
        self._device = c_void_p()
        wanted = gpu or os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        self.chosen = wanted not in ("", "0")
        try:
            self._library = ctypes.CDLL(str(path))
            self._call("nvmlInit_v2")
            if wanted.isdigit() or not wanted:
                self._call("nvmlDeviceGetHandleByIndex_v2", c_uint(int(wanted or 0)), byref(self._device))
            else:
                self._call("nvmlDeviceGetHandleByUUID", wanted.encode(), byref(self._device))
        except (OSError, NvmlError) as error:
            raise SystemExit(f"gpu_check: GPU {wanted or 0}: {error}") from None

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self._library, name, None)
        if function is None:
            raise NvmlError(f"this driver has no {name}")
        if (result := function(*arguments)) != 0:
            self._library.nvmlErrorString.restype = ctypes.c_char_p
            said = (self._library.nvmlErrorString(result) or b"").decode(errors="replace")
            more = " (the driver was updated: restart the machine)" if result == DRIVER_MISMATCH else ""
            raise NvmlError(f"{name}: NVML error {result}, {said}{more}")

    def unfit(self, quota_bytes: int) -> str | None:
        """Why this GPU cannot be checked, with what to do; None: it can."""
        mode, pending, compute, memory = c_uint(), c_uint(), c_int(), _Memory()
        try:
            self._call("nvmlDeviceGetMigMode", self._device, byref(mode), byref(pending))
        except NvmlError:
            mode = c_uint(0)  # most GPUs cannot be split
        self._call("nvmlDeviceGetComputeMode", self._device, byref(compute))
        self._call("nvmlDeviceGetMemoryInfo", self._device, byref(memory))
        if mode.value:
            return "the GPU is split by MIG: take another with --gpu, or switch MIG off"
        if compute.value == PROHIBITED:
            return "the GPU's compute mode is prohibited: nvidia-smi -c DEFAULT"
        if others := self.processes():
            listed = ", ".join(map(str, sorted(others)))
            return (
                f"others compute on this GPU (pid {listed}), and would be counted: end them, or take another with --gpu"
            )
        if memory.free < quota_bytes + ROOM:
            most = max(0, memory.free - ROOM) // (64 * MIB) * 64
            return f"{memory.free // MIB} MiB of the GPU are free, too little for the slice: --quota-mib {most} at most"
        return None

    def used_bytes(self) -> int:
        memory = _Memory()
        self._call("nvmlDeviceGetMemoryInfo", self._device, byref(memory))
        return int(memory.used)

    def processes(self) -> dict[int, int | None]:
        """pid -> bytes, of programs that compute; None: the driver does not tell. In a container it may list nobody."""
        listed, count = (_Process * LISTED)(), c_uint(LISTED)
        try:
            self._call("nvmlDeviceGetComputeRunningProcesses_v3", self._device, byref(count), listed)
        except NvmlError:
            count = c_uint(LISTED)
            self._call("nvmlDeviceGetComputeRunningProcesses_v2", self._device, byref(count), listed)
        found = listed[: count.value]
        return {int(one.pid): None if one.bytes == (1 << 64) - 1 else int(one.bytes) for one in found}

    def busy_percent(self) -> int:
        """Of the time of the driver's last sample."""
        found = _Utilization()
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
