"""The run: arrivals, departures, the queue. No clock and no chance in it: the same input gives the same result.

Who waits is tried again at every departure, by priority, then by arrival; a job that does not fit does not hold up the
jobs behind it. With `preempt`, a job that does not fit may end younger jobs of lower priority on one node: those start
again from nothing, at their old place in the queue.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from vgpu.simulate.fleet import Fleet, Spot
from vgpu.simulate.meter import Meter
from vgpu.simulate.model import PRIORITIES, Cluster, Job, Shape

_Taken = list[tuple[int, Spot]]


@dataclass(slots=True)
class Outcome:
    """starts: of each job in trace order, seconds; the last start where it was preempted; None: never.

    blocked: jobs that found no place on arrival although the free memory and cores of all GPUs together were enough.
    """

    policy: str
    starts: list[int | None]
    meter: Meter
    blocked: int = 0
    preempted: int = 0
    end_s: int = 0
    live_calls: int = 0


@dataclass(slots=True)
class _Run:
    jobs: Sequence[Job]
    fleet: Fleet
    outcome: Outcome
    preempt: bool
    waiting: dict[tuple[int, Shape, int], deque[int]] = field(default_factory=dict)
    running: dict[int, _Taken] = field(default_factory=dict)
    ends: list[tuple[int, int, int]] = field(default_factory=list)  # (time, job, which start of it)
    tries: dict[int, int] = field(default_factory=dict)  # of jobs that were preempted
    on_node: dict[int, set[int]] = field(default_factory=dict)  # kept with `preempt` only

    def place(self, number: int) -> _Taken | None:
        """All instances of a job, or none."""
        job = self.jobs[number]
        taken: _Taken = []
        for _ in range(job.instances):
            found = self.fleet.find(job.shape)
            if found is None:
                self.free(taken)
                return None
            self.fleet.take(*found)
            taken.append(found)
        return taken

    def free(self, taken: _Taken) -> None:
        for node, spot in reversed(taken):
            self.fleet.give_back(node, spot)

    def start(self, number: int, taken: _Taken, now: int) -> None:
        self.outcome.starts[number] = now
        self.running[number] = taken
        heapq.heappush(self.ends, (now + self.jobs[number].duration_s, number, self.tries.get(number, 0)))
        if self.preempt:
            for node, _ in taken:
                self.on_node.setdefault(node, set()).add(number)

    def stop(self, number: int) -> None:
        taken = self.running.pop(number)
        self.free(taken)
        for node, _ in taken if self.preempt else ():
            self.on_node[node].discard(number)

    def wait(self, number: int) -> None:
        job = self.jobs[number]
        key = (PRIORITIES.index(job.priority), job.shape, job.instances)
        queue = self.waiting.setdefault(key, deque())
        queue.append(number)
        if len(queue) > 1 and queue[-2] > number:  # it was preempted: back to its old place
            self.waiting[key] = deque(sorted(queue))

    def serve(self, now: int) -> None:
        """Starts all who wait and fit. Jobs that ask for the same are one queue: if its head has no place, none has."""
        heads = [(key[0], queue[0], key) for key, queue in self.waiting.items() if queue]
        order = [(priority, number) for priority, number, _ in heads]
        keys = {number: key for _, number, key in heads}
        heapq.heapify(order)
        while order:
            priority, number = heapq.heappop(order)
            taken = self.place(number)
            if taken is None:
                continue
            queue = self.waiting[keys[number]]
            queue.popleft()
            self.start(number, taken, now)
            if queue:
                keys[queue[0]] = keys[number]
                heapq.heappush(order, (priority, queue[0]))

    def arrive(self, number: int, now: int) -> None:
        job = self.jobs[number]
        key = (PRIORITIES.index(job.priority), job.shape, job.instances)
        # who asked for the same and still waits was tried at the last departure: it did not fit, nor does this
        taken = None if self.waiting.get(key) else self.place(number)
        if taken is None:
            meter = self.outcome.meter
            memory, cores = meter.asked(job)
            self.outcome.blocked += memory <= meter.free_bytes and cores <= meter.free_cores
            taken = self.make_room(number) if self.preempt else None
        if taken is None:
            self.wait(number)
        else:
            self.start(number, taken, now)

    def make_room(self, number: int) -> _Taken | None:
        """Ends the fewest jobs of lower priority on one node that let this job in; the lower node between equals."""
        job = self.jobs[number]
        rank = PRIORITIES.index(job.priority)
        if job.instances > 1 or rank == len(PRIORITIES) - 1:
            return None
        best: list[int] | None = None
        for node in sorted(self.on_node):
            below = [item for item in self.on_node[node] if PRIORITIES.index(self.jobs[item].priority) > rank]
            below.sort(key=lambda item: (PRIORITIES.index(self.jobs[item].priority), item), reverse=True)
            victims = self._victims(job.shape, node, below[: len(best) - 1 if best else None])
            if victims is not None:
                best = victims
            if best is not None and len(best) == 1:
                break
        if best is None:
            return None
        for victim in best:
            self.stop(victim)
            self.tries[victim] = self.tries.get(victim, 0) + 1
            self.outcome.starts[victim] = None
            self.wait(victim)
        self.outcome.preempted += len(best)
        return self.place(number)

    def _victims(self, shape: Shape, node: int, below: list[int]) -> list[int] | None:
        """The first few of `below` without which `shape` fits on the node; the fleet is not changed."""
        states = [self.fleet.states[state] for state in self.fleet.nodes[node]]
        for count, victim in enumerate(below, 1):
            for where, spot in self.running[victim]:
                if where == node:
                    states = self.fleet.without(states, spot)
            if self.fleet.ask(shape, self.fleet.kinds[node], states):
                return below[:count]
        return None


def simulate(cluster: Cluster, jobs: Sequence[Job], policy: str, *, preempt: bool = False) -> Outcome:
    """jobs: by arrival. Ends when nothing runs and nothing more arrives; jobs that fit on no empty node never start."""
    meter = Meter(cluster, jobs)
    fleet = Fleet(cluster, policy, meter.change)
    outcome = Outcome(policy, [None] * len(jobs), meter)
    run = _Run(jobs, fleet, outcome, preempt)
    arriving = 0
    while arriving < len(jobs) or run.ends:
        now = jobs[arriving].arrival_s if arriving < len(jobs) else run.ends[0][0]
        if run.ends:
            now = min(now, run.ends[0][0])
        meter.advance(now)
        ended = False
        while run.ends and run.ends[0][0] == now:
            _, number, which = heapq.heappop(run.ends)
            if which == run.tries.get(number, 0) and number in run.running:
                run.stop(number)
                ended = True
                outcome.end_s = now
        if ended:
            run.serve(now)
        preempted = outcome.preempted
        while arriving < len(jobs) and jobs[arriving].arrival_s == now:
            run.arrive(arriving, now)
            arriving += 1
        if outcome.preempted > preempted:
            run.serve(now)
    outcome.live_calls = fleet.live_calls
    return outcome
