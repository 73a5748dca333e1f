"""findings.json: what the monitor holds against which container now, for top and the exporter."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from vgpu.monitor.truth import Key, Track

STALE_AFTER = 4  # intervals: then the monitor no longer runs, and its findings say nothing about now


@dataclass(frozen=True, slots=True)
class Status:
    """running: the monitor has looked lately. findings: (container id, GPU, kind) -> detail."""

    running: bool
    findings: Mapping[tuple[str, int, str], str]


def path(state_dir: str) -> str:
    return f"{state_dir}/monitor/findings.json"


def write(state_dir: str, tracks: Mapping[Key, Track], interval_s: float) -> None:
    """All or nothing. Raises OSError."""
    findings = [
        {"container": key.container, "gpu": key.gpu, "kind": key.kind, "detail": track.detail}
        for key, track in sorted(tracks.items())
        if track.raised
    ]
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    file = path(state_dir)
    temporary = f"{file}.new"
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump({"schema": 1, "boottime_ns": now, "interval_s": interval_s, "findings": findings}, stream)
    os.rename(temporary, file)


def read(state_dir: str) -> Status:
    """What the monitor says; not running if it has never run, has ended, or its file cannot be read."""
    try:
        with open(path(state_dir), encoding="utf-8") as stream:
            found = json.load(stream)
        age_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - found["boottime_ns"]
        if not 0 <= age_ns <= max(5.0, found["interval_s"] * STALE_AFTER) * 1e9:
            return Status(False, {})
        findings = {(str(one["container"]), int(one["gpu"]), str(one["kind"])): str(one["detail"])
                    for one in found["findings"]}  # fmt: skip
        return Status(True, findings)
    except (OSError, ValueError, KeyError, TypeError):
        return Status(False, {})
