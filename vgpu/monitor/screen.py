"""What `vgpu top` shows, as lines of text that fit a terminal's width. Pure: a snapshot in, lines out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from oci_hook.errors import HostError, shown
from vgpu import output
from vgpu.monitor.rates import Rate, rates
from vgpu.monitor.rows import REST, Row, rows
from vgpu.monitor.sample import Sample
from vgpu.monitor.status import Status

PLAIN, HEAD, BAD = "", "bold", "red"  # styles of a line
_COLUMNS = ("GPU", "MEMORY", "CORES", "WAITED", "DENIED", "PROC")
_WIDTHS = (3, 17, 10, 6, 9, 4)
_GAP = "  "
_NAME_WIDTH = (12, 40)


@dataclass(frozen=True, slots=True)
class Line:
    """A container on one GPU. rate: since the last look, None with the first."""

    row: Row
    rate: Rate | None

    @property
    def cores(self) -> float:
        return self.rate.used if self.rate else 0.0

    @property
    def throttled(self) -> float:
        return self.rate.throttled if self.rate else 0.0

    @property
    def denied(self) -> int:
        return sum(self.row.denied)

    @property
    def denied_now(self) -> int:
        return sum(self.rate.denied) if self.rate else 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment with what changed since the last. clock: for the header, "12:34:05"."""

    sample: Sample
    lines: tuple[Line, ...]
    rest: tuple[Row, ...]
    status: Status
    clock: str = ""


_Order = Callable[[Line], tuple[object, ...]]
SORTS: dict[str, _Order] = {
    "memory": lambda line: (-line.row.used_bytes, line.row.name),
    "cores": lambda line: (-line.cores, line.row.name),
    "throttled": lambda line: (-line.throttled, -line.row.throttled_ns, line.row.name),
    "denied": lambda line: (-line.denied_now, -line.denied, line.row.name),
    "name": lambda line: (line.row.name, line.row.gpu),
}


def check_sort(name: str) -> str:
    """Raises HostError VGPU-CFG-003 for an order that does not exist."""
    if name not in SORTS:
        raise HostError("VGPU-CFG-003", f"--sort {shown(name)}", remedy=f"choose one of {', '.join(SORTS)}")
    return name


def snapshot(before: Sample | None, sample: Sample, status: Status, sort: str, clock: str = "") -> Snapshot:
    seen = rows(sample)
    found = rates(rows(before), seen) if before else {}
    lines = [Line(row, found.get((row.id, row.gpu))) for row in seen if row.id != REST]
    rest = tuple(row for row in seen if row.id == REST)
    return Snapshot(sample, tuple(sorted(lines, key=SORTS[sort])), rest, status, clock)


def text(view: Snapshot, width: int, height: int | None = None) -> list[tuple[str, str]]:
    """(style, line) for each line; at most `width` characters, and `height` lines."""
    head = [(HEAD, _title(view))] + [(PLAIN, _gpu(view, row)) for row in view.rest] + [(PLAIN, "")]
    longest = max((len(line.row.name) for line in view.lines), default=0)
    room = width - sum(_WIDTHS) - len(_GAP) * len(_WIDTHS)
    names = max(_NAME_WIDTH[0], min(_NAME_WIDTH[1], longest, room))
    head.append((HEAD, _cells("CONTAINER", names, _COLUMNS)))
    body = [(BAD if _marked(view, line) else PLAIN, _line(line, names)) for line in view.lines]
    foot = _remarks(view)
    if height is not None:
        space = max(1, height - len(head) - len(foot) - 1)
        if len(body) > space:
            body = [*body[: space - 1], (PLAIN, f"… {len(body) - space + 1} more")]
    if not body:
        body = [(PLAIN, "no container has a slice")]
    return [(style, _cut(line, width)) for style, line in [*head, *body, *foot]][:height]


def _title(view: Snapshot) -> str:
    count = len(view.sample.containers)
    parts = ["vgpu top", view.clock, f"{count} container{'' if count == 1 else 's'}"]
    parts += ["simulated"] * view.sample.simulated
    return "   ".join(part for part in parts if part)


def _gpu(view: Snapshot, rest: Row) -> str:
    given = [line.row for line in view.lines if line.row.gpu == rest.gpu]
    cores = sum(row.cores_percent for row in given if row.cores_percent < 100)
    busy = "?" if rest.gpu_percent is None else f"{rest.gpu_percent:.0f} %"
    parts = [
        f"GPU {rest.gpu}   busy {busy:>5}   memory {_pair(rest.used_bytes, rest.memory_bytes)}",
        f"given out {sum(row.memory_bytes for row in given) / (1 << 30):.1f} GiB"
        + (f", {cores} % cores" if cores else ""),
    ]
    if rest.processes:
        parts.append(f"others {rest.processes} proc.")
    return "   ".join(parts)


def _line(line: Line, names: int) -> str:
    row = line.row
    if not row.known:
        return _cells(row.name, names, (str(row.gpu), f"? / {output.size(row.memory_bytes)}", "?", "?", "?", "?"))
    denied = f"{line.denied} (+{line.denied_now})" if line.denied_now else str(line.denied)
    used = "?" if line.rate is None else f"{line.cores * 100:.0f}"
    cores = f"{used} %" if row.cores_percent >= 100 else f"{used} / {row.cores_percent} %"
    waited = "?" if line.rate is None else f"{line.throttled * 100:.0f} %"
    cells = (str(row.gpu), _pair(row.used_bytes, row.memory_bytes), cores, waited, denied, str(row.processes))
    return _cells(row.name, names, cells)


def _cells(name: str, names: int, cells: tuple[str, ...]) -> str:
    parts = [_cut(output.printable(name), names).ljust(names)]
    parts += [cell.rjust(width) for cell, width in zip(cells, _WIDTHS, strict=True)]
    return _GAP.join(parts)


def _pair(used: int, total: int) -> str:
    """`1.2 / 8.0 GiB`, both in the unit of the total."""
    unit, shift = ("GiB", 30) if total >= 1 << 30 else ("MiB", 20)
    return f"{used / (1 << shift):.1f} / {total / (1 << shift):.1f} {unit}"


def _marked(view: Snapshot, line: Line) -> bool:
    return not line.row.known or any(key[:2] == (line.row.id, line.row.gpu) for key in view.status.findings)


def _remarks(view: Snapshot) -> list[tuple[str, str]]:
    names = {line.row.id: line.row.name for line in view.lines}
    found = [
        (BAD, f"{kind}: {names[container]}, {detail}")
        for (container, _, kind), detail in sorted(view.status.findings.items())
        if container in names
    ]
    found += [(BAD, f"{part}: {what}") for part, what in view.sample.troubles]
    if not view.status.running:
        found.append((PLAIN, "vgpu monitor is not running: nothing is compared with the driver, or kept"))
    return [(PLAIN, ""), *((style, output.printable(line)) for style, line in found)] if found else []


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: max(1, width - 1)] + "…"
