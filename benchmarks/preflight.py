"""What the dependency check costs at a start: would all that is mounted load in this image? `make bench-preflight`.

Each figure is of a process of its own, as the hook is one, with the interpreter's first look at the code in it. Root
and state are taken in turn, in a new order each round. Results are printed and written as JSON.

  cold        nothing of the image's files is in memory (their pages are dropped before)
  warm        they are: the second container of an image, also after days, on a machine with memory to spare
  rehearsed   the shim, which stays as the hook, has asked already, while the runtime was at work (ARCHITECTURE.md);
              what is left is to see that its answer still holds. This is what a start waits for.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
from pathlib import Path

from benchmarks.start import machine, percentile
from oci_hook import fastjson, inventory_scan
from oci_hook.values import as_json
from tests.harness import debian_roots, drivers

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results/preflight.json"
BRANCH = 535  # of NVIDIA's driver
BARS_MS = {"cold": 30.0, "warm": 2.0, "rehearsed": 2.0}
PACKAGES = ("libstdc++6", "libgcc-s1", "zlib1g", "libgomp1", "libssl3", "libibverbs1", "libnl-3-200", "librdmacm1")
PROGRAM = "dash"  # what the container starts, looked for in PATH; also its package
ONCE = """
import gc, os, sys, time
gc.disable()  # as the hook's entry file does
sys.path[:0] = sys.argv[1:3]
from oci_hook import fastjson, hook, preflight, records, rootview, values
from oci_hook.mountinfo import MountInfo
root, state = sys.argv[3:5]
with open(sys.argv[5], "rb") as file:
    libraries = tuple(values.from_json(records.Library, one) for one in fastjson.loads(file.read()))
plan, machine = records.Plan((), libraries), os.uname().machine
start = records.Start((), "/", sys.argv[6])
fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
if state == "rehearsed":
    prepared, inside = hook.Prepared(plan, root, start), hook.Inside(root, start)
    info = MountInfo.of_this_namespace()
    began = time.perf_counter()
    found = prepared.found(fd, inside, info)
else:
    began = time.perf_counter()
    found = preflight.check(rootview.RootView(fd), libraries, [], start, machine)
print((time.perf_counter() - began) * 1000, found.libdir)
"""


def roots(folder: Path) -> dict[str, Path]:
    """Debian images: the smallest, and one with more libraries and the cache of a loader."""
    small = debian_roots.root(folder / "small", "bookworm", PROGRAM)
    large = debian_roots.root(folder / "large", "bookworm", PROGRAM, *PACKAGES)
    subprocess.run(["/sbin/ldconfig", "-r", large], check=True, timeout=60)
    own = Path("/")  # a thousand libraries and a cache of all of them, if this machine is the one that builds vgpu
    return {
        f"Debian, libc6 and {PROGRAM}": small,
        f"Debian, {len(PACKAGES)} libraries, ld.so.cache": large,
        "this machine": own,
    }


def drop(root: Path) -> None:
    """The pages of the libraries that preflight may look at leave the memory; those in use by a process stay."""
    for path in [*(root / "usr/lib").rglob("*.so*"), root / "etc/ld.so.cache"]:
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def once(root: Path, state: str, libraries: Path) -> float:
    """Milliseconds."""
    if state == "cold":
        drop(root)
    command: list[str | Path] = ["/usr/bin/python3", "-I", "-S", "-E", "-c", ONCE]
    command += [ROOT, ROOT / "build/python", root, state, libraries, PROGRAM]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    return float(said.split()[0])


def measure(rounds: int) -> dict[str, dict[str, list[float]]]:
    """root -> state -> milliseconds, one a round."""
    with tempfile.TemporaryDirectory(prefix="vgpu-bench-") as name:
        folder = Path(name)
        libraries = folder / "libraries.json"
        records = [inventory_scan.library(str(path), "compute") for path in drivers.libraries(BRANCH)]
        libraries.write_text(fastjson.dumps(as_json(records)))
        series: dict[tuple[str, Path, str], list[float]] = {
            (root, path, state): [] for root, path in roots(folder).items() for state in BARS_MS
        }
        # this machine's files are in use, and its root is not ours to make room in
        order = [key for key in series if str(key[1]) != "/" or key[2] == "warm"]
        for number in range(-1, rounds):
            random.shuffle(order)
            for root, path, state in order:
                figure = once(path, state, libraries)
                if number >= 0:
                    series[root, path, state].append(figure)
    found: dict[str, dict[str, list[float]]] = {}
    for (root, _, state), figures in series.items():
        if figures:
            found.setdefault(root, {})[state] = figures
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="what the dependency check costs at a start")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    table = {}
    print(f"{'':40}{'':12}{'p50':>10}{'p95':>10}   bar (p50)")
    for root, states in measure(options.rounds).items():
        for state, figures in states.items():
            p50, p95, bar = statistics.median(figures), percentile(figures, 95), BARS_MS[state]
            verdict = f"<= {bar:g} ms: {'held' if p50 <= bar else 'MISSED'}" if root.startswith("Debian") else ""
            print(f"{root:40}{state:12}{p50:7.2f} ms{p95:7.2f} ms   {verdict}")
            table[f"{root}: {state}"] = {"p50_ms": p50, "p95_ms": p95}
    host = {name: value for name, value in machine().items() if name not in ("gpu", "runtime")}
    result = {
        "schema": 1,
        "rounds": options.rounds,
        "driver": BRANCH,
        "machine": host,
        "bars_ms": BARS_MS,
        "results": table,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
