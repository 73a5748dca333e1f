"""What is measured while a simulation runs. Sums over time are exact: whole bytes and percent times whole seconds."""

from __future__ import annotations

from collections.abc import Sequence

from oci_hook.records import Ask
from vgpu.simulate.fleet import State
from vgpu.simulate.model import Cluster, Job, NodeKind

SAMPLES = 240  # of the curve over time; what is reported as a number does not depend on it


class Meter:
    """Stranded memory: free, on a GPU whose cores are all reserved. Stranded cores: free, on a GPU whose free memory is
    less than the smallest ask of the trace. Neither can be given to anybody until a container there ends.
    """

    def __init__(self, cluster: Cluster, jobs: Sequence[Job]) -> None:
        self._cluster = cluster
        self._memory_factor = cluster.overcommit_memory
        self._cores = int(100 * cluster.overcommit_cores)
        self.total_bytes = sum(k.count * k.gpus * int(k.memory_bytes * self._memory_factor) for k in cluster.kinds)
        self.total_cores = cluster.gpus * self._cores
        smallest = {shape.ask for shape in {job.shape for job in jobs}}
        self._smallest = {k: min((_bytes(ask, k) for ask in smallest), default=0) for k in cluster.kinds}
        self.used_bytes = self.used_cores = self.stranded_bytes = self.stranded_cores = 0
        self.sums = [0, 0, 0, 0]  # of the four above, times seconds
        self.now = 0
        self._known: dict[State, tuple[int, int]] = {}
        self._step = max(1, (jobs[-1].arrival_s if jobs else 0) // SAMPLES)
        self.curve: list[tuple[int, float, float]] = []  # (second, share of memory, share of cores) in use

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.used_bytes

    @property
    def free_cores(self) -> int:
        return self.total_cores - self.used_cores

    def asked(self, job: Job) -> tuple[int, int]:
        """Bytes and percent of cores of all instances; a share of a GPU counts as that of the smallest one."""
        count = job.instances * job.shape.gpus
        size = min(_bytes(job.shape.ask, kind) for kind in self._cluster.kinds)
        return count * size, count * job.shape.ask.cores_percent

    def change(self, old: State, new: State) -> None:
        self.used_bytes += new.used_bytes - old.used_bytes
        self.used_cores += new.used_cores - old.used_cores
        before, after = self._stranded(old), self._stranded(new)
        self.stranded_bytes += after[0] - before[0]
        self.stranded_cores += after[1] - before[1]

    def advance(self, now: int) -> None:
        """All is as it is until `now`."""
        passed = now - self.now
        current = (self.used_bytes, self.used_cores, self.stranded_bytes, self.stranded_cores)
        for number, value in enumerate(current):
            self.sums[number] += value * passed
        if not self.curve or now >= self.curve[-1][0] + self._step:
            self.curve.append((now, self.used_bytes / self.total_bytes, self.used_cores / self.total_cores))
        self.now = now

    def _stranded(self, state: State) -> tuple[int, int]:
        if state not in self._known:
            memory = max(int(state.kind.memory_bytes * self._memory_factor) - state.used_bytes, 0)
            cores = max(self._cores - state.used_cores, 0)
            self._known[state] = (0 if cores else memory, cores if memory < self._smallest[state.kind] else 0)
        return self._known[state]


def _bytes(ask: Ask, kind: NodeKind) -> int:
    return ask.memory_bytes if ask.memory_bytes is not None else kind.memory_bytes * (ask.memory_percent or 0) // 100
