"""vgpu bill: who had how much of which GPU, from the audit log.

A container's share of a GPU is its memory divided by the GPU's; with the policy `exclusive` it is all of it. Hours are
counted exactly and rounded once, in each row, to a millionth; a total is the sum of its rows, so that it can be checked
by adding them up. A cost is the rounded hours times the price, rounded to the hundredth, half to even.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

HOUR_NS = 3600 * 10**9
COLUMNS = ("allocated_gpu_hours", "used_gpu_hours", "idle_gpu_hours", "throttled_hours")
_ENDS = ("release", "reap", "fail")


@dataclass(frozen=True, slots=True)
class Stay:
    """A slice of one GPU with one size, from start_ns to end_ns (Unix time). share: of the GPU, 0 to 1, exact.

    busy_ns, throttled_ns: of this stay. gpu: name of the model; ended: how it is known when it ended.
    """

    container: str
    labels: Mapping[str, str]
    image: str
    gpu: str
    uuid: str
    share: Fraction
    start_ns: int
    end_ns: int
    busy_ns: int = 0
    throttled_ns: int = 0
    ended: str = "release"


class _Open:
    """A container that has slices, while the log is read."""

    def __init__(self, entry: dict[str, Any], slices: Sequence[dict[str, Any]]) -> None:
        self.started = entry
        self.since = entry  # of the present size
        self.slices = slices
        self.last_seen = entry
        self.past: list[tuple[dict[str, Any], int, int]] = []  # slice, start, end: of sizes before the present one


def stays(
    entries: Sequence[dict[str, Any]], running: Mapping[str, Sequence[Mapping[str, Any]]], now_ns: int
) -> list[Stay]:
    """entries: in the ledger's order. running: container -> figures per slice ("uuid", "busy_ns", "throttled_ns") of
    those that have a slice now: they are billed until now_ns."""
    opened: dict[str, _Open] = {}
    gpus: dict[str, tuple[str, int]] = {}
    found: list[Stay] = []
    closed: set[tuple[str, int]] = set()  # who is killed between line and folder is ended again by the next start
    for entry in entries:
        for gpu in entry.get("inputs", {}).get("gpus", ()):
            gpus[gpu["uuid"]] = (gpu["name"], gpu["memory_bytes"])
        for other in entry.get("inputs", {}).get("given", ()):
            if other["id"] in opened:
                opened[other["id"]].last_seen = entry
        event, container = entry.get("event"), entry["id"]
        if event == "allocate":
            if container in opened:  # its end was lost
                found += _closed(opened.pop(container), entry, (), gpus, "not logged")
            opened[container] = _Open(entry, entry["placement"]["slices"])
        elif event == "resize" and container in opened:
            _resize(opened[container], entry)
        elif event in _ENDS and (container in opened or entry.get("slices")):
            if (container, entry.get("created_ns", 0)) in closed:
                continue
            closed.add((container, entry.get("created_ns", 0)))
            before = opened.pop(container, None) or _Open(_start_of(entry), entry["slices"])
            found += _closed(before, entry, entry.get("use", ()), gpus, str(event))
    for container, one in opened.items():
        if container in running:
            found += _closed(one, {"time_ns": now_ns}, running[container], gpus, "running")
        else:
            found += _closed(one, one.last_seen, (), gpus, "not logged")
    return found


def _start_of(end: dict[str, Any]) -> dict[str, Any]:
    """The start of a container whose own line is gone (rotated, or killed before it was written), from its end."""
    return {"id": end["id"], "time_ns": end.get("created_ns", end["time_ns"]), "image": end.get("image", ""),
            "inputs": {"request": {"labels": end.get("labels", {})}}, "placement": {
                "policy": "exclusive" if end.get("exclusive") else ""}}  # fmt: skip


def _resize(one: _Open, entry: dict[str, Any]) -> None:
    start, end = _span(one, entry)
    one.past += [(part, start, end) for part in one.slices]
    one.slices, one.since = entry["after"], {**entry, "wall_ns": end}


def _span(one: _Open, end: Mapping[str, Any]) -> tuple[int, int]:
    """Unix time of the present size's start and end. Within one boot the length is that of the boot's clock, which
    nobody sets; so a clock that is set in between neither adds nor takes hours."""
    start = one.since
    begin = int(start.get("wall_ns", start["time_ns"]))
    length = int(end["time_ns"]) - begin
    if start.get("boot") and start.get("boot") == end.get("boot"):
        length = int(end["boot_ns"]) - int(start["boot_ns"])
    return begin, begin + max(length, 0)


def _closed(
    one: _Open, end: Mapping[str, Any], use: Sequence[Mapping[str, Any]], gpus: Mapping[str, tuple[str, int]], how: str
) -> list[Stay]:
    start, until = _span(one, end)
    parts = [*one.past, *((part, start, until) for part in one.slices)]
    used = {item["uuid"]: item for item in use}
    whole: dict[str, int] = {}
    for part, begin, stop in parts:
        whole[part["uuid"]] = whole.get(part["uuid"], 0) + stop - begin
    alone = one.started["placement"].get("policy") == "exclusive"
    made = []
    for part, begin, stop in parts:
        name, memory = gpus.get(part["uuid"], ("unknown", part["memory_bytes"]))
        figures, length = used.get(part["uuid"], {}), whole[part["uuid"]]
        piece = Fraction(stop - begin, length) if length else Fraction(0)
        made.append(Stay(
            container=one.started["id"],
            labels=one.started["inputs"]["request"].get("labels", {}),
            image=one.started.get("image", ""),
            gpu=name,
            uuid=part["uuid"],
            share=Fraction(1) if alone else Fraction(part["memory_bytes"], memory),
            start_ns=begin,
            end_ns=stop,
            # the container writes these figures: it cannot have used more than there was time
            busy_ns=int(min(figures.get("busy_ns", 0), length) * piece),
            throttled_ns=int(figures.get("throttled_ns", 0) * piece),
            ended=how,
        ))  # fmt: skip
    return made


def clipped(found: Sequence[Stay], start_ns: int, end_ns: int) -> list[Stay]:
    """What of the stays is in the period; use is taken as spread evenly over a stay."""
    inside = []
    for stay in found:
        begin, stop = max(stay.start_ns, start_ns), min(stay.end_ns, end_ns)
        if begin >= stop:
            continue
        part = Fraction(stop - begin, stay.end_ns - stay.start_ns)
        inside.append(Stay(
            stay.container, stay.labels, stay.image, stay.gpu, stay.uuid, stay.share, begin, stop,
            int(stay.busy_ns * part), int(stay.throttled_ns * part), stay.ended,
        ))  # fmt: skip
    return inside


def key(stay: Stay, by: str) -> str:
    """by: "label:NAME", "user" (the label user), "team", "image", "gpu", "container"."""
    if by in ("image", "gpu", "container"):
        return str(getattr(stay, by)) or "(none)"
    name = by.removeprefix("label:")
    return stay.labels.get(name, "(none)")


def rows(found: Sequence[Stay], by: str, prices: Mapping[str, Fraction]) -> list[dict[str, Any]]:
    """One row for each key and GPU model, sorted, then "total". Hours are Fractions, rounded as the module says."""
    sums: dict[tuple[str, str], list[Fraction]] = {}
    for stay in found:
        hours = Fraction(stay.end_ns - stay.start_ns, HOUR_NS) * stay.share
        used = Fraction(stay.busy_ns, HOUR_NS)
        row = sums.setdefault((key(stay, by), stay.gpu), [Fraction(0)] * 4)
        more = (hours, used, max(hours - used, Fraction(0)), Fraction(stay.throttled_ns, HOUR_NS))
        sums[key(stay, by), stay.gpu] = [before + one for before, one in zip(row, more, strict=True)]
    made: list[dict[str, Any]] = []
    for (name, gpu), values in sorted(sums.items()):
        row_ = {column: round(value, 6) for column, value in zip(COLUMNS, values, strict=True)}
        rate = price(gpu, prices)
        cost = None if rate is None else round(row_["allocated_gpu_hours"] * rate, 2)
        made.append({"key": name, "gpu": gpu, **row_, "cost": cost})
    total = {column: sum((row[column] for row in made), Fraction(0)) for column in COLUMNS}
    costs = [row["cost"] for row in made if row["cost"] is not None]
    made.append({"key": "total", "gpu": "", **total, "cost": sum(costs, Fraction(0)) if costs else None})
    return made


def price(gpu: str, prices: Mapping[str, Fraction]) -> Fraction | None:
    """Of the longest name in `prices` that is part of the GPU's, in whatever case."""
    names = [name for name in prices if name.lower() in gpu.lower()]
    return prices[max(names, key=len)] if names else None


def text(value: Fraction | None, digits: int) -> str:
    """In decimals, exactly as it was rounded."""
    return "" if value is None else _decimal(value, digits)


def _decimal(value: Fraction, digits: int) -> str:
    scaled = round(value * 10**digits)
    return f"{scaled // 10**digits}.{scaled % 10**digits:0{digits}d}"


def as_csv(made: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("key", "gpu", *COLUMNS, "cost"))
    for row in made:
        writer.writerow((row["key"], row["gpu"], *(text(row[column], 6) for column in COLUMNS), text(row["cost"], 2)))
    return out.getvalue()
