"""How the doctor's checks are shown: a table that a person can act on, or one JSON object. Worst first.

The table is narrower than 80 columns, so that a report survives a mail; colour only on a terminal.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from vgpu import output
from vgpu.doctor import catalogue
from vgpu.doctor.finding import FAILURE, OK, STATES, UNSEEN, WARNING, Check, Finding

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 79
EXIT = {OK: 0, UNSEEN: 0, WARNING: 1, FAILURE: 2}
_SHOWN = {OK: ("ok", "green"), UNSEEN: ("not seen", "cyan"), WARNING: ("warning", "yellow"), FAILURE: ("FAIL", "red")}


@dataclass(frozen=True, slots=True)
class Report:
    """All that one run looked at. kind: host, image, container or failure; name: which. facts: more for --json."""

    kind: str
    name: str
    checks: tuple[Check, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        return worst(self.checks)

    @property
    def exit_code(self) -> int:
        """0 all well, 1 warnings, 2 failures; what could not be seen is said, and fails nothing."""
        return EXIT[self.state]

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(one for check in self.checks for one in check.findings)


def worst(checks: Sequence[Check]) -> str:
    """The state of the worst check; ok if there is none."""
    return max((check.state for check in checks), key=STATES.index, default=OK)


def show(report: Report, *, as_json: bool) -> int:
    """Prints it, and returns the exit code."""
    if as_json:
        output.emit_json(as_dict(report))
    else:
        for line in lines(report, colour=sys.stdout.isatty()):
            print(line)
    return report.exit_code


def as_dict(report: Report) -> dict[str, Any]:
    """What docs/doctor.schema.json describes, but for `schema`."""
    checks = [
        {
            "group": check.group,
            "name": check.name,
            "state": check.state,
            "seen": list(check.seen),
            "findings": [_finding(one) for one in check.findings],
            "unseen": [asdict(one) for one in check.unseen],
        }
        for check in report.checks
    ]
    return {"kind": report.kind, "name": report.name, "state": report.state, "checks": checks, "facts": report.facts}


def _finding(one: Finding) -> dict[str, str]:
    entry = catalogue.entries()[one.code]
    return {**asdict(one), "title": entry.title, "page": entry.page}


def lines(report: Report, *, colour: bool = False) -> list[str]:
    """The table, a summary last. Each line is shorter than 80 characters."""
    from rich.console import Console
    from rich.text import Text

    console = Console(
        width=min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) if colour else WIDTH,
        force_terminal=colour, no_color=not colour, markup=False, highlight=False, emoji=False,
    )  # fmt: skip
    with console.capture() as text:
        if report.name:
            console.print(Text(output.printable(f"{report.kind}: {report.name}"), overflow="fold"))
        for group, checks in _groups(report.checks):
            console.print(Text(output.printable(group), style="bold"))
            _print_group(console, checks)
            console.print()
        console.print(Text(summary(report), style="bold"))
    return [line.rstrip() for line in text.get().splitlines()]


def _groups(checks: Sequence[Check]) -> list[tuple[str, list[Check]]]:
    """Checks by group, the group with the worst check first, and in it the worst check first."""
    found: dict[str, list[Check]] = {}
    for check in checks:
        found.setdefault(check.group, []).append(check)

    def badness(check: Check) -> int:
        return -STATES.index(check.state)

    groups = [(name, sorted(inside, key=badness)) for name, inside in found.items()]
    return sorted(groups, key=lambda group: badness(group[1][0]))


def _print_group(console: Console, checks: Sequence[Check]) -> None:
    """A row a result; of a check, the worst first."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(width=max(len(shown) for shown, _ in _SHOWN.values()))
    table.add_column(overflow="fold", ratio=1)  # fold: a path of an image may be one long word
    for state, words in (row for check in checks for row in _rows(check)):
        shown, style = _SHOWN[state]
        safe = "\n".join(map(output.printable, words))
        table.add_row(Text(shown, style=style), Text(safe, overflow="fold"))
    console.print(table)


def _rows(check: Check) -> Iterator[tuple[str, list[str]]]:
    """(state, lines) of each result; what is well in one line, after the check's name."""
    for one in sorted(check.findings, key=lambda one: -STATES.index(one.severity)):
        title = catalogue.entries()[one.code].title
        yield one.severity, [f"{one.code} {title}", f"{one.subject}: {one.evidence}", f"to mend it: {one.remedy}"]
    for blind in check.unseen:
        yield UNSEEN, [f"{blind.subject}: {blind.why}"]
    if check.seen or not check.results:
        yield OK, [f"{check.name}: {'; '.join(check.seen) or 'nothing found'}"]


def summary(report: Report) -> str:
    """The last line: how many of what, and how to know more."""
    counts = {state: sum(one.severity == state for one in report.findings) for state in (FAILURE, WARNING)}
    unseen = sum(len(check.unseen) for check in report.checks)
    words = [f"{count} {state}{'s' * (count > 1)}" for state, count in counts.items() if count]
    words += [f"{unseen} not seen"] * bool(unseen)
    if not words:
        return f"all well: {len(report.checks)} checks"
    more = "; vgpu doctor --code CODE explains a code" if report.findings else ""
    return ", ".join(words) + more


def explain(code: str, *, as_json: bool) -> int:
    """--code: all that the catalogue has about one code; needs no host, no network. Raises RequestError."""
    entry = catalogue.entry(code)
    if as_json:
        output.emit_json({"code": asdict(entry)})
        return 0
    print(f"{entry.code}: {entry.title} ({entry.severity})")
    for word, text in (("why", entry.cause), ("found by", entry.found), ("to mend it", entry.remedy)):
        print(f"  {word}: {text}")
    print(f"  more: docs/{entry.page}, docs/troubleshooting.md#{entry.code.lower()}")
    return 0


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """For long scans: `with progress("libraries") as at: at("libcuda.so.1")`. On stderr, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    console = Console(stderr=True, markup=False, highlight=False)
    with console.status(what) as status:
        yield lambda detail: status.update(f"{what}: {output.printable(detail)[:60]}")
