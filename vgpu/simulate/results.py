"""From a run to the figures that are reported. All are simulated. Shares are 0 to 1, rounded to six digits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vgpu.simulate.engine import Outcome
from vgpu.simulate.meter import Meter
from vgpu.simulate.model import Cluster, Job


def summary(outcome: Outcome, jobs: Sequence[Job], bound_s: int) -> dict[str, Any]:
    """The figures of one policy; docs/simulation.md defines each."""
    meter, end = outcome.meter, max(outcome.end_s, 1)
    waits = sorted(start - job.arrival_s for job, start in zip(jobs, outcome.starts, strict=True) if start is not None)
    memory, cores, stranded_memory, stranded_cores = meter.sums
    return {
        "policy": outcome.policy,
        "placed": _share(len(waits), len(jobs)),
        "at_once": _share(sum(1 for wait in waits if not wait), len(jobs)),
        "wait_mean_s": round(sum(waits) / len(waits), 3) if waits else None,
        "wait_p50_s": _percentile(waits, 50),
        "wait_p95_s": _percentile(waits, 95),
        "wait_p99_s": _percentile(waits, 99),
        "memory_used": _share(memory, meter.total_bytes * end),
        "cores_used": _share(cores, meter.total_cores * end),
        "memory_stranded": _share(stranded_memory, meter.total_bytes * end),
        "cores_stranded": _share(stranded_cores, meter.total_cores * end),
        "fairness": _fairness(outcome, jobs),
        "blocked_by_fragmentation": outcome.blocked,
        "preempted": outcome.preempted,
        "end_s": outcome.end_s,
        "bound_of_end": _share(bound_s, end),
    }


def compare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """migrations_avoided: fewer jobs that only a migration would have let in than with the worst policy compared."""
    worst = max(row["blocked_by_fragmentation"] for row in rows)
    return [{**row, "migrations_avoided": worst - row["blocked_by_fragmentation"]} for row in rows]


def earliest_end(cluster: Cluster, jobs: Sequence[Job], placed: Sequence[bool]) -> int:
    """A second before which no placement, not even one that splits, moves and pauses jobs, can be done with `placed`.

    All GPUs count as one large one. For every arrival: what arrives from then on must all be done after it, in memory
    and in cores; and no job ends before its arrival and its duration.
    """
    meter = Meter(cluster, jobs)
    latest, memory, cores = 0, 0, 0
    for job, counts in zip(reversed(jobs), reversed(placed), strict=True):
        if not counts:
            continue
        size, share = meter.asked(job)
        memory += size * job.duration_s
        cores += share * job.duration_s
        work_s = max(-(-memory // meter.total_bytes), -(-cores // meter.total_cores))
        latest = max(latest, job.arrival_s + job.duration_s, job.arrival_s + work_s)
    return latest


def _percentile(ordered: Sequence[int], percent: int) -> int | None:
    """Nearest rank."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else None


def _fairness(outcome: Outcome, jobs: Sequence[Job]) -> float | None:
    """Jain's index over owners, of how fast each was served: run time / (run time + waiting). 1: all alike."""
    ran: dict[str, int] = {}
    stayed: dict[str, int] = {}
    for job, start in zip(jobs, outcome.starts, strict=True):
        if start is not None:
            ran[job.owner] = ran.get(job.owner, 0) + job.duration_s
            stayed[job.owner] = stayed.get(job.owner, 0) + job.duration_s + start - job.arrival_s
    speeds = [ran[owner] / stayed[owner] for owner in ran]
    if not speeds:
        return None
    return round(sum(speeds) ** 2 / (len(speeds) * sum(speed**2 for speed in speeds)), 6)


def _share(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole else 0.0
