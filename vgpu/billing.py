"""The command `vgpu bill`: its options, and what bill.py finds, as a table, CSV or JSON."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

from oci_hook import ledger, usage_file
from oci_hook.errors import RequestError, shown
from oci_hook.records import Policy
from vgpu import audit_log, bill, output
from vgpu.config import load

_BY = re.compile(r"label:[^\s=]{1,100}|team|user|image|gpu|container")


def run(config: str, start: str | None, end: str | None, by: str, prices: list[str], form: str) -> None:
    """Prints the bill of the period. Raises RequestError VGPU-REQ-002 or -006 for an option that cannot be read."""
    now_ns = time.time_ns()
    start_ns, end_ns = moment("--from", start, 0), min(moment("--to", end, now_ns), now_ns)
    if start_ns >= end_ns:
        why = f"--from={shown(start)} is not before --to={shown(end or 'now')}"
        raise RequestError("VGPU-REQ-004", why, remedy="give a period that has begun")
    if not _BY.fullmatch(by):
        raise RequestError("VGPU-REQ-006", f"--by={shown(by)}: there is no such key", remedy="write --by label:team")
    if form not in ("table", "csv", "json"):
        why = f"--format={shown(form)}: there is no such format"
        raise RequestError("VGPU-REQ-006", why, remedy="write --format table, csv or json")
    rates = dict(map(_price, prices))
    policy = load(config)
    log = audit_log.Log(audit_log.paths(policy.log_dir))
    found = bill.clipped(bill.stays(audit_log.ordered(log), _running(policy), now_ns), start_ns, end_ns)
    made = bill.rows(found, by, rates)
    _warn(found, made, log.broken)
    if form == "csv":
        print(bill.as_csv(made), end="")
    elif form == "json":
        output.emit_json({"from_ns": start_ns, "to_ns": end_ns, "by": by, "rows": [_plain(row) for row in made]})
    else:
        columns = (by.upper(), "GPU", "ALLOCATED GPU-H", "USED GPU-H", "IDLE GPU-H", "THROTTLED H", "COST")
        lines = [
            (row["key"], row["gpu"], *(bill.text(row[name], 6) for name in bill.COLUMNS), bill.text(row["cost"], 2))
            for row in made
        ]
        output.table(columns, lines)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: float(value) if isinstance(value, Fraction) else value for name, value in row.items()}


def _warn(found: list[bill.Stay], made: list[dict[str, Any]], broken: int) -> None:
    unknown = len({stay.container for stay in found if stay.ended == "not logged"})
    if unknown:
        output.message(f"vgpu: {unknown} containers have no line of their end; they are billed until last seen")
    if broken:
        output.message(f"vgpu: {broken} lines of the audit log cannot be read; what they say is missing here")
    free = sorted({row["gpu"] for row in made if row["gpu"] and row["cost"] is None})
    if free and any(row["cost"] is not None for row in made):
        output.message(f"vgpu: no price for {', '.join(free)}")


def _running(policy: Policy) -> dict[str, list[dict[str, Any]]]:
    """The containers that have a slice now, with what they used so far."""
    with ledger.Ledger(policy.state_dir) as book:
        entries = [entry for entry in book.entries() if ledger.alive(entry)]
    return {entry.id: [dict(vars(item)) for item in usage_file.read(policy.state_dir, entry)[1]] for entry in entries}


def moment(option: str, words: str | None, default: int) -> int:
    """Unix time in nanoseconds of "2025-01-31" or "2025-01-31T12:00:00", UTC unless it says otherwise."""
    if words is None:
        return default
    try:
        found = datetime.fromisoformat(words)
    except ValueError:
        why = f"{option}={shown(words)}: not a date or time"
        raise RequestError("VGPU-REQ-002", why, remedy=f"write {option} 2025-01-31 or 2025-01-31T12:00:00Z") from None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    return int(found.timestamp()) * 10**9


def _price(words: str) -> tuple[str, Fraction]:
    name, _, amount = words.partition("=")
    if not name or not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", amount):
        why = f"--price={shown(words)}: not a part of a GPU's name and a price an hour"
        raise RequestError("VGPU-REQ-002", why, remedy="write --price a100=2.10")
    return name, Fraction(amount)
