"""The audit log, read: every line that is one, oldest first, through the rotated files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from oci_hook import audit
from oci_hook.errors import HostError

_START = b'{"schema":'


def paths(log_dir: str) -> list[str]:
    """The files that are there, oldest first."""
    names = [f"{log_dir}/audit.jsonl.{number}" for number in range(audit.KEPT_LOGS, 0, -1)]
    return [path for path in (*names, f"{log_dir}/audit.jsonl") if os.path.exists(path)]


class Log:
    """`for entry in Log(paths)`. broken: lines that could not be read, counted while reading."""

    def __init__(self, files: list[str]) -> None:
        self.files = files
        self.broken = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Raises HostError VGPU-HOST-011 for a file that cannot be opened."""
        for path in self.files:
            try:
                with open(path, "rb") as file:
                    for line in file:
                        entry = self._entry(line)
                        if entry is not None:
                            yield entry
            except OSError as error:
                raise HostError(
                    "VGPU-HOST-011",
                    f"the audit log {path} cannot be read (errno {error.errno})",
                    remedy="run the command as root, or name another with --log",
                ) from None

    def _entry(self, line: bytes) -> dict[str, Any] | None:
        for start in (0, line.rfind(_START)):  # after a full disk a line can begin with a part of another
            try:
                entry = json.loads(line[max(start, 0) :])
            except ValueError:
                if start == 0:
                    self.broken += 1
                continue
            if isinstance(entry, dict) and isinstance(entry.get("time_ns"), int) and isinstance(entry.get("id"), str):
                return entry
        return None


def ordered(log: Log) -> list[dict[str, Any]]:
    """All entries, those of the ledger in the order of its sequence numbers, the others by their time."""
    return sorted(log, key=lambda entry: entry.get("seq") or entry["time_ns"])
