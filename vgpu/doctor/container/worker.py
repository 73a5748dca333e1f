"""Looks at processes from a child, which can be ended: a file that a process has mapped may lie on a file system of
its own making (FUSE), and whoever reads there waits for as long as it likes.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
import traceback
from collections.abc import Iterator, Sequence

from vgpu.doctor.container.mapped import Process, Reader, from_json

DEADLINE_S = 5.0  # for one process


def look(pids: Sequence[int], proc: str = "/proc", deadline_s: float = DEADLINE_S) -> Iterator[Process]:
    """Those of `pids` that have not ended, in their order. One that takes longer than `deadline_s` has `trouble`."""
    left = list(pids)
    while left:
        for pid, found in _answers(left, proc, deadline_s):
            left = left[left.index(pid) + 1 :]
            if found is not None:
                yield found


def _answers(pids: Sequence[int], proc: str, deadline_s: float) -> Iterator[tuple[int, Process | None]]:
    """Answers of one child; after one that it did not give in time, no more."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _answer(pids, proc, writing)
    os.close(writing)
    lines = _Lines(reading, deadline_s)
    try:
        for pid in pids:
            line = lines.next()
            if line is None:
                yield pid, Process(pid, trouble=f"its mapped files could not be read within {deadline_s:g} s")
                return
            found = json.loads(line)
            yield pid, from_json(found) if found else None
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)  # not reaped yet, so the pid is its own
        _reap(child)


class _Lines:
    """The child's lines, each waited for `deadline_s` at most."""

    def __init__(self, descriptor: int, deadline_s: float) -> None:
        self._descriptor = descriptor
        self._deadline_s = deadline_s
        self._held = b""

    def next(self) -> bytes | None:
        """None if it takes too long, or the child has ended."""
        until = time.monotonic() + self._deadline_s
        while b"\n" not in self._held:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._descriptor], [], [], left)[0]:
                return None
            more = os.read(self._descriptor, 1 << 16)
            if not more:
                return None
            self._held += more
        line, _, self._held = self._held.partition(b"\n")
        return line


def _reap(child: int) -> None:
    """A child that hangs in the kernel for good is left to whoever ends us."""
    until = time.monotonic() + 1
    while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < until:
        time.sleep(0.005)


def _answer(pids: Sequence[int], proc: str, writing: int) -> None:
    """In the child: one line a process. Never returns."""
    try:
        reader = Reader(proc)
        for pid in pids:
            found = reader.process(pid)
            data = json.dumps(found.as_json() if found else None).encode() + b"\n"
            while data:
                data = data[os.write(writing, data) :]
    except BrokenPipeError:
        pass  # it was too slow for the one who asked
    except BaseException:
        traceback.print_exc()  # a bug
    finally:
        os._exit(0)
