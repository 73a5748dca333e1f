"""How results are shown: tables for people, one JSON object for programs. Results go to stdout, messages to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

SCHEMA = 1  # of every --json object; keys are only ever added


def emit_json(result: dict[str, Any]) -> None:
    """One object on stdout: sizes in bytes, times in nanoseconds, no colour."""
    print(json.dumps({"schema": SCHEMA, **result}, indent=2, allow_nan=False))


def message(text: str) -> None:
    """One line on stderr."""
    print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """`text` with its control characters shown instead of sent to the terminal: names can come from an image."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def size(count: int) -> str:
    """Bytes for people: 8 GiB, 8191.5 MiB, 512 KiB. Exact where that is short, else one decimal."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count and count % (1 << shift) == 0:
            return f"{count >> shift} {unit}"
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 10 << shift:
            return f"{count / (1 << shift):.1f} {unit}"
    return f"{count} B"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout, as wide as the terminal; in a pipe as wide as it needs to be, so that lines stay lines."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 100_000)
    shown = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*map(printable, row))
    with console.capture() as text:
        console.print(shown)
    for line in text.get().splitlines():
        print(line.rstrip())
