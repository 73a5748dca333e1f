"""python -m tests.libcuda_wrap.fuzzing [--seconds N] [--keep] [TARGET…]: libFuzzer on the files that the wrapper maps.

A target of fuzz/ is built with the wrapper's own files under ASan and UBSan, and runs in a folder of its own, from the
corpus in fuzz/corpus/<target>. What it finds stays there as crash-… or timeout-…, with the command that does it again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from libcuda_wrap.toolchain import PACKAGE, WARNINGS

FUZZ = Path(__file__).parent / "fuzz"
TARGETS = ("quota", "region", "neighbours")
LINKED = ("ledger.c", "bucket.c", "neighbours.c", "past.c")  # region.c and slot.c are part of the target: fuzz.h
HANG_S = 5  # one input takes less than a millisecond


def corpus(target: str) -> Path:
    return FUZZ / "corpus" / target


def build(target: str, folder: Path) -> Path:
    """The target's program in `folder`. Raises FileNotFoundError without clang."""
    program = folder / f"{target}_fuzz"
    command = ["clang", "-g", "-O1", "-std=gnu11", "-D_GNU_SOURCE", '-DVGW_BOX="."', *WARNINGS]
    command += ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    command += [f"-I{PACKAGE / name}" for name in ("include", "src")]
    sources = [FUZZ / f"{target}_fuzz.c", *(PACKAGE / "src" / name for name in LINKED)]
    done = subprocess.run([*command, *map(str, sources), "-o", str(program)], timeout=100, check=False)
    if done.returncode:
        raise SystemExit(f"{target}: clang does not build it")
    return program


def run(program: Path, *options: str, timeout_s: float, output: int | None = None) -> subprocess.CompletedProcess[str]:
    """In a folder of its own, which is the box. A problem that is found ends it with another code than 0."""
    with tempfile.TemporaryDirectory(prefix="vgpu-fuzz-", dir="/dev/shm") as box:  # files, but of no disk
        # setarch: the sanitizers of old compilers do not know where newer kernels put libraries
        return subprocess.run(
            ["setarch", "-R", program, f"-timeout={HANG_S}", "-rss_limit_mb=1024", "-print_final_stats=1", *options],
            cwd=box, text=True, stdout=output, stderr=output, timeout=timeout_s, check=False,
            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},  # what is mapped outlives the run on purpose
        )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.libcuda_wrap.fuzzing", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="of each target (default 60)")
    parser.add_argument("--keep", action="store_true", help="put what reaches new code into the repository's corpus")
    options = parser.parse_args(arguments)
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    if shutil.which("clang") is None:
        parser.error("no clang here: packaging/bootstrap.sh installs it")
    found = []
    for target in options.targets or TARGETS:
        work = PACKAGE.parent / "build/fuzz" / target
        (work / "corpus").mkdir(parents=True, exist_ok=True)
        program = build(target, work)
        folders = [str(work / "corpus"), str(corpus(target))]
        finds = f"-artifact_prefix={work}/"
        done = run(program, f"-max_total_time={options.seconds}", finds, *folders, timeout_s=options.seconds + 100)
        if done.returncode:
            found.append(target)
        elif options.keep:
            few = ("-merge=1", "-use_counters=0")  # one input for each piece of code that is reached
            run(program, *few, str(corpus(target)), str(work / "corpus"), timeout_s=300)
        print(f"{target}: {'found something, see above' if done.returncode else 'nothing found'}", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
