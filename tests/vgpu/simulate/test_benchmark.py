"""The published placement benchmark: what is committed is what the code gives."""

from __future__ import annotations

import json

import pytest

from benchmarks.placement import __main__ as benchmark


@pytest.mark.parametrize("mix", benchmark.MIXES)
def test_a_case_gives_the_committed_figures(mix: str) -> None:
    committed = json.loads((benchmark.RESULTS / "results.json").read_text())
    expected = [row for row in committed if (row["mix"], row["gpus"], row["seed"]) == (mix, 16, 1)]
    rows, _ = benchmark.case(mix, 2, 1)
    assert [{"mix": mix, "gpus": 16, "seed": 1, **row} for row in rows] == expected


def test_the_table_is_that_of_the_committed_figures() -> None:
    committed = json.loads((benchmark.RESULTS / "results.json").read_text())
    assert len(committed) == len(benchmark.MIXES) * len(benchmark.NODES) * len(benchmark.SEEDS) * 2
    assert (benchmark.RESULTS / "table.md").read_text() == benchmark.table(committed)
