"""64 processes on one quota for minutes, allocating, forking, exec'ing and killed: `make storm`. On simulated GPUs.

tests/libcuda_wrap/test_wrapper_storm.py does the same for seconds. Exit code 1 if a byte too much was ever held, if the
books differ at the end, or if a process waits for a dead one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from libcuda_wrap.sim import build as sim_build
from tests.libcuda_wrap.storm import Storm, build, initialise_at_once
from tests.libcuda_wrap.wrapped import MIB, Box, part

QUOTAS = [24 * MIB + 1, 16 * MIB + 4097]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storm", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--at-once", type=int, default=200, help="processes that initialise at the same time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vgpu-storm-") as name:
        folder = Path(name)
        sim_build.build(folder / "sim-driver")
        box = Box.make(folder / "box", "", folder / "sim-driver")
        program = build(folder, folder / "sim-driver")
        box.fresh(*(part(number, quota) for number, quota in enumerate(QUOTAS)))
        storm = Storm(box, program, folder, options.processes, QUOTAS, largest=2 * MIB)
        storm.start()
        try:
            storm.blow(options.seconds)
            stuck = storm.waits_for_progress(60)
            books = storm.hold_still(60)
        finally:
            storm.end()
        differ = {pid: pair for pid, pair in books.items() if pair[0] != pair[1]}
        box.fresh(*(part(number, quota) for number, quota in enumerate(QUOTAS)))
        wrapped, direct = at_once(box, program, folder / "sim-driver", options.at_once)
    result = {
        "gpu": "simulated",
        "seconds": options.seconds,
        "processes": options.processes,
        "killed": storm.seen.killed,
        "operations": storm.seen.operations,
        "samples": storm.seen.samples,
        "quota_bytes": QUOTAS,
        "most_bytes_held": storm.seen.most_bytes,
        "over_quota": storm.seen.over,
        "samples_with_memory_of_the_dead": storm.seen.left_by_the_dead,
        "waiting_for_the_dead": stuck,
        "books_that_differ": len(differ),
        f"initialise_{options.at_once}_at_once_s": {"direct": direct, "wrapped": wrapped, "ratio": wrapped / direct},
    }
    print(json.dumps(result, indent=2))
    return 1 if storm.seen.over or stuck or differ else 0


def at_once(box: Box, program: Path, driver: Path, processes: int) -> tuple[float, float]:
    """Seconds through the wrapper and without it: the better of five each, in turn."""
    bare = {**box.environment(), "LD_LIBRARY_PATH": str(driver)}
    pairs = [
        (initialise_at_once(program, processes, box.environment()), initialise_at_once(program, processes, bare))
        for _ in range(5)
    ]
    return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)


if __name__ == "__main__":
    sys.exit(main())
