"""Which engines, runtimes, drivers and distributions vgpu was run with: matrix.yaml, and the page made from it.

    python -m runtime_config.matrix RESULTS    puts what `make matrix` found into matrix.yaml, and makes the page anew
    python -m runtime_config.matrix            only makes the page: after an edit by hand

A row is `tested` (by a test of that name, on that day), `expected` or `refused` (why). Only tested ones are written by
a program, and all of them are, each time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
MATRIX, PAGE = ROOT / "runtime_config/matrix.yaml", ROOT / "docs/compatibility.md"
COLUMNS = ("engine", "runtime", "driver", "distribution")
TESTED = (*COLUMNS, "test", "date")
SAID = (*COLUMNS, "why")
_HEAD = """\
# What vgpu was run with. `tested` is written by `make matrix`; `expected` and `refused` by hand, each with its reason.
# docs/compatibility.md is made from this: python -m runtime_config.matrix
"""
_PAGE = """\
# Compatibility

Made from [matrix.yaml](../runtime_config/matrix.yaml) by `make matrix`, which starts these very programs (unpacked from
Debian's packages, nothing is installed) and runs the named test with each. All of it ran on one machine's kernel: an
engine of another Debian release runs with that release's C library, not with its kernel. **No row ran on a real GPU**:
*simulated* is the simulated driver, and *beside NVIDIA …* means that a stand-in for NVIDIA's toolkit mounted those real
libraries into the container before ours.

"""
_NOTES = {
    "tested": "A slice is given and held to the byte. Where the test is of an engine or a runtime, also: what does not "
    "fit is refused, and a container that asks for nothing is left alone.",
    "expected": "Not run. What speaks for it is said.",
    "refused": "Known not to work: vgpu says so, or the reason is outside vgpu.",
}


def load(text: str) -> dict[str, list[dict[str, str]]]:
    """Raises ValueError with the row that lacks a column or has one too many."""
    data = yaml.safe_load(text)
    for status, columns in (("tested", TESTED), ("expected", SAID), ("refused", SAID)):
        for row in data[status]:
            if tuple(row) != columns or not all(isinstance(value, str) and value for value in row.values()):
                raise ValueError(f"{status}: {row} does not have the columns {', '.join(columns)}, each a text")
    return {status: data[status] for status in _NOTES}


def tested(results: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The rows for the results of a run, sorted. Raises ValueError if a test has failed: then there is no row."""
    rows = set()
    for result in results:
        if result["outcome"] != "passed":
            raise ValueError(f"{result['test']} has {result['outcome']}: mend that first")
        values = {**result, "test": result["test"].partition("[")[0]}
        rows.add(tuple(str(values[column]) for column in TESTED))
    return [dict(zip(TESTED, row, strict=True)) for row in sorted(rows, key=_order)]


def _order(row: tuple[str, ...]) -> list[list[tuple[int, str]]]:
    """Versions as numbers: 1.8 before 1.21."""
    parts = (text.replace(".", " ").split() for text in row)
    return [[(int(part), "") if part.isdigit() else (-1, part) for part in one] for one in parts]


def dump(data: Mapping[str, list[dict[str, str]]]) -> str:
    return _HEAD + yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=10_000)


def page(data: Mapping[str, list[dict[str, str]]]) -> str:
    parts = [_PAGE.rstrip("\n")]
    for status, note in _NOTES.items():
        columns = TESTED if status == "tested" else SAID
        lines = [f"## {status.capitalize()}", "", note, ""]
        lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(_cell(column, row[column]) for column in columns)} |" for row in data[status]]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(column: str, text: str) -> str:
    if column != "test":
        return text.replace("|", "\\|")
    file, _, name = text.partition("::")
    return f"[{name}](../{file})"


def main(arguments: list[str]) -> int:
    data = load(MATRIX.read_text())
    if arguments:
        data["tested"] = tested(map(json.loads, Path(arguments[0]).read_text().splitlines()))
        MATRIX.write_text(dump(data))
    PAGE.write_text(page(data))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
