"""Files of the box with anything in them, by libFuzzer; and a usage file that somebody writes into all the time.

What is promised, and what is not: docs/accounting.md, "A ledger that somebody lies in".
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from libcuda_wrap import bindings
from tests.libcuda_wrap import fuzzing
from tests.libcuda_wrap.wrapped import GIB, OK, OUT_OF_MEMORY, Box, part

SECONDS = 2  # of new inputs; `make fuzz` takes minutes


@pytest.mark.parametrize("target", fuzzing.TARGETS)
def test_nothing_in_a_file_makes_the_wrapper_crash_hang_or_give_too_much(tmp_path: Path, target: str) -> None:
    """First what was found once (corpus), then what comes to the fuzzer's mind."""
    if shutil.which("clang") is None:
        pytest.skip("no clang: apt-get install clang libclang-rt-dev")
    program = fuzzing.build(target, tmp_path)
    known = sorted(str(path) for path in fuzzing.corpus(target).iterdir())
    done = fuzzing.run(program, *known, timeout_s=60, output=subprocess.PIPE)
    assert (done.returncode, done.stderr.count("\nExecuted ")) == (0, len(known)), done.stderr[-3000:]
    assert known
    (tmp_path / "new").mkdir()
    options = [f"-max_total_time={SECONDS}", f"-artifact_prefix={tmp_path}/", "-seed=1"]
    folders = [str(tmp_path / "new"), str(fuzzing.corpus(target))]
    done = fuzzing.run(program, *options, *folders, timeout_s=60, output=subprocess.PIPE)
    runs = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
    assert done.returncode == 0 and runs and int(runs[1]) > 100 + len(known), done.stderr[-3000:]


SCRIBBLER = """
import mmap, random, sys
chance = random.Random(1)
with open(sys.argv[1], "r+b") as file:
    usage = mmap.mmap(file.fileno(), 0)
reach, words = int(sys.argv[2]), [bytes(8), b"\\xff" * 8, b"\\0" * 7 + b"\\x80"]
print("ready", flush=True)
while True:  # everything but magic, version and size: those are looked at once
    at = chance.randrange(16, reach, 8)
    usage[at : at + 8] = chance.choice(words) if chance.random() < 0.5 else chance.randbytes(8)
"""


def test_a_program_that_writes_into_the_ledger_all_the_time_stops_nobody(box: Box) -> None:
    """Another process of the container is refused, or not; it goes on."""
    box.fresh(part(0, GIB), part(1, GIB))
    client = box.client().ready()
    reach = bindings.ffi().offsetof("struct vgw_usage", "slots") + 8 * bindings.ffi().sizeof("struct vgw_usage_slot")
    command = [sys.executable, "-c", SCRIBBLER, str(box.folder / "usage"), str(reach)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as scribbler:
        try:
            assert scribbler.stdout and scribbler.stdout.readline() == "ready\n"
            until, answers = time.monotonic() + 1.5, []
            while time.monotonic() < until:
                answers.append(client.ask("alloc linear 0 4096")[0])
                if answers[-1] == OK:
                    assert client.ask("free linear 0")[0] == OK
                assert client.ask("info")[0] == OK
        finally:
            scribbler.kill()
    assert len(answers) > 100 and set(answers) <= {OK, OUT_OF_MEMORY}
    assert client.end() == ""
