"""A system call that waits for others, with a time limit. Not loaded by a start that waits for nobody.

The kernel keeps those who wait in a queue; one that asks again and again instead has no turn, and on a busy machine
may never get one.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `import signal` costs 3 ms
import time

from oci_hook.values import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class _Over(BaseException):
    """Raised by the alarm; it never leaves this module."""


def within(timeout_s: float, wait: Callable[[], None]) -> bool:
    """Whether `wait` came back in time. An alarm of the caller's is set again afterwards, as much later.

    Only the main thread can be alarmed: in another there is no limit.
    """

    def over(number: int, frame: object) -> None:
        raise _Over

    try:
        handler = _signal.signal(_signal.SIGALRM, over)
    except ValueError:
        wait()
        return True
    began = time.monotonic()
    before, interval = _signal.setitimer(_signal.ITIMER_REAL, max(timeout_s, 0.001))
    try:
        try:
            wait()
        finally:
            _signal.setitimer(_signal.ITIMER_REAL, 0)
    except _Over:
        return False
    finally:
        _signal.signal(_signal.SIGALRM, handler)
        if before:
            _signal.setitimer(_signal.ITIMER_REAL, max(before - (time.monotonic() - began), 0.001), interval)
    return True
