"""What happened, kept: one JSON object a line in <log>/audit.jsonl, and the reason of each refused start.

Neither ever fails a start: what cannot be written is lost, as a slice in force matters more than a line about it.
"""

from __future__ import annotations

import os
import time

from oci_hook import fastjson
from oci_hook.errors import VgpuError
from oci_hook.values import TYPE_CHECKING, as_json

if TYPE_CHECKING:
    from typing import Any

KEPT_FAILURES = 100


def append(log_dir: str, event: str, container: str, **facts: Any) -> None:
    """One line. facts: records, or what JSON has.

    event: "allocate", "deny", "arm", "resize", "fail", "release" or "reap"; the monitor's "flag" or "unflag".
    """
    entry = {"schema": 1, "time_ns": time.time_ns(), "event": event, "id": container[:200], **as_json(facts)}
    try:
        os.makedirs(log_dir, 0o755, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(f"{log_dir}/audit.jsonl", flags, 0o640)
        try:
            # one write with O_APPEND: lines of processes that run at once do not mix
            os.write(descriptor, fastjson.dumps(entry).encode() + b"\n")
        finally:
            os.close(descriptor)
    except OSError:
        return


def failure(state_dir: str, container: str, error: VgpuError) -> None:
    """<state>/failures/<id>.json: for those whom the engine shows nothing. The newest KEPT_FAILURES stay.

    container: an id that `ledger.is_id` accepts.
    """
    entry = {
        "schema": 1,
        "time_ns": time.time_ns(),
        "id": container,
        "code": error.code,
        "message": str(error)[:4096],
        "remedy": error.remedy,
    }
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
