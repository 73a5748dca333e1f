"""Takes samples of the host: the containers' folders, and NVML where it can be asked."""

from __future__ import annotations

import os
import time
from pathlib import Path

from libcuda_wrap import bindings
from oci_hook import ledger
from oci_hook.errors import VgpuError
from oci_hook.records import Allocation, Policy
from vgpu import ps, users
from vgpu.monitor.cgroups import Processes
from vgpu.monitor.nvml import Nvml
from vgpu.monitor.sample import ContainerSample, GpuTruth, Sample, SliceSample


class Collector:
    """Takes samples. NVML that cannot be asked is a trouble of the sample, and is tried again with the next."""

    def __init__(self, policy: Policy, proc: str = "/proc") -> None:
        self._policy = policy
        self._proc = proc
        self._nvml: Nvml | None = None

    def sample(self) -> Sample:
        """The host now. Raises HostError VGPU-HOST-003 if the state folder cannot be read at all."""
        containers, troubles = read_containers(self._policy)
        # of the counters, from which rates are made: NVML's first look takes as long as the driver needs to begin
        now, wall = time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns()
        gpus: tuple[GpuTruth, ...] = ()
        try:
            self._nvml = self._nvml or Nvml(self._policy)
            gpus = self._nvml.gpus(Processes({one.id: one.init for one in containers}, self._proc))
        except VgpuError as error:
            troubles.append(("nvml", str(error)))
            self.close()  # a driver that was restarted must be opened anew
        return Sample(now, wall, tuple(containers), gpus, tuple(troubles), self._policy.simulate_gpus > 0)

    def failures(self) -> list[tuple[int, str]]:
        """(GPU, why) of those that have failed since the last call; asked after `sample`."""
        return [] if self._nvml is None else self._nvml.failures(self._policy.sick_xids)

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None


def read_containers(policy: Policy) -> tuple[list[ContainerSample], list[tuple[str, str]]]:
    """The containers that run, oldest first, and (part, what) that cannot be read. For root those of users as well."""
    found: list[tuple[int, ContainerSample]] = []
    troubles: list[tuple[str, str]] = []
    for name in ps.names(policy.state_dir):
        try:
            allocation = ledger.read(policy.state_dir, name)
            if allocation is not None and ledger.alive(allocation):
                found.append((allocation.created_ns, _container(policy.state_dir, allocation)))
        except VgpuError as error:
            if os.path.lexists(ledger.folder(policy.state_dir, name)):  # else it ended while we were reading
                troubles.append(("ledger", str(error)))
    known = {one.id for _, one in found}
    for user in users.every(policy, lambda error: troubles.append(("ledger", str(error)))):
        for allocation in users.running(user):
            if allocation.id not in known:  # a user can give an entry any name, but not take root's
                known.add(allocation.id)
                found.append((allocation.created_ns, _container(user.policy.state_dir, allocation, user.name)))
    containers = [one for _, one in sorted(found, key=lambda pair: (pair[0], pair[1].id))]
    troubles += [("usage", f"{one.id[:12]}: {one.trouble}") for one in containers if one.trouble]
    return containers, troubles


def _container(state_dir: str, allocation: Allocation, user: str | None = None) -> ContainerSample:
    box = Path(ledger.folder(state_dir, allocation.id), "box")
    usage, trouble = None, ""
    quota: tuple[bindings.GpuQuota, ...] = ()
    try:
        quota = bindings.read_quota(box / "quota")
        usage = bindings.read_usage(box / "usage")  # written by the container: it may hold anything
    except (VgpuError, OSError, ValueError) as error:
        trouble = str(error)
    slices = []
    for number, part in enumerate(allocation.placement.slices):
        live = quota[number] if number < len(quota) else None
        slices.append(
            SliceSample(
                index=part.index,
                uuid=part.uuid,
                memory_bytes=live.memory_bytes if live else part.memory_bytes,
                cores_percent=live.cores_percent if live else part.cores_percent or 100,
                use=usage.gpus[number] if usage else None,
            )
        )
    return ContainerSample(
        id=allocation.id,
        name=_printable(users.shown(user, allocation.name or allocation.id[:12])),
        image=_printable(allocation.image),
        state=allocation.state,
        simulated=allocation.simulated,
        init=allocation.init.pid if allocation.init else 0,
        armed=bool(usage and usage.armed_ns),
        pids=frozenset(process.pid for process in usage.processes if process.alive) if usage else frozenset(),
        slices=tuple(slices),
        trouble=trouble,
    )


def _printable(text: str) -> str:
    """A name can come from an image: half a surrogate pair in it would break every output that is UTF-8."""
    return text.encode("utf-8", "replace").decode()
