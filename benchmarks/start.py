"""What a container's start costs: plain runc, our launcher when nothing is asked, and a full slice, by our launcher or
by the hook alone that a CDI spec brings (Podman: `--device vgpu.dev/gpu=all`). `make bench`.

They run in turn, in a new order each round, so that what else the machine does falls on all of them alike. A start
is `create` and `start`, as an engine calls them; a life adds the program, `true`, and `delete`. The GPU is simulated,
which changes nothing here: what is mounted are files either way. Results are printed and written as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oci_hook import inventory, policy
from runtime_config import cdi
from tests.harness import bundle, cdi_engine, images, installed, leftovers

RESULTS = Path(__file__).parent / "results/start.json"
SLICE = {"vgpu.memory": "8GiB", "vgpu.cores": "30"}
BARS_MS = {"launcher, nothing asked": 3.0, "slice of 8 GiB": 30.0}  # added to the p50 of plain runc's start


@dataclass(slots=True)
class Series:
    """One way to start. cdi: the spec whose devices it gets. start_ms, life_ms: one figure per round."""

    runtime: Path
    annotations: dict[str, str]
    cdi: str = ""
    start_ms: list[float] = field(default_factory=list)
    life_ms: list[float] = field(default_factory=list)

    def once(self, folder: Path, tree: Path) -> None:
        with bundle.container(self.runtime, folder, tree, ["true"], annotations=self.annotations) as box:
            if self.cdi:
                cdi_engine.give(box, self.cdi, cdi.ALL)
            began = time.perf_counter()
            created = box.create()
            box.start()
            started = time.perf_counter()
            if created.code or box.wait():
                raise RuntimeError(f"the container failed: {created}")
            box.delete()
            ended = time.perf_counter()
        self.start_ms.append((started - began) * 1000)
        self.life_ms.append((ended - began) * 1000)


def measure(rounds: int) -> dict[str, Series]:
    """Runs every series `rounds` times, and twice more at first to warm caches; those do not count."""
    # in memory, as /run is on a machine that was booted: the state folder belongs there
    with (
        tempfile.TemporaryDirectory(prefix="vgpu-bench-", dir="/dev/shm") as memory,
        tempfile.TemporaryDirectory(prefix="vgpu-bench-") as name,
    ):
        folder = Path(name)
        runc = bundle.low_level("runc", folder)
        vgpu = installed.install(folder, runc, state=Path(memory, "state"))
        have = inventory.load(policy.load(str(vgpu.prefix / "etc/policy.json")))
        spec = cdi.generate(have, "/usr/bin/python3", str(vgpu.prefix))
        tree = images.tree(folder / "trees", "c")
        series = {
            "plain runc": Series(runc, {}),
            "launcher, nothing asked": Series(vgpu.runtime, {}),
            "slice of 8 GiB": Series(vgpu.runtime, SLICE),
            "slice by the hook alone": Series(runc, SLICE, spec),
        }
        order = list(series.values())
        for number in range(-2, rounds):
            random.shuffle(order)
            for one in order:
                one.once(folder / "bundles", tree)
            if number == -1:
                for one in order:
                    one.start_ms.clear()
                    one.life_ms.clear()
        armed = sum(entry["event"] == "arm" for entry in vgpu.audit())
        if armed != (rounds + 2) * sum(bool(one.annotations) for one in order):
            raise RuntimeError(f"only {armed} starts had a slice")
        leftovers.remove_cgroups(bundle.CGROUP)
        shutil.rmtree(folder / "bundles")
    return series


def percentile(values: list[float], share: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]


def summary(series: dict[str, Series]) -> dict[str, dict[str, float]]:
    """Per series p50 and p95, milliseconds, and what it adds to plain runc's, as a difference and as a ratio of p50."""
    plain = series["plain runc"]
    rows: dict[str, dict[str, float]] = {}
    for name, one in series.items():
        start, life = statistics.median(one.start_ms), statistics.median(one.life_ms)
        rows[name] = {
            "start_p50_ms": start,
            "start_p95_ms": percentile(one.start_ms, 95),
            "start_added_ms": start - statistics.median(plain.start_ms),
            "start_ratio": start / statistics.median(plain.start_ms),
            "life_p50_ms": life,
            "life_added_ms": life - statistics.median(plain.life_ms),
        }
    return rows


def machine() -> dict[str, Any]:
    runc = subprocess.run(["runc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return {
        "cpus": os.cpu_count(),
        "load_1m": os.getloadavg()[0],  # at the end of a run on an idle machine: around 1
        "kernel": platform.release(),
        "runtime": runc,
        "python": platform.python_version(),
        "gpu": "simulated",
    }


def print_table(rows: dict[str, dict[str, float]]) -> None:
    print(
        f"{'':26}{'start p50':>11}{'p95':>9}{'added':>9}{'ratio':>8}{'life p50':>11}{'added':>9}   bar (start, added)"
    )
    for name, row in rows.items():
        bar = BARS_MS.get(name)
        verdict = "" if bar is None else f"<= {bar:g} ms: {'held' if row['start_added_ms'] <= bar else 'MISSED'}"
        print(
            f"{name:26}{row['start_p50_ms']:8.1f} ms{row['start_p95_ms']:6.1f} ms{row['start_added_ms']:6.1f} ms"
            f"{row['start_ratio']:8.2f}{row['life_p50_ms']:8.1f} ms{row['life_added_ms']:6.1f} ms   {verdict}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="what a container's start costs, beside plain runc")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="exit 1 if a bar is missed")
    options = parser.parse_args()
    rows = summary(measure(options.rounds))
    print_table(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"schema": 1, "rounds": options.rounds, "machine": machine(), "bars_added_ms": BARS_MS, "results": rows}
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    missed = [name for name, bar in BARS_MS.items() if rows[name]["start_added_ms"] > bar]
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
