"""The benchmark of the wrapper runs from end to end, and its table says what was measured. No figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.wrapper import FULL, Variant, flatness, rows

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.wrapper", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)


@pytest.mark.slow
def test_a_short_run_measures_every_call(tmp_path: Path) -> None:
    done = bench("--rounds", "1", "--batches", "40", "--processes", "1", "2", "--out", str(tmp_path / "results.json"))
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "results.json").read_text())["wrapper"]["calls"]
    found = {(row["call"], row["processes"]) for row in table}
    calls = {"launch,new", "launch", "alloc+free", "getinfo", "getProcAddress", FULL}
    assert found == {(call, processes) for call in calls for processes in (1, 2)} | {
        ("load", 1), ("init", 1), ("first", 1),
    }  # fmt: skip
    assert all(row["direct_p50_ns"] > 0 for row in table)


def test_added_is_the_median_of_the_rounds_differences() -> None:
    direct, other = Variant("direct", {}), Variant("other", {})
    for base, own in ((10, 15), (100, 106), (20, 400)):
        direct.note("launch", 1, base, base * 2)
        other.note("launch", 1, own, own * 2)
    (row,) = rows(direct, other)
    assert (row["added_p50_ns"], row["added_p99_ns"], row["bar_ns"], row["held"]) == (6, 12, 10, True)
    other.rounds["launch", 1] = [(30, 30)] * 2 + [(200, 200)]
    assert rows(direct, other)[0]["held"] is False


def test_flat_compares_full_with_empty() -> None:
    variant = Variant("wrapper", {}, {("alloc+free", 1): [(100, 1)], (FULL, 1): [(150, 1)]})
    assert flatness(variant) == 1.5


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--library", "/no/such.so"], "/no/such.so"), (["--env", "KEY"], "--env KEY: write KEY=VALUE")],
)
def test_bad_options_are_told(arguments: list[str], told: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr
