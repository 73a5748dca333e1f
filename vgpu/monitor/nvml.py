"""The driver's own account of each GPU, through NVML: what containers cannot write.

pynvml opens "libnvidia-ml.so.1". A library of that name that is loaded already is what it then gets: so the simulated
driver's, or that of a driver root, is loaded first by its path.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from oci_hook import inventory
from oci_hook.errors import HostError, shown
from oci_hook.records import Policy
from vgpu.monitor.cgroups import Processes
from vgpu.monitor.sample import GpuTruth, ProcessTruth

_REMEDY = "see that the driver runs (nvidia-smi, or vgpu inventory --refresh), and run the command as root"


def library(policy: Policy) -> str:
    """Path of the NVML to load; "" for the one that the host's loader finds."""
    if policy.simulate_gpus:
        folder = inventory.simulator_folder(policy)
        try:
            names = sorted(name for name in os.listdir(folder) if name.startswith("libnvidia-ml.so."))
        except OSError:
            names = []
        if not names:
            raise HostError("VGPU-HOST-007", f"the simulated NVML is not in {folder}", remedy="install vgpu again")
        return f"{folder}/{names[-1]}"
    if policy.driver_root != "/":
        for one in inventory.load(policy).libraries:
            if one.role == "nvml":
                return one.path
    return ""


@contextlib.contextmanager
def _simulated(policy: Policy) -> Iterator[None]:
    """Where the simulated driver looks for its GPUs, which it does when it starts; no child of ours shall find it."""
    before = os.environ.get("VGPU_SIM_DIR")
    if policy.simulate_gpus:
        os.environ["VGPU_SIM_DIR"] = f"{policy.host_state_dir}/sim"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("VGPU_SIM_DIR", None)
        else:
            os.environ["VGPU_SIM_DIR"] = before


@dataclass(frozen=True, slots=True)
class GpuModes:
    """compute_mode: as nvmlComputeMode_t has it, 0 is the default."""

    index: int
    uuid: str
    mig: bool | None
    compute_mode: int | None
    persistence: bool | None


class Nvml:
    """NVML, open: `with Nvml(policy) as nvml`. Raises HostError VGPU-HOST-007 where the driver cannot be asked."""

    def __init__(self, policy: Policy) -> None:
        import pynvml  # type: ignore[import-untyped,unused-ignore]

        self._nvml: Any = pynvml
        self._since_us: dict[int, int] = {}
        self._events: Any = None
        self._lost: set[int] = set()
        path = library(policy)
        try:
            with _simulated(policy):
                if path:
                    ctypes.CDLL(path)
                pynvml.nvmlInit()
        except (OSError, pynvml.NVMLError) as error:
            raise _refused(error) from None

    def __enter__(self) -> Nvml:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def gpus(self, processes: Processes) -> tuple[GpuTruth, ...]:
        """All GPUs as they are now, without those that are lost; utilisation is the average since the last call.

        Raises as the constructor.
        """
        found = []
        try:
            for index in range(self._nvml.nvmlDeviceGetCount()):
                try:
                    found.append(self._gpu(index, processes))
                    self._lost.discard(index)
                except self._nvml.NVMLError_GpuIsLost:
                    self._lost.add(index)
        except self._nvml.NVMLError as error:
            raise _refused(error) from None
        return tuple(found)

    def failures(self, critical: Sequence[int]) -> list[tuple[int, str]]:
        """(GPU, why) of those that `gpus` did not find, and that have had a critical error since the last call.

        critical: which XIDs count.
        """
        found = [(index, "it is lost: it does not answer") for index in sorted(self._lost)]
        return found + [(index, f"XID {xid}") for index, xid in self._xids() if xid in critical]

    def _xids(self) -> list[tuple[int, int]]:
        nvml, found = self._nvml, []
        try:
            if self._events is None:
                self._events = self._registered()
            while True:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
                found.append((int(nvml.nvmlDeviceGetIndex(event.device)), int(event.eventData)))
        except nvml.NVMLError:  # a time-out: that is all
            return found

    def _registered(self) -> Any:
        """A set of events, told of every GPU's critical errors that its driver tells of."""
        nvml = self._nvml
        events = nvml.nvmlEventSetCreate()
        for index in range(nvml.nvmlDeviceGetCount()):
            with contextlib.suppress(nvml.NVMLError):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
        return events

    def modes(self) -> tuple[GpuModes, ...]:
        """What each GPU is set to; None where the driver does not say. Raises as the constructor."""
        try:
            return tuple(self._modes(index) for index in range(self._nvml.nvmlDeviceGetCount()))
        except self._nvml.NVMLError as error:
            raise _refused(error) from None

    def _modes(self, index: int) -> GpuModes:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)

        def told(ask: Callable[[Any], Any]) -> Any:
            try:
                return ask(handle)
            except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NoPermission):
                return None

        mig, mode = told(nvml.nvmlDeviceGetMigMode), told(nvml.nvmlDeviceGetPersistenceMode)
        return GpuModes(
            index=index,
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            mig=None if mig is None else bool(mig[0]),
            compute_mode=told(nvml.nvmlDeviceGetComputeMode),
            persistence=None if mode is None else bool(mode),
        )

    def _gpu(self, index: int, processes: Processes) -> GpuTruth:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return GpuTruth(
            index=index,
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            name=_text(nvml.nvmlDeviceGetName(handle)),
            memory_bytes=int(memory.total),
            used_bytes=int(memory.used),
            busy_percent=self._busy(handle),
            processes=self._processes(index, handle, processes),
        )

    def _busy(self, handle: Any) -> float | None:
        try:
            return float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        except self._nvml.NVMLError_NotSupported:
            return None

    def _processes(self, index: int, handle: Any, processes: Processes) -> tuple[ProcessTruth, ...]:
        held = {int(one.pid): one.usedGpuMemory for one in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
        shares = self._shares(index, handle)
        return tuple(
            ProcessTruth(
                pid=pid,
                inner_pid=processes.inner_pid(pid),
                container=processes.container(pid),
                memory_bytes=None if held.get(pid) is None else int(held[pid]),
                sm_percent=None if shares is None else shares.get(pid, 0.0),
            )
            for pid in sorted(held)
        )

    def _shares(self, index: int, handle: Any) -> dict[int, float] | None:
        """pid -> percent of the GPU's time, averaged over the driver's samples since the last call; None: not told."""
        try:
            found = self._nvml.nvmlDeviceGetProcessUtilization(handle, self._since_us.get(index, 0))
        except self._nvml.NVMLError_NotFound:  # nobody has used it since
            return {}
        except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_NoPermission):
            return None
        except self._nvml.NVMLError as error:
            if error.value != self._nvml.NVML_SUCCESS:
                raise
            return {}  # pynvml raises "success" for an empty list
        shares = defaultdict(list)
        for one in found:
            shares[int(one.pid)].append(float(one.smUtil))
            self._since_us[index] = max(self._since_us.get(index, 0), int(one.timeStamp))
        return {pid: sum(values) / len(values) for pid, values in shares.items()}


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _refused(error: Exception) -> HostError:
    return HostError("VGPU-HOST-007", f"NVML says: {shown(str(error))}", remedy=_REMEDY)
