"""vgpu explain: reads the history, asks `explain`, and says it in words."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from typing import Any

from oci_hook.errors import HostError, shown
from vgpu import output
from vgpu.config import load
from vgpu.monitor import history
from vgpu.monitor.explain import explain
from vgpu.monitor.report import HOST, MEMORY, NEIGHBOURS, NOTHING, OWN, PARTS, QUOTA, Report
from vgpu.monitor.rows import REST, Row

_WORDS = {
    OWN: "its own compute",
    QUOTA: "waiting for its quota",
    NEIGHBOURS: "waiting for its neighbours",
    HOST: "the host, or nothing to do",
}
_VERDICTS = {
    OWN: "its own compute",
    QUOTA: "its quota",
    NEIGHBOURS: "its neighbours",
    HOST: "the host",
    MEMORY: "device memory",
    NOTHING: "unknown",
}
_WIDTH = 80
_BAR = 20  # characters for all of the time


def run(config: str, container: str, *, since_s: int, as_json: bool) -> None:
    """Raises HostError VGPU-MON-001 without a history, VGPU-MON-003 for a container that is not in it."""
    policy = load(config)
    rows = history.read(history.path(policy.state_dir))
    identity = resolve(rows, container)
    since_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - since_s * 1_000_000_000
    recent = [row for row in rows if row.time_ns >= since_ns]
    if not any(row.id == identity for row in recent):
        seen = max(row.time_ns for row in rows if row.id == identity)
        ago = (since_ns - seen) / 1e9 + since_s
        raise HostError(
            "VGPU-MON-003",
            f"{shown(container)} was last seen {ago:.0f} s ago, not within --since",
            remedy=f"look further back: --since {int(ago // 60) + 10}m",
        )
    reports = explain(recent, identity, since_s)
    simulated = policy.simulate_gpus > 0
    if as_json:
        output.emit_json({"simulated": simulated, "reports": [describe(report) for report in reports]})
        return
    print("\n\n".join("\n".join(text(report, simulated=simulated)) for report in reports))


def resolve(rows: Sequence[Row], asked: str) -> str:
    """The id that is meant: of the containers of that name the one seen last, else the one whose id begins so."""
    seen = {row.id: row for row in rows if row.id != REST}
    named = [row for row in seen.values() if row.name == asked]
    if named:
        return max(named, key=lambda row: row.time_ns).id
    matching = [identity for identity in seen if asked and identity.startswith(asked)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        remedy = f"write more of it, or the name: {', '.join(sorted(seen[one].name for one in matching)[:5])}"
        raise HostError("VGPU-MON-003", f"{shown(asked)} begins {len(matching)} containers' ids", remedy=remedy)
    names = ", ".join(sorted({row.name for row in seen.values()})[:10]) or "none"
    raise HostError("VGPU-MON-003", f"the history has no container {shown(asked)}", remedy=f"choose one of: {names}")


def text(report: Report, *, simulated: bool) -> list[str]:
    """Lines of at most 80 characters, but for long names."""
    label = " (simulated)" if simulated else ""
    watched = f"watched {_time(report.seconds)} of {_time(report.asked_s)}, {report.looks} intervals"
    lines = [f"{report.name} ({report.id[:12]}) on GPU {report.gpu}{label}", watched, ""]
    for part in PARTS:
        share = report.share(part)
        lines.append(f"  {_WORDS[part]:<28}{100 * share:5.1f} %  {'#' * round(_BAR * share)}".rstrip())
        if part == NEIGHBOURS:
            lines += [f"      {name}: {100 * seconds / report.seconds:.1f} %" for name, seconds in report.blame.items()]
    for reason, count in report.denied.items():
        lines.append(f"  allocations refused ({reason}): {count}")
    lines += ["", f"Limited by: {_VERDICTS[report.verdict]}. Confidence: {report.confidence}."]
    lines += textwrap.wrap(report.advice, _WIDTH)
    for title, texts in (("doubt", report.doubts), ("not known", report.unknown)):
        for one in texts:
            lines += textwrap.wrap(f"{title}: {one}", _WIDTH, initial_indent="  ", subsequent_indent="    ")
    return [output.printable(line) for line in lines]


def _time(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min"


def describe(report: Report) -> dict[str, Any]:
    return {
        "id": report.id,
        "name": report.name,
        "gpu": report.gpu,
        "asked_s": report.asked_s,
        "watched_s": report.seconds,
        "intervals": report.looks,
        "seconds": dict(report.parts),
        "neighbour_seconds": dict(report.blame),
        "denied": dict(report.denied),
        "cores_percent": report.last.cores_percent,
        "memory_bytes": report.last.memory_bytes,
        "peak_bytes": report.last.peak_bytes,
        "findings": list(report.findings),
        "verdict": report.verdict,
        "confidence": report.confidence,
        "doubts": list(report.doubts),
        "unknown": list(report.unknown),
        "advice": report.advice,
    }
