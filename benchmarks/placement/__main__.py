"""Runs every case and writes results/results.json, table.md and one page per case: always the same bytes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vgpu.simulate import generate, report, trace_file
from vgpu.simulate.command import compared
from vgpu.simulate.engine import Outcome
from vgpu.simulate.model import Cluster, NodeKind

RESULTS = Path(__file__).parent / "results"
NODES = (2, 16, 64)  # of 8 GPUs with 80 GiB each
MIXES = tuple(generate.MIX)
SEEDS = (1, 2)
JOBS_PER_NODE = 150
LOAD = 0.85
POLICIES = ("binpack", "spread")
COLUMNS = ("at_once", "wait_mean_s", "wait_p99_s", "memory_used", "memory_stranded", "cores_stranded", "bound_of_end")


def case(mix: str, nodes: int, seed: int) -> tuple[list[dict[str, Any]], list[Outcome]]:
    """Every policy on one generated trace."""
    cluster = Cluster((NodeKind(nodes, "A100", 8, 80 << 30),))
    rows = generate.rows(cluster, mix, JOBS_PER_NODE * nodes, LOAD, seed)
    trace = trace_file.parse((",".join(map(str, row)) for row in rows), mix)
    return compared(cluster, trace.jobs, POLICIES)


def main() -> None:
    found: list[dict[str, Any]] = []
    RESULTS.mkdir(exist_ok=True)
    for mix in MIXES:
        for nodes in NODES:
            for seed in SEEDS:
                rows, outcomes = case(mix, nodes, seed)
                found += [{"mix": mix, "gpus": 8 * nodes, "seed": seed, **row} for row in rows]
                print(f"{mix}, {8 * nodes} GPUs, seed {seed}", file=sys.stderr)
            if nodes == max(NODES):  # the pages of the largest clusters, of the last seed
                facts = [f"mix: {mix}", f"gpus: {8 * nodes}", f"load: {LOAD}", f"seed: {seed}"]
                (RESULTS / f"{mix}.html").write_text(report.page(f"Placement: {mix}", facts, rows, outcomes))
    (RESULTS / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "table.md").write_text(table(found))


def table(found: list[dict[str, Any]]) -> str:
    """Markdown; all figures are simulated."""
    names = ("mix", "gpus", "seed", "policy", *COLUMNS)
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in found:
        cells = [str(row[name]) for name in names[:4]] + [report.number(row[name]) for name in COLUMNS]
        lines.append(f"| {' | '.join(cells)} |")
    return "All figures are *simulated*.\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
