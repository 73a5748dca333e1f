"""What is simulated: kinds of nodes, and jobs. Times are whole seconds since the trace's first arrival."""

from __future__ import annotations

from dataclasses import dataclass

from oci_hook.records import Ask

PRIORITIES = ("high", "normal", "low")


@dataclass(frozen=True, slots=True)
class NodeKind:
    """count: of such nodes. gpus: on each of them. memory_bytes: of one GPU. nvlink: so many neighbours, from the first
    on, are joined by NVLink; 1: none are."""

    count: int
    gpu: str
    gpus: int
    memory_bytes: int
    nvlink: int = 1


@dataclass(frozen=True, slots=True)
class Cluster:
    """weights: (policy, weight) of those that `weighted` mixes; (): it cannot be simulated."""

    kinds: tuple[NodeKind, ...]
    overcommit_memory: float = 1.0
    overcommit_cores: float = 1.0
    weights: tuple[tuple[str, float], ...] = ()

    @property
    def gpus(self) -> int:
        return sum(kind.count * kind.gpus for kind in self.kinds)

    @property
    def memory_bytes(self) -> int:
        return sum(kind.count * kind.gpus * kind.memory_bytes for kind in self.kinds)


@dataclass(frozen=True, slots=True)
class Shape:
    """What jobs ask for. gpus: of one node, each with `ask`. models: of GPUs that will do, in lower case; (): all."""

    ask: Ask
    gpus: int = 1
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """instances: how many of `shape` start together or not at all. owner: whom fairness counts it for."""

    name: str
    owner: str
    arrival_s: int
    duration_s: int
    shape: Shape
    instances: int = 1
    priority: str = "normal"
