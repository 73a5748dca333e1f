"""Reads jobs from CSV: our own columns, or those of two public traces. The header row says which it is.

Every refusal names file, line and column, the value, and what to write. docs/simulation.md says how the columns of the
public traces are understood. Rows that ask for no GPU or never ran are left out and counted.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import NoReturn

from oci_hook.errors import HostError, shown
from oci_hook.records import Ask
from vgpu.simulate.model import PRIORITIES, Job, Shape

OWN = ("name", "user", "arrival_s", "duration_s", "gpus", "memory_mib", "cores_percent", "priority", "instances")
OPENB = (
    "name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "gpu_spec", "qos", "pod_phase",
    "creation_time", "deletion_time", "scheduled_time",
)  # fmt: skip
PAI = (
    "job_name", "task_name", "inst_num", "status", "start_time", "end_time", "plan_cpu", "plan_mem", "plan_gpu",
    "gpu_type",
)  # fmt: skip
_LONGEST_S = 1 << 40
_CLASSES = {"LS": "high", "BE": "low"}  # of openb's qos; all others are normal
_ANY_MODEL = ("", "MISC")


@dataclass(frozen=True, slots=True)
class Trace:
    """jobs: by arrival, the first at 0. left_out: rows that ask for no GPU or never ran."""

    kind: str
    jobs: tuple[Job, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of the file, read column by column."""

    path: str
    line: int
    cells: dict[str, str]

    def fail(self, column: str, what: str, remedy: str) -> NoReturn:
        raise HostError("VGPU-SIM-002", f"{self.path}: line {self.line}, column {column}: {what}", remedy=remedy)

    def number(self, column: str, low: float, high: float, default: float | None = None) -> float:
        text = self.cells[column].strip()
        if not text and default is not None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # false for NaN as well
            self.fail(column, f"{shown(text)} cannot be", f"write a number from {low:g} to {high:g}")
        return value

    def whole(self, column: str, low: int, high: int, default: int | None = None) -> int:
        value = self.number(column, low, high, default)
        if value != int(value):
            self.fail(column, f"{shown(self.cells[column])} is not whole", f"write a number from {low} to {high}")
        return int(value)


def read(path: str) -> Trace:
    """Raises VGPU-SIM-002."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return parse(file, path)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        remedy = "name a CSV file; vgpu simulate --generate writes one"
        raise HostError("VGPU-SIM-002", f"{path} cannot be read: {why}", remedy=remedy) from None


def parse(lines: Iterable[str], path: str) -> Trace:
    reader = csv.reader(lines)
    try:
        header = next(reader, [])
        names = tuple(name.strip().lstrip("\ufeff") for name in header)
        kind, columns, first = _kind(names, path)
        jobs, left_out = [], 0
        shapes: dict[Shape, Shape] = {}
        for cells in chain([header] if first else [], reader):
            if not cells:
                continue
            if len(cells) != len(columns):
                what = f"{path}: line {reader.line_num}: {len(cells)} columns, {len(columns)} expected"
                raise HostError("VGPU-SIM-002", what, remedy=f"write {','.join(columns)}")
            job = _READERS[kind](_Row(path, reader.line_num, dict(zip(columns, cells, strict=True))), shapes)
            left_out += job is None
            if job:
                jobs.append(job)
    except csv.Error as error:
        remedy = "write one job a line, with commas between the columns"
        raise HostError("VGPU-SIM-002", f"{path}: line {reader.line_num}: {error}", remedy=remedy) from None
    if not jobs:
        what = f"{path}: no job in it asks for a GPU and ran ({left_out} rows left out)"
        raise HostError("VGPU-SIM-002", what, remedy="name a trace with jobs; vgpu simulate --generate writes one")
    jobs.sort(key=lambda job: job.arrival_s)  # stable: equal arrivals stay in the file's order
    start = jobs[0].arrival_s
    return Trace(kind, tuple(_later(job, -start) for job in jobs), left_out)


def _later(job: Job, seconds: int) -> Job:
    arrival = job.arrival_s + seconds
    return Job(job.name, job.owner, arrival, job.duration_s, job.shape, job.instances, job.priority)


def _kind(names: tuple[str, ...], path: str) -> tuple[str, tuple[str, ...], bool]:
    """The format, the columns in the file's order, and whether the first row is a job already."""
    for kind, columns in (("own", OWN), ("openb", OPENB), ("pai", PAI)):
        if set(columns) <= set(names) and len(set(names)) == len(names):
            return kind, names, False
    if len(names) == len(PAI) and names[2].replace(".", "", 1).isdigit():  # published without a header row
        return "pai", PAI, True
    nearest = max((OWN, OPENB, PAI), key=lambda columns: len(set(columns) & set(names)))
    missing = ", ".join(name for name in nearest if name not in names) or "none missing, but one is there twice"
    remedy = f"the first line must be {','.join(OWN)}, or that of a public trace (docs/simulation.md)"
    raise HostError("VGPU-SIM-002", f"{path}: line 1: not the columns of a known trace: {missing}", remedy=remedy)


def _own(row: _Row, shapes: dict[Shape, Shape]) -> Job | None:
    priority = row.cells["priority"].strip() or "normal"
    if priority not in PRIORITIES:
        row.fail("priority", f"there is no {shown(priority)}", f"write {', '.join(PRIORITIES)}")
    memory = row.whole("memory_mib", 1, 1 << 30) << 20
    shape = Shape(
        Ask(memory_bytes=memory, cores_percent=row.whole("cores_percent", 0, 100, 0)), row.whole("gpus", 1, 16)
    )
    return Job(
        row.cells["name"],
        row.cells["user"],
        round(row.number("arrival_s", 0, _LONGEST_S)),
        max(1, round(row.number("duration_s", 0, _LONGEST_S))),
        shapes.setdefault(shape, shape),
        row.whole("instances", 1, 10_000, 1),
        priority,
    )


def _openb(row: _Row, shapes: dict[Shape, Shape]) -> Job | None:
    gpus = row.whole("num_gpu", 0, 16, 0)
    created = row.number("creation_time", 0, _LONGEST_S)
    if not gpus or not row.cells["deletion_time"].strip():
        return None
    started = row.number("scheduled_time", 0, _LONGEST_S, created)
    ended = row.number("deletion_time", 0, _LONGEST_S)
    share = max(1, round(row.number("gpu_milli", 1, 1000) / 10)) if gpus == 1 else 100
    models = {name.strip() for name in row.cells["gpu_spec"].split("|")} - {""}
    shape = Shape(Ask(memory_percent=share, cores_percent=share), gpus, tuple(sorted(name.lower() for name in models)))
    qos = row.cells["qos"].strip()
    duration = max(1, round(ended - started))
    name = row.cells["name"]
    return Job(name, qos, round(created), duration, shapes.setdefault(shape, shape), 1, _CLASSES.get(qos, "normal"))


def _pai(row: _Row, shapes: dict[Shape, Shape]) -> Job | None:
    plan = row.number("plan_gpu", 0, 1600, 0)
    if not plan or not row.cells["start_time"].strip() or not row.cells["end_time"].strip():
        return None
    started = row.number("start_time", 0, _LONGEST_S)
    duration = max(1, round(row.number("end_time", 0, _LONGEST_S) - started))
    gpus = max(1, math.ceil(plan / 100))
    share = max(1, round(plan)) if gpus == 1 else 100
    model = row.cells["gpu_type"].strip()
    models = () if model in _ANY_MODEL else (model.lower(),)
    shape = Shape(Ask(memory_percent=share, cores_percent=share), gpus, models)
    instances = row.whole("inst_num", 1, 10_000, 1)
    owner = row.cells["task_name"]
    return Job(row.cells["job_name"], owner, round(started), duration, shapes.setdefault(shape, shape), instances)


_READERS: dict[str, Callable[[_Row, dict[Shape, Shape]], Job | None]] = {"own": _own, "openb": _openb, "pai": _pai}
