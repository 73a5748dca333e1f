"""`python -m tests`: all tests, two parts at a time on two cores, and at the end those that measure time, alone.

A test is run by the part that names its folder; one that no part names would not be run, so that is an error. pytest on
its own runs everything in one process, which takes nearly twice as long.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONTAINERS = ("tests/e2e", "tests/doctor", "tests/packages", "tests/artefacts")  # real engines, packages, archives
OTHERS = (
    "tests/libcuda_wrap", "tests/oci_hook", "tests/runtime_config", "tests/sim", "tests/vgpu", "tests/benchmarks",
    "tests/test_repository.py",
)  # fmt: skip
ALONE = (  # how time is shared, as simulated GPUs and real processors share it
    "tests/libcuda_wrap/test_wrapper_share.py", "tests/libcuda_wrap/test_wrapper_soft.py",
    "tests/libcuda_wrap/test_wrapper_turns.py",
    "tests/vgpu/monitor/test_explain_live.py", "tests/vgpu/monitor/test_calibrated.py",
)  # fmt: skip


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(name: str, part: subprocess.Popen[str], began: float) -> bool:
    """Prints what the part said, whole; whether it passed."""
    said, _ = part.communicate()
    print(f"==== {name}, after {time.monotonic() - began:.0f} s\n{said}", flush=True)
    return part.returncode == 0


def main() -> int:
    found = {f"tests/{path.relative_to(ROOT / 'tests').parts[0]}" for path in (ROOT / "tests").rglob("test_*.py")}
    if forgotten := found - {*CONTAINERS, *OTHERS}:
        print(f"no part runs {', '.join(sorted(forgotten))}: name it in tests/__main__.py", file=sys.stderr)
        return 1
    began = time.monotonic()
    ignored = [f"--ignore={path}" for path in ALONE]
    parts = {"containers": start(*CONTAINERS), "others": start(*OTHERS, *ignored)}
    passed = [finish(name, part, began) for name, part in parts.items()]
    passed.append(finish("alone", start(*ALONE), began))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
