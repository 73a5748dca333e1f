"""The nodes of a cluster, and which of them takes a job: the live placement's score, asked as seldom as possible.

The node with the best mean score of its slices takes a job, the lower number between equals. `Fleet.find` gives the
same answer as asking oci_hook.placement on every node each time (`naive_find`, which the tests hold it against):

* GPUs that are equally full are one *state*; the live function is asked once per state and shape, not once per GPU.
* binpack and spread look at each GPU alone, so for one GPU the best state's score is the node's. For more GPUs, and
  for other policies, the live function sees the whole node, where a GPU that cannot serve the ask counts as unusable.
* Each shape keeps a heap of the nodes by score, and looks again only at those that changed since its last question.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache

from oci_hook import placement, request
from oci_hook.records import Allocation, Gpu, Placement, Policy, Process, Request, Slice
from vgpu.simulate.model import Cluster, NodeKind, Shape

SIMULATED = ("binpack", "spread", "topology", "exclusive", "weighted")  # no load is known here
POLICIES = tuple(name for name in request.CHOICES["policy"] if name in SIMULATED)
_ALONE = ("binpack", "spread")  # these judge a GPU without looking at the others
_NOBODY = Process(0, 0)


@dataclass(frozen=True, slots=True)
class State:
    """How full one GPU is. containers: on it."""

    kind: NodeKind
    used_bytes: int = 0
    used_cores: int = 0
    containers: int = 0


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a shape fits on a node, and what it takes there. slices: (GPU of the node, bytes, percent of cores)."""

    score: float
    slices: tuple[tuple[int, int, int], ...]


@dataclass(slots=True)
class _Index:
    """What is known for one shape. seen: of the fleet's log of changes."""

    seen: int = -1
    states: dict[int, Spot | None] = field(default_factory=dict)
    nodes: dict[tuple[int, ...], Spot | None] = field(default_factory=dict)
    heap: list[tuple[float, int, int, Spot]] = field(default_factory=list)


class Fleet:
    """on_change: told the old and the new state of every GPU that changes."""

    def __init__(
        self, cluster: Cluster, policy: str, on_change: Callable[[State, State], None] = lambda old, new: None
    ) -> None:
        self._how = policy
        self._policy = Policy(
            runtime="",
            prefix="",
            placement=policy,
            overcommit_memory=cluster.overcommit_memory,
            overcommit_cores=cluster.overcommit_cores,
            weights=dict(cluster.weights),
        )
        self._on_change = on_change
        self.states: list[State] = []
        self._numbers: dict[State, int] = {}
        self.kinds = [kind for kind in cluster.kinds for _ in range(kind.count)]
        self.nodes = [[self._number(State(kind))] * kind.gpus for kind in self.kinds]
        self._versions = [0] * len(self.nodes)
        self._log: list[int] = []
        self._indexes: dict[Shape, _Index] = {}
        self.live_calls = 0

    def _number(self, state: State) -> int:
        number = self._numbers.setdefault(state, len(self.states))
        if number == len(self.states):
            self.states.append(state)
        return number

    def find(self, shape: Shape) -> tuple[int, Spot] | None:
        """The best node for `shape` now, None if it fits on none."""
        index = self._indexes.get(shape)
        if index is None:
            index = self._indexes[shape] = _Index()
        changed: Iterable[int] = range(len(self.nodes)) if index.seen < 0 else set(self._log[index.seen :])
        index.seen = len(self._log)
        for number in changed:
            spot = self._spot(shape, index, number)
            if spot:
                heapq.heappush(index.heap, (-spot.score, number, self._versions[number], spot))
        if len(index.heap) > 4 * len(self.nodes):
            index.heap = [entry for entry in index.heap if entry[2] == self._versions[entry[1]]]
            heapq.heapify(index.heap)
        while index.heap and index.heap[0][2] != self._versions[index.heap[0][1]]:
            heapq.heappop(index.heap)
        return (index.heap[0][1], index.heap[0][3]) if index.heap else None

    def naive_find(self, shape: Shape) -> tuple[int, Spot] | None:
        """What `find` must answer: every node asked, nothing remembered."""
        best: tuple[int, Spot] | None = None
        for number, node in enumerate(self.nodes):
            spot = self.ask(shape, self.kinds[number], [self.states[state] for state in node])
            if spot and (best is None or spot.score > best[1].score):
                best = number, spot
        return best

    def take(self, number: int, spot: Spot) -> None:
        self._change(number, spot, 1)

    def give_back(self, number: int, spot: Spot) -> None:
        self._change(number, spot, -1)

    def _change(self, number: int, spot: Spot, sign: int) -> None:
        node = self.nodes[number]
        for gpu, size, cores in spot.slices:
            old = self.states[node[gpu]]
            new = State(old.kind, old.used_bytes + sign * size, old.used_cores + sign * cores, old.containers + sign)
            node[gpu] = self._number(new)
            self._on_change(old, new)
        self._versions[number] += 1
        self._log.append(number)

    def without(self, states: list[State], spot: Spot) -> list[State]:
        """The states of a node if `spot` were given back; the fleet is not changed."""
        left = list(states)
        for gpu, size, cores in spot.slices:
            old = left[gpu]
            left[gpu] = State(old.kind, old.used_bytes - size, old.used_cores - cores, old.containers - 1)
        return left

    def _spot(self, shape: Shape, index: _Index, number: int) -> Spot | None:
        kind = self.kinds[number]
        best, best_gpu, fitting, usable = None, 0, 0, []
        for gpu, state in enumerate(self.nodes[number]):
            if state not in index.states:
                alone = Shape(shape.ask, 1, shape.models)
                index.states[state] = self.ask(alone, kind, [self.states[state]])
            spot = index.states[state]
            fitting += spot is not None
            usable.append(state if spot else -1)
            if spot and (best is None or spot.score > best.score):
                best, best_gpu = spot, gpu
        if best is None or fitting < shape.gpus:
            return None
        if shape.gpus == 1 and self._how in _ALONE:
            _, size, cores = best.slices[0]
            return best if best_gpu == 0 else Spot(best.score, ((best_gpu, size, cores),))
        key = tuple(usable)
        if key not in index.nodes:
            states = [self.states[state] if state >= 0 else None for state in usable]
            index.nodes[key] = self.ask(shape, kind, states)
        return index.nodes[key]

    def ask(self, shape: Shape, kind: NodeKind, states: list[State | None] | list[State]) -> Spot | None:
        """The live placement's answer for one node. A state of None: a GPU that is not to be used."""
        if shape.models and kind.gpu.lower() not in shape.models:
            return None
        self.live_calls += 1
        gpus, given = [], []
        for number, state in enumerate(states):
            gpu = _gpu(kind, number, "ok" if state else "not usable")
            gpus.append(gpu)
            if state:
                given += _given(gpu, state, self._how)
        asked = Request(asks=(shape.ask,) * shape.gpus)
        answer = placement.place(asked, gpus, given, self._policy)
        if not answer.slices:
            return None
        scores = {(item.ask, item.index): item.score or 0.0 for item in answer.candidates}
        score = sum(scores[ask, part.index] for ask, part in enumerate(answer.slices)) / shape.gpus
        slices = tuple((part.index, part.memory_bytes, part.cores_percent) for part in answer.slices)
        return Spot(round(score, 6), slices)


@cache
def _gpu(kind: NodeKind, number: int, health: str) -> Gpu:
    first = number - number % kind.nvlink
    joined = range(first, min(first + kind.nvlink, kind.gpus))
    links = {f"GPU-{other}": "NV18" for other in joined if other != number}
    return Gpu(number, f"GPU-{number}", kind.gpu, kind.memory_bytes, "", number, health, links=links)


def _given(gpu: Gpu, state: State, how: str) -> list[Allocation]:
    """As many allocations as there are containers; the first has all that is used: placement adds it up."""
    given = []
    for number in range(state.containers):
        size, cores = (state.used_bytes, state.used_cores) if number == 0 else (0, 0)
        had = Placement(how, (Slice(gpu.index, gpu.uuid, size, cores),), ())
        given.append(
            Allocation(
                id=f"{gpu.index}-{number}",
                name="",
                image="",
                state="armed",
                created_ns=0,
                creator=_NOBODY,
                init=None,
                request=Request(asks=()),
                placement=had,
                clamped=(),
                simulated=True,
                driver_version="",
            )
        )
    return given
