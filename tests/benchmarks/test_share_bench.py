"""What benchmarks/share.py makes of its figures, and that it works from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import share

ROOT = Path(__file__).parents[2]


def test_errors_are_of_sliding_windows_and_of_single_ticks() -> None:
    found = share.errors([30.0] * 15 + [50.0] + [10.0] + [30.0] * 15, 30, 1.0)
    assert (found["mean_percent"], found["lost_percent"]) == (30.0, 0.0)
    assert (found["p99_window_points"], found["p99_100ms_points"]) == (2.0, 20.0)
    assert 0 < found["mean_error_points"] < 2
    assert share.errors([20.0] * 40, 40, 1.0)["lost_percent"] == 50.0


def test_a_step_has_settled_when_a_tenth_of_a_second_is_near() -> None:
    assert share.near_ms([20.0] * 20 + [70.0] * 80, 70, 0.01) == 190  # nine of ten ticks are there
    assert share.near_ms([71.0] * 100, 70, 0.01) == 0
    assert share.near_ms([20.0] * 100, 70, 0.01) == -1


def test_it_has_settled_once_it_stays_close() -> None:
    assert share.settled_ms([20.0] * 20 + [70.0] * 80, 70, 0.01) == 200  # near is not close
    assert share.settled_ms([70.0] * 40 + [20.0] + [70.0] * 59, 70, 0.01) == 410  # it was, and was not again
    assert share.settled_ms([71.0] * 100, 70, 0.01) == 0
    assert share.settled_ms([70.0] * 99 + [20.0], 70, 0.01) == -1


def test_a_bar_is_held_or_missed_by_its_own_figure() -> None:
    good = {"one": [{"mean_error_points": 0.2}], "owner_returns": {"returned_ms": 40.0},
            "four": [{"load": "forever", "jain": 0.999, "containers": [{"mean_error_points": 0.5}]}]}  # fmt: skip
    assert all(held for _, held in share.judge(good).values())
    for change, bar in (
        ({"one": [{"mean_error_points": 2.1}]}, "one_mean_error_points"),
        ({"owner_returns": {"returned_ms": -1.0}}, "return_ms"),  # it never came back
        ({"four": [{"load": "forever", "jain": 0.98, "containers": [{"mean_error_points": 0.5}]}]}, "four_jain"),
    ):
        assert [name for name, (_, held) in share.judge({**good, **change}).items() if not held] == [bar]
    assert share.jain([1, 1, 1, 1]) == 1
    assert share.jain([1, 0, 0, 0]) == 0.25


@pytest.mark.slow
def test_the_quick_run_has_figures_pictures_and_verdicts(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.share", "--quick", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    result = json.loads((tmp_path / "share.json").read_text())
    assert (result["simulated"], result["quick"], len(result["one"]), len(result["four"])) == (True, True, 4, 2)
    assert done.returncode == (0 if all(bar["held"] for bar in result["bars"].values()) else 1)
    assert all(f"{name} {bar['figure']}" in done.stdout for name, bar in result["bars"].items())
    assert all((tmp_path / f"share_{name}.png").stat().st_size > 5000 for name in ("one", "four", "steps"))
