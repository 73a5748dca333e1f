"""vgpu simulate: reads the files, runs each policy, prints and writes. The only module here that writes."""

from __future__ import annotations

import csv
import sys
from typing import Any

from oci_hook.errors import HostError, shown
from vgpu import output
from vgpu.simulate import cluster_file, generate, report, results, trace_file
from vgpu.simulate.engine import Outcome, simulate
from vgpu.simulate.fleet import POLICIES
from vgpu.simulate.model import Cluster, Job


def run(cluster: str, trace: str, policies: str, *, preempt: bool, to_file: str | None, as_json: bool) -> None:
    names = _policies(policies)
    nodes, read = cluster_file.read(cluster), trace_file.read(trace)
    if "weighted" in names and not nodes.weights:
        what = f"--policy={shown(policies)}: {cluster} does not say what weighted mixes"
        raise HostError("VGPU-SIM-003", what, remedy="write weighted: {binpack: 0.7, topology: 0.3} there")
    rows, outcomes = compared(nodes, read.jobs, names, preempt=preempt)
    facts = {
        "cluster": cluster,
        "gpus": nodes.gpus,
        "memory_bytes": nodes.memory_bytes,
        "trace": trace,
        "format": read.kind,
        "jobs": len(read.jobs),
        "left_out": read.left_out,
        "preempt": preempt,
        "simulated": True,
    }
    if to_file:
        said = [f"{name}: {value}" for name, value in facts.items() if name != "simulated"]
        _write(to_file, report.page("Placement policies compared", said, rows, outcomes))
    if as_json:
        output.emit_json({**facts, "policies": rows})
        return
    table = [(label, *(report.number(row[key]) for row in rows)) for key, label, _ in report.COLUMNS]
    output.table(("SIMULATED", *names), table)


def compared(
    cluster: Cluster, jobs: tuple[Job, ...], names: tuple[str, ...], *, preempt: bool = False
) -> tuple[list[dict[str, Any]], list[Outcome]]:
    """The figures and the run of each policy."""
    rows, outcomes = [], []
    for name in names:
        outcome = simulate(cluster, jobs, name, preempt=preempt)
        bound = results.earliest_end(cluster, jobs, [start is not None for start in outcome.starts])
        rows.append(results.summary(outcome, jobs, bound))
        outcomes.append(outcome)
    return results.compare(rows), outcomes


def write_trace(cluster: str, trace: str, mix: str, *, jobs: int, load: float, seed: int) -> None:
    """Writes a trace of our own columns."""
    nodes = cluster_file.read(cluster)
    if mix not in generate.MIX:
        remedy = f"choose {', '.join(generate.MIX)}"
        raise HostError("VGPU-SIM-003", f"--generate={shown(mix)}: there is no such mix of jobs", remedy=remedy)
    if not (1 <= jobs <= 10_000_000 and 0.01 <= load <= 100):
        what = f"--jobs={jobs} --load={load}: out of range"
        raise HostError("VGPU-SIM-003", what, remedy="write 1 to 10000000 jobs and a load of 0.01 to 100")
    try:
        with open(trace, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(generate.rows(nodes, mix, jobs, load, seed))
    except OSError as error:
        raise _unwritable(trace, error) from None
    print(f"{trace}: {jobs} jobs of the mix {mix}, load {load:g}, seed {seed}", file=sys.stderr)


def _policies(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in POLICIES:
            what = f"--policy={shown(text)}: {shown(name)} cannot be simulated"
            raise HostError("VGPU-SIM-003", what, remedy=f"choose among {', '.join(POLICIES)}")
    if len(set(names)) != len(names):
        what = f"--policy={shown(text)}: a policy is named twice"
        raise HostError("VGPU-SIM-003", what, remedy="name each once")
    return names


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: str, error: OSError) -> HostError:
    return HostError(
        "VGPU-SIM-003", f"{path} cannot be written: {error.strerror}", remedy="name a file in a folder of yours"
    )
