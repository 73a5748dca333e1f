"""Room for what vgpu writes, and whether something was lost already."""

from __future__ import annotations

import os
from collections.abc import Iterator

from oci_hook import quota_file
from vgpu.doctor.finding import CannotSee, Result, Seen, found
from vgpu.doctor.host.machine import Host, Run, why

SLICE_BYTES = quota_file.USAGE_BYTES + (64 << 10)  # with its entry and plan
SLICE_FILES = 16
FEW_SLICES = 32
LOG_BYTES = 100 << 20


def _exists(path: str) -> str:
    """`path`, or the nearest folder above it that is there."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _room(path: str) -> tuple[int, int, str]:
    """Bytes and files that still fit, and both in words."""
    try:
        room = os.statvfs(_exists(path))
    except OSError as error:
        raise CannotSee(path, why(error)) from None
    free = room.f_bavail * room.f_frsize
    files = room.f_favail if room.f_files else 1 << 30  # btrfs and others count none
    return free, files, f"{_about(free)} free" + (f", room for {files} files" if files < 1 << 20 else "")


def _about(count: int) -> str:
    """Bytes for people, rounded down: how much is free changes all the time."""
    return f"{count >> 30} GiB" if count >= 10 << 30 else f"{count / (1 << 20):.1f} MiB"


def state(host: Host) -> Iterator[Result]:
    folder = host.policy.state_dir
    free, files, words = _room(folder)
    slices = min(free // SLICE_BYTES, files // SLICE_FILES)
    if slices < FEW_SLICES:
        severity = "warning" if slices else "failure"
        yield found("VGPU-KRN-007", folder, f"{words}: enough for {slices} more slices", severity=severity,
                    remedy=f"make room there: du -x -d1 {folder} | sort -n")  # fmt: skip
    else:
        yield Seen(f"{folder}: {words}")


def log(host: Host) -> Iterator[Result]:
    folder = host.policy.log_dir
    free, files, words = _room(folder)
    if free < LOG_BYTES or files < SLICE_FILES:
        yield found("VGPU-KRN-008", folder, words, remedy=f"make room there: du -x -d1 {folder} | sort -n")
    else:
        yield Seen(f"{folder}: {words}")


def lost_lines(host: Host) -> Iterator[Result]:
    path = f"{host.policy.log_dir}/audit.lost"
    try:
        lost = os.stat(path).st_size
    except FileNotFoundError:
        lost = 0
    except OSError as error:
        raise CannotSee(path, why(error)) from None
    if lost:
        remedy = f"see to room and permissions there, then: rm {path}"
        yield found("VGPU-STA-004", path, f"{lost} lines could not be written", remedy=remedy)
    else:
        yield Seen("no line was lost")


CHECKS: tuple[tuple[str, str, Run], ...] = (
    ("host", "state disk", state),
    ("host", "log disk", log),
    ("host", "audit log", lost_lines),
)
