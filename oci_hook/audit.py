"""What happened, kept: one JSON object a line in <log>/audit.jsonl, and the reason of each refused start.

Neither ever fails a start: what cannot be written is lost, as a slice in force matters more than a line about it.
"""

from __future__ import annotations

import fcntl
import os
import time

from oci_hook import fastjson
from oci_hook.errors import VgpuError
from oci_hook.values import TYPE_CHECKING, as_json

if TYPE_CHECKING:
    from typing import Any

KEPT_FAILURES = 100
MAX_BYTES = 16 << 20  # of audit.jsonl, before it becomes audit.jsonl.1
KEPT_LOGS = 8  # audit.jsonl.1 to .8
UNNAMED = ".unnamed"  # stands for an id that cannot be a file's name
BEGUN = "hook.begun"  # in the container's folder: the hook is at work; if it is killed, that is all that is known
_MAX_TEXT = 4096
_BOOT = "/proc/sys/kernel/random/boot_id"


def append(log_dir: str, event: str, container: str, **facts: Any) -> None:
    """One line. event: "allocate", "deny", "arm", "resize", "fail", "release" or "reap", and the monitor's "flag" and
    "unflag"; facts: records, or what JSON has.

    boot, boot_ns: which boot, and how long after it, for durations when the clock is set. A lost line is counted.
    """
    boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    entry = {"schema": 1, "time_ns": time.time_ns(), "boot_ns": boot_ns, "boot": _boot(), "event": event,
             "id": container[:200], **as_json(facts)}  # fmt: skip
    line = fastjson.dumps(entry).encode() + b"\n"
    try:
        os.makedirs(log_dir, 0o755, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(f"{log_dir}/audit.jsonl", flags, 0o640)
        try:
            # one write with O_APPEND: lines of processes that run at once do not mix
            written = os.write(descriptor, line)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if written < len(line):  # the disk is full; readers know how to skip the beginning of a line
            _count_loss(log_dir)
        if size > MAX_BYTES:
            _rotate(log_dir)
    except OSError:
        _count_loss(log_dir)


def lost(log_dir: str) -> int:
    """How many lines could not be written, as far as that could be."""
    try:
        return os.stat(f"{log_dir}/audit.lost").st_size
    except OSError:
        return 0


def _count_loss(log_dir: str) -> None:
    """One byte longer. A full disk has no room for a byte, but a hole in a file needs none."""
    try:
        descriptor = os.open(f"{log_dir}/audit.lost", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.ftruncate(descriptor, os.fstat(descriptor).st_size + 1)
        finally:
            os.close(descriptor)
    except OSError:
        return


def _rotate(log_dir: str) -> None:
    """audit.jsonl becomes .1, .1 becomes .2; the oldest goes. Who has it open still writes to the end of .1."""
    lock = os.open(f"{log_dir}/audit.lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.stat(f"{log_dir}/audit.jsonl").st_size <= MAX_BYTES:
            return  # another was quicker
        for number in range(KEPT_LOGS, 0, -1):
            before = f"{log_dir}/audit.jsonl" + (f".{number - 1}" if number > 1 else "")
            try:
                os.rename(before, f"{log_dir}/audit.jsonl.{number}")
            except FileNotFoundError:
                continue
    finally:
        os.close(lock)


def _boot() -> str:
    try:
        descriptor = os.open(_BOOT, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, 8).decode("ascii", "replace")
        finally:
            os.close(descriptor)
    except OSError:
        return ""


def failure(state_dir: str, container: str, error: VgpuError, **facts: str) -> None:
    """<state>/failures/<id>.json: for those whom the engine shows nothing. The newest KEPT_FAILURES stay.

    container: an id that `ledger.is_id` accepts, or UNNAMED. facts: name, image, bundle; part: who refused.
    """
    _keep(state_dir, container, error.code, str(error), error.remedy, time.time_ns(), facts)


def bug(state_dir: str, container: str, error: BaseException, **facts: str) -> None:
    """As `failure`, of what nobody has foreseen."""
    said = f"{type(error).__name__}: {error}"
    remedy = "report it, with what `vgpu doctor bundle` writes"
    _keep(state_dir, container, "VGPU-BUG-001", said, remedy, time.time_ns(), facts)


def silent(state_dir: str, container: str, began_ns: int, error: VgpuError, **facts: str) -> None:
    """As `failure`, of a start that began at `began_ns` (Unix time) and has ended since; what it said itself stays."""
    try:
        if os.lstat(f"{state_dir}/failures/{container}.json").st_mtime_ns >= began_ns:
            return
    except OSError:
        pass
    _keep(state_dir, container, error.code, str(error), error.remedy, began_ns, facts)


def _keep(
    state_dir: str, container: str, code: str, message: str, remedy: str, time_ns: int, facts: dict[str, str]
) -> None:
    entry = {"schema": 1, "time_ns": time_ns, "id": container, "code": code, "message": message[:_MAX_TEXT],
             "remedy": remedy, **{name: text[:_MAX_TEXT] for name, text in facts.items()}}  # fmt: skip
    folder = f"{state_dir}/failures"
    temporary = f"{folder}/.new-{container}-{os.getpid()}"
    try:
        os.makedirs(folder, 0o755, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o644)
        try:
            os.write(descriptor, fastjson.dumps(entry).encode() + b"\n")
        finally:
            os.close(descriptor)
        os.rename(temporary, f"{folder}/{container}.json")
        _keep_newest(folder)
    except OSError:
        return


def _keep_newest(folder: str) -> None:
    names = os.listdir(folder)
    if len(names) <= KEPT_FAILURES:
        return
    ages = []
    for name in names:
        try:
            ages.append((os.lstat(f"{folder}/{name}").st_mtime_ns, name))
        except FileNotFoundError:
            continue  # another refused start was quicker
    for _, name in sorted(ages)[:-KEPT_FAILURES]:
        try:
            os.unlink(f"{folder}/{name}")
        except FileNotFoundError:
            continue
