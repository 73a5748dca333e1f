"""The work of a container under which things are changed: it allocates all the time, what fits and what does not."""

from __future__ import annotations

import time
from collections.abc import Callable

GIB = 1 << 30
SLICE = {"vgpu.memory": "8GiB"}
# one process keeps half of the slice; others, new ones each time, ask for what fits and for what does not
SCRIPT = f"""
cuda_client hold 1000 >/dev/null 2>&1 &
sleep 1
while [ ! -e /stop ]; do
    cuda_client alloc {GIB} >/dev/null 2>&1 && echo fits || echo LOST
    cuda_client alloc {5 * GIB} >/dev/null 2>&1 && echo BREACH || echo denied
done
"""


def goes_on(output: Callable[[], str], rounds: int = 3) -> None:
    """It allocates, and is denied, `rounds` times more; never anything else. output: what it has said so far."""
    enough, until = len(output().split()) + 2 * rounds, time.monotonic() + 60
    while len(words := output().split()) < enough:
        assert time.monotonic() < until, words[-4:]
        time.sleep(0.05)
    assert set(words) == {"fits", "denied"}
