"""The kernel's log, as far as it is about GPUs or about processes that were killed for memory."""

from __future__ import annotations

import os
import re

_RELEVANT = re.compile(r"NVRM|Xid|nvidia|nouveau|vgpu|oom-kill|Out of memory|Killed process", re.IGNORECASE)
_KEPT = 500
_RECORD = 8192  # the kernel's largest


def lines(path: str = "/dev/kmsg") -> list[str]:
    """The newest lines that matter. Raises OSError where the log may not be read."""
    found: list[str] = []
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            try:
                record = os.read(descriptor, _RECORD)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # older ones were overwritten meanwhile
            if not record:
                break
            found += [text for text in _texts(record) if _RELEVANT.search(text)]
    finally:
        os.close(descriptor)
    return found[-_KEPT:]


def _texts(record: bytes) -> list[str]:
    """ "6,1234,5678,-;text" and continuation lines: time since boot in microseconds, and the text."""
    shown = []
    for line in record.decode("utf-8", "backslashreplace").splitlines():
        head, semicolon, text = line.partition(";")
        fields = head.split(",")
        if semicolon and len(fields) > 2 and fields[2].isdigit():
            shown.append(f"[{int(fields[2]) / 1e6:.6f}] {text}")
    return shown
