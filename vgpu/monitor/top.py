"""vgpu top: who uses which GPU now, and who waits for what. Live on a terminal, a block each time elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Generator, Iterator
from typing import Any

from libcuda_wrap.bindings import DENIALS
from oci_hook.records import Policy
from vgpu import output
from vgpu.config import load
from vgpu.monitor import arguments, screen, status
from vgpu.monitor.collect import Collector
from vgpu.monitor.screen import Line, Snapshot

_PIPE_WIDTH = 200


def run(config: str, *, interval_s: float, sort: str, once: bool, as_json: bool) -> None:
    """Until interrupted; with `once` or `as_json` one interval is watched and shown."""
    views = watch(load(config), arguments.interval(interval_s), screen.check_sort(sort))
    try:
        if as_json:
            next(views)
            output.emit_json(describe(next(views), interval_s))
        elif once or not sys.stdout.isatty():
            _print(views, once=once)
        else:
            _live(views)
    except KeyboardInterrupt:  # how one leaves it
        return
    finally:
        views.close()


def watch(policy: Policy, interval_s: float, sort: str) -> Generator[Snapshot]:
    """A snapshot at once, without rates, then one after each interval."""
    collector = Collector(policy)
    before = None
    try:
        while True:
            sample = collector.sample()
            clock = time.strftime("%H:%M:%S")
            yield screen.snapshot(before, sample, status.read(policy.state_dir), sort, clock)
            before = sample
            time.sleep(interval_s)
    finally:
        collector.close()


def _print(views: Iterator[Snapshot], *, once: bool) -> None:
    next(views)  # it has no rates yet
    width = shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns if sys.stdout.isatty() else _PIPE_WIDTH
    for view in views:
        print("\n".join(line.rstrip() for _, line in screen.text(view, width)), flush=True)
        if once:
            return
        print(flush=True)


def _live(views: Iterator[Snapshot]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for view in views:
            lines = screen.text(view, console.width, console.height)
            live.update(Text("\n").join(Text(line, style) for style, line in lines), refresh=True)


def describe(view: Snapshot, interval_s: float) -> dict[str, Any]:
    """What --json prints."""
    return {
        "time_ns": view.sample.wall_ns,
        "interval_s": interval_s,
        "simulated": view.sample.simulated,
        "monitor_running": view.status.running,
        "troubles": [{"part": part, "what": what} for part, what in view.sample.troubles],
        "gpus": [
            {
                "index": gpu.index,
                "uuid": gpu.uuid,
                "memory_bytes": gpu.memory_bytes,
                "used_bytes": gpu.used_bytes,
                "busy_percent": gpu.busy_percent,
            }
            for gpu in view.sample.gpus
        ],
        "slices": [_slice(view, line) for line in view.lines],
    }


def _slice(view: Snapshot, line: Line) -> dict[str, Any]:
    row, rate = line.row, line.rate
    return {
        "id": row.id,
        "name": row.name,
        "gpu": row.gpu,
        "memory_bytes": row.memory_bytes,
        "cores_percent": row.cores_percent,
        "used_bytes": row.used_bytes if row.known else None,
        "peak_bytes": row.peak_bytes if row.known else None,
        "driver_bytes": row.nvml_bytes,
        "processes": row.processes,
        "denied": dict(zip(DENIALS, row.denied, strict=True)) if row.known else None,
        "denied_now": sum(rate.denied) if rate else None,
        "busy_ratio": rate.busy if rate else None,
        "driver_busy_ratio": rate.sm if rate else None,
        "throttled_ratio": rate.throttled if rate else None,
        "launches_per_second": rate.launches if rate else None,
        "findings": sorted(key[2] for key in view.status.findings if key[:2] == (row.id, row.gpu)),
    }
