"""One HTML page, whole in itself: a table, bars per figure, the use over time. The same input gives the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from vgpu.simulate.engine import Outcome

COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea")
COLUMNS = (
    ("placed", "Placed", "share of the jobs that ever ran"),
    ("at_once", "At once", "share that started when they arrived"),
    ("wait_mean_s", "Wait, mean (s)", "of jobs that ran"),
    ("wait_p50_s", "Wait, p50 (s)", ""),
    ("wait_p95_s", "Wait, p95 (s)", ""),
    ("wait_p99_s", "Wait, p99 (s)", ""),
    ("memory_used", "Memory used", "share given out, over time"),
    ("cores_used", "Cores used", "share given out, over time"),
    ("memory_stranded", "Memory stranded", "free where all cores are reserved"),
    ("cores_stranded", "Cores stranded", "free where no job's memory fits"),
    ("fairness", "Fairness", "Jain's index over owners"),
    ("blocked_by_fragmentation", "Blocked", "jobs that only a migration would have let in"),
    ("migrations_avoided", "Migrations avoided", "fewer blocked than with the worst policy here"),
    ("preempted", "Preempted", "times that a job was ended for another"),
    ("end_s", "End (s)", "of the last job"),
    ("bound_of_end", "Bound / end", "1: no placement could have ended sooner"),
)
BARS = ("wait_mean_s", "wait_p99_s", "at_once", "memory_used", "memory_stranded", "cores_stranded")
_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em;max-width:70em;color:#1f2937}table{border-collapse:collapse}"
    "th,td{padding:.3em .9em;text-align:right;border-bottom:1px solid #e5e7eb}th:first-child{text-align:left}"
    "small{color:#6b7280;font-weight:normal}svg{display:inline-block;margin:.6em 1.2em .6em 0}svg text{font-size:12px}"
)


def page(title: str, facts: Sequence[str], rows: Sequence[dict[str, Any]], outcomes: Sequence[Outcome]) -> str:
    """title, facts: what was simulated, as text."""
    names = [row["policy"] for row in rows]
    head = "".join(f'<th style="color:{_colour(number)}">{escape(name)}</th>' for number, name in enumerate(names))
    body = "\n".join(_row(key, label, note, rows) for key, label, note in COLUMNS)
    bars = "\n".join(_bars(key, label, rows) for key, label, _ in COLUMNS if key in BARS)
    said = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>{escape(title)}</h1>\n<p>All figures are <em>simulated</em>.</p>"
        f"<ul>{said}</ul>\n<table><tr><th></th>{head}</tr>\n{body}\n</table>\n<h2>Side by side</h2>\n{bars}\n"
        f"<h2>Memory given out over time</h2>\n{_curves(outcomes)}\n</body></html>\n"
    )


def number(value: float | int | None) -> str:
    """As short as it is exact enough for a table."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}" if value < 10 else f"{value:,.1f}"


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _row(key: str, label: str, note: str, rows: Sequence[dict[str, Any]]) -> str:
    cells = "".join(f"<td>{number(row[key])}</td>" for row in rows)
    return f"<tr><th>{label} <small>{note}</small></th>{cells}</tr>"


def _bars(key: str, label: str, rows: Sequence[dict[str, Any]]) -> str:
    high = max((row[key] or 0 for row in rows), default=0) or 1
    parts = [f'<text x="0" y="14" font-weight="bold">{label}</text>']
    for index, row in enumerate(rows):
        value = row[key] or 0
        y, width = 24 + 26 * index, 180 * value / high
        parts.append(f'<rect x="80" y="{y}" width="{width:.1f}" height="18" fill="{_colour(index)}"/>')
        parts.append(f'<text x="0" y="{y + 13}">{escape(row["policy"])}</text>')
        parts.append(f'<text x="{84 + width:.1f}" y="{y + 13}">{number(row[key])}</text>')
    return _svg(350, 30 + 26 * len(rows), parts)


def _curves(outcomes: Sequence[Outcome]) -> str:
    last = max((outcome.end_s for outcome in outcomes), default=0) or 1
    high = max((memory for outcome in outcomes for _, memory, _ in outcome.meter.curve), default=0) or 1
    parts = ['<path d="M60 10V210H860" fill="none" stroke="#9ca3af"/>']
    for share in (0.0, high / 2, high):
        y = 210 - 200 * share / high
        parts.append(f'<text x="54" y="{y + 4:.1f}" text-anchor="end">{100 * share:.0f} %</text>')
    for step in range(5):
        x = 60 + 200 * step
        parts.append(f'<text x="{x}" y="228" text-anchor="middle">{last * step / 4 / 3600:.1f} h</text>')
    for index, outcome in enumerate(outcomes):
        points = " ".join(
            f"{60 + 800 * when / last:.1f},{210 - 200 * memory / high:.1f}" for when, memory, _ in outcome.meter.curve
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{_colour(index)}" stroke-width="1.5"/>')
        parts.append(f'<text x="{70 + 110 * index}" y="250" fill="{_colour(index)}">{escape(outcome.policy)}</text>')
    return _svg(900, 260, parts)


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    inner = "".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img">{inner}</svg>'
