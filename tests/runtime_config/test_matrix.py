"""The compatibility matrix: its two files agree, and nothing is called tested that no test tests."""

from __future__ import annotations

import ast

import pytest

from runtime_config import matrix

RESULT = {
    "test": "tests/a.py::test_b[x]", "outcome": "passed", "engine": "docker 26.1.5", "runtime": "runc 1.1.15",
    "driver": "simulated", "distribution": "Debian 12", "date": "2025-01-02", "more": 1,
}  # fmt: skip


def test_the_page_is_made_from_the_matrix() -> None:
    text = matrix.MATRIX.read_text()
    data = matrix.load(text)
    assert matrix.dump(data) == text, "written by hand in another way: python -m runtime_config.matrix does not keep it"
    assert matrix.page(data) == matrix.PAGE.read_text(), "run python -m runtime_config.matrix"


def test_every_tested_row_names_a_test_that_exists() -> None:
    rows = matrix.load(matrix.MATRIX.read_text())["tested"]
    assert {row["engine"].partition(" ")[0] for row in rows} >= {"docker", "containerd", "none"}
    for row in rows:
        file, _, name = row["test"].partition("::")
        tree = ast.parse((matrix.ROOT / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, row


def test_a_combination_has_one_status() -> None:
    data = matrix.load(matrix.MATRIX.read_text())
    seen = [
        tuple(row[column] for column in matrix.COLUMNS) for status in ("expected", "refused") for row in data[status]
    ]
    assert len(seen) == len(set(seen))
    assert not {tuple(row[column] for column in matrix.COLUMNS) for row in data["tested"]} & set(seen)


def test_results_become_sorted_rows_without_parameters() -> None:
    older = {**RESULT, "runtime": "runc 1.1.5"}
    rows = matrix.tested([RESULT, older, RESULT])
    assert [row["runtime"] for row in rows] == ["runc 1.1.5", "runc 1.1.15"]
    assert rows[0] == {**{column: str(older[column]) for column in matrix.COLUMNS}, "test": "tests/a.py::test_b",
                       "date": "2025-01-02"}  # fmt: skip
    with pytest.raises(ValueError, match=r"test_b\[x\] has failed"):
        matrix.tested([{**RESULT, "outcome": "failed"}])


@pytest.mark.parametrize("row", ["{engine: a}", "{engine: a, runtime: b, driver: c, distribution: 12, why: d}"])
def test_a_row_that_says_too_little_is_refused(row: str) -> None:
    with pytest.raises(ValueError, match="does not have the columns"):
        matrix.load(f"tested: []\nexpected: [{row}]\nrefused: []\n")
