"""What the wrapper adds to a call: the simulated driver alone and behind it, in turn. `make bench-wrapper`.

Each figure is the median over rounds of the processes' medians (or 99th percentiles); "added" is the median of the
rounds' differences. Any other library that puts itself before the driver is measured in the same rounds with
--library PATH [--env KEY=VALUE]: one named libcuda.so.1 in place of the driver's, any other by LD_PRELOAD.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libcuda_wrap.sim import build as sim_build
from libcuda_wrap.toolchain import Toolchain
from tests.libcuda_wrap.wrapped import GIB, Box, part

HERE = Path(__file__).parent
RESULTS = HERE / "results/wrapper.json"
# nanoseconds added to the p50, by kind of call and number of processes at once
BARS_NS = {
    ("launch", 1): 10, ("alloc+free", 1): 150, ("alloc+free", 4): 400, ("getinfo", 1): 10, ("getProcAddress", 1): 40,
    ("load", 1): 300_000,
}  # fmt: skip
FLAT = 1.25  # alloc+free with 50,000 live allocations, against none, both through the wrapper


@dataclass
class Variant:
    """One way to run the client. rounds: (kind, processes) -> (p50, p99) of each round, nanoseconds."""

    name: str
    environment: dict[str, str]
    rounds: dict[tuple[str, int], list[tuple[float, float]]] = field(default_factory=dict)

    def note(self, kind: str, processes: int, p50: float, p99: float) -> None:
        self.rounds.setdefault((kind, processes), []).append((p50, p99))


def calls(program: Path, variant: Variant, processes: int, batches: int) -> None:
    """One round: `processes` clients at once."""
    command = [str(program), "calls", str(batches)]
    clients = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variant.environment)
        for _ in range(processes)
    ]
    for client in clients:
        assert client.stdout
        if client.stdout.readline() != "ready\n":
            raise SystemExit(f"{variant.name}: the client did not get ready")
    for client in clients:
        assert client.stdin
        client.stdin.write("\n")
        client.stdin.flush()
    found: dict[str, list[tuple[float, float]]] = {}
    for client in clients:
        told, _ = client.communicate(timeout=600)
        if client.returncode:
            raise SystemExit(f"{variant.name}: a call failed")
        for line in told.splitlines():
            kind, middle, high = line.split()
            found.setdefault(kind, []).append((float(middle), float(high)))
    for kind, pairs in found.items():
        p50, p99 = (statistics.median(pair[which] for pair in pairs) for which in (0, 1))
        variant.note(kind, processes, p50, p99)


def load(program: Path, variant: Variant) -> None:
    """One round of the times until the driver is there, ready, and has allocated for the first time."""
    done = subprocess.run([program, "load"], env=variant.environment, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        kind, ns = line.split()
        variant.note(kind, 1, float(ns), float(ns))


def measure(variants: Sequence[Variant], program: Path, box: Box, options: argparse.Namespace) -> None:
    for _ in range(options.rounds):
        for processes in options.processes:
            for variant in random.sample(variants, len(variants)):
                box.fresh(part(0, 60 * GIB), gpus=1)
                # as many calls in all, whatever the number of processes
                calls(program, variant, processes, max(30, options.batches // processes))
        for _ in range(4):
            for variant in random.sample(variants, len(variants)):
                load(program, variant)


def rows(direct: Variant, other: Variant) -> list[dict[str, Any]]:
    found = []
    for (kind, processes), pairs in direct.rounds.items():
        theirs = other.rounds[kind, processes]
        added = [[own[which] - base[which] for base, own in zip(pairs, theirs, strict=True)] for which in (0, 1)]
        bar = BARS_NS.get((kind, processes))
        p50 = statistics.median(added[0])
        found.append(
            {
                "call": kind,
                "processes": processes,
                "direct_p50_ns": statistics.median(pair[0] for pair in pairs),
                "p50_ns": statistics.median(pair[0] for pair in theirs),
                "added_p50_ns": p50,
                "added_p99_ns": statistics.median(added[1]),
                "bar_ns": bar,
                "held": None if bar is None else p50 <= bar,
            }
        )
    return found


def flatness(variant: Variant) -> float:
    """alloc+free with 50,000 live allocations as a multiple of the same without."""
    full, empty = (statistics.median(p50 for p50, _ in variant.rounds[kind, 1]) for kind in (FULL, "alloc+free"))
    return full / empty


FULL = "alloc+free,50000"


def show(name: str, table: list[dict[str, Any]], flat: float) -> None:
    print(f"\n{name}, on the simulated driver; nanoseconds a call")
    print(f"{'call':20}{'processes':>10}{'direct p50':>12}{'p50':>10}{'added p50':>11}{'added p99':>11}   bar")
    for row in table:
        verdict = "" if row["held"] is None else f"<= {row['bar_ns']:g}: {'held' if row['held'] else 'MISSED'}"
        print(
            f"{row['call']:20}{row['processes']:10}{row['direct_p50_ns']:12.1f}{row['p50_ns']:10.1f}"
            f"{row['added_p50_ns']:11.1f}{row['added_p99_ns']:11.1f}   {verdict}"
        )
    verdict = "held" if flat <= FLAT else "MISSED"
    print(f"alloc+free with 50,000 live allocations costs {flat:.2f} times as much   <= {FLAT:g}: {verdict}")


def others(options: argparse.Namespace, base: dict[str, str]) -> list[Variant]:
    if options.library is None:
        return []
    library = options.library.resolve()
    environment = {**base, **dict(pair.split("=", 1) for pair in options.env)}
    if library.name == "libcuda.so.1":
        environment["LD_LIBRARY_PATH"] = f"{library.parent}:{base['LD_LIBRARY_PATH']}"
    else:
        environment["LD_PRELOAD"] = str(library)
    return [Variant(library.name, environment)]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wrapper", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=2000, help="of 32 calls, per kind of call and round")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4, 20], help="at once (default 1 4 20)")
    parser.add_argument("--library", type=Path, help="another library to measure beside ours")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE", help="for --library")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="exit 1 if a bar is missed")
    options = parser.parse_args()
    if options.library is not None and not options.library.exists():
        parser.error(f"--library {options.library}: there is no such file")
    if bad := [pair for pair in options.env if "=" not in pair]:
        parser.error(f"--env {bad[0]}: write KEY=VALUE")
    return options


def main() -> int:
    options = parse()
    # in memory, as /run is on a host: the first write to a file's page is much dearer on a disk
    with tempfile.TemporaryDirectory(prefix="vgpu-bench-", dir="/dev/shm") as name:
        folder = Path(name)
        sim_build.build(folder / "driver")
        box = Box.make(folder / "box", "", folder / "driver")
        program = Toolchain("gcc").program([HERE / "c/measure.c"], folder / "measure", flags=["-ldl"])
        direct = Variant("direct", {**box.environment(), "LD_LIBRARY_PATH": str(folder / "driver")})
        ours = Variant("wrapper", box.environment())
        compared = [ours, *others(options, direct.environment)]
        measure([direct, *compared], program, box, options)
    result: dict[str, Any] = {
        "schema": 1,
        "rounds": options.rounds,
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "gpu": "simulated"},
    }
    missed = False
    for variant in compared:
        table, flat = rows(direct, variant), flatness(variant)
        show(variant.name, table, flat)
        result[variant.name] = {"calls": table, "live_50000_ratio": flat}
        missed |= variant is ours and (flat > FLAT or any(row["held"] is False for row in table))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
