"""From where the time went to one verdict and one sentence of advice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from vgpu import output
from vgpu.monitor.report import HOST, MEMORY, NEIGHBOURS, OWN, QUOTA, WORTH_NAMING, Report
from vgpu.monitor.rows import Row

_NO_LIMIT = 100


def judge(report: Report, neighbours: Sequence[Row]) -> Report:
    """The report with verdict and advice. neighbours: the others on the GPU at the last look."""
    if not report.looks:
        return replace(report, advice="Nothing to compare yet: let the monitor look at least twice.")
    verdict = _verdict(report)
    text = {
        QUOTA: _quota,
        NEIGHBOURS: _neighbours,
        MEMORY: _memory,
        OWN: _own,
        HOST: _host,
    }[verdict](report, neighbours)
    if verdict != MEMORY and report.denied:
        text = f"{text} Also: {_memory(report, neighbours)}"
    return replace(report, verdict=verdict, advice=text)


def _verdict(report: Report) -> str:
    """What to act on: a wait that is worth naming before what the container does itself."""
    waits = {part: report.share(part) for part in (QUOTA, NEIGHBOURS)}
    worst = max(waits, key=lambda part: waits[part])
    if waits[worst] >= WORTH_NAMING:
        return worst
    if report.denied:
        return MEMORY
    return OWN if report.share(OWN) >= report.share(HOST) else HOST


def _of_the_wait(report: Report, part: str) -> str:
    wait = report.parts[QUOTA] + report.parts[NEIGHBOURS]
    return f"{100 * report.parts[part] / wait:.0f} % of the wait"


def _quota(report: Report, neighbours: Sequence[Row]) -> str:
    share = report.last.cores_percent
    # without the wait the same work would have taken less time: so much of the GPU it would then have used
    wanted = 100 * report.share(OWN) / max(0.01, 1 - report.share(QUOTA))
    needed = min(100, max(share + 1, math.ceil(wanted / 5) * 5))
    text = f"{_of_the_wait(report, QUOTA)} is its {share} % share: {needed} would remove it"
    if share >= _NO_LIMIT:
        return f"{_of_the_wait(report, QUOTA)} was for its share, which is no longer limited."
    free = 100 - sum(row.cores_percent for row in neighbours if row.cores_percent < _NO_LIMIT) - share
    if needed - share > free:
        return f"{text}, but GPU {report.gpu} has only {max(0, free)} % left: start it on another."
    return f"{text} (vgpu set {report.name} --cores {needed})."


def _neighbours(report: Report, neighbours: Sequence[Row]) -> str:
    if not report.blame:
        return f"{_of_the_wait(report, NEIGHBOURS)} is other work on GPU {report.gpu}, which the driver does not name."
    name, seconds = next(iter(report.blame.items()))
    part = 100 * seconds / sum(report.blame.values())
    who = f"{_of_the_wait(report, NEIGHBOURS)} is its neighbours on GPU {report.gpu}, {part:.0f} % of that {name}"
    row = next((row for row in neighbours if row.name == name), None)
    if row is None:
        return f"{who}: find out what that is, or start {report.name} on another GPU."
    if row.cores_percent >= _NO_LIMIT:
        return f"{who}, which has no limit of its own: give it a share, or start one of them on another GPU."
    return f"{who}, within its {row.cores_percent} % share: start one of them on another GPU."


def _memory(report: Report, _: Sequence[Row]) -> str:
    count, row = sum(report.denied.values()), report.last
    reason = max(report.denied, key=lambda one: report.denied[one])
    what = f"{count} allocation{'s were' if count > 1 else ' was'} refused"
    if reason == "quota":
        peak, quota = output.size(row.peak_bytes), output.size(row.memory_bytes)
        return f"{what} at its quota of {quota} (peak {peak}): ask for more (vgpu.memory), or use less."
    if reason == "driver":
        return f"{what} within its quota, because GPU {report.gpu} was full: give out less of it (overcommit.memory)."
    if reason == "slot":
        return f"{what}, because more processes use the GPU than the account has places for: start fewer."
    return f"{what}, because their memory cannot be counted: docs/entry-points.md has the functions."


def _own(report: Report, _: Sequence[Row]) -> str:
    share = f"its {report.last.cores_percent} % share" if report.last.cores_percent < _NO_LIMIT else "a quota"
    used = 100 * report.share(OWN)
    return f"Its own compute fills {used:.0f} % of the time; neither {share} nor a neighbour holds it back."


def _host(report: Report, _: Sequence[Row]) -> str:
    idle = 100 * report.share(HOST)
    return f"{idle:.0f} % of the time it asked nothing of the GPU: look at its CPU, its input and its idle times."
