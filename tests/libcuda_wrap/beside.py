"""What each of several containers on the same simulated GPU has had of it, by the GPU's own count."""

from __future__ import annotations

import time

import pytest

from libcuda_wrap.sim import create
from tests.libcuda_wrap.wrapped import Box

WINDOW_S = 1.0


def had(boxes: list[Box], seconds: float = WINDOW_S) -> list[float]:
    """Percent of the GPU that each has had."""

    def busy() -> list[int]:
        found = {one.pid: one.busy_ns for one in create.read_state(boxes[0].folder / "sim").gpus[0].processes}
        return [sum(found.get(client.process.pid, 0) for client in box.clients) for box in boxes]

    before, start = busy(), time.monotonic_ns()
    time.sleep(seconds)
    after, end = busy(), time.monotonic_ns()
    return [100 * (new - old) / (end - start) for new, old in zip(after, before, strict=True)]


def close_to(boxes: list[Box], wanted: list[float], points: float, seconds: float = WINDOW_S) -> None:
    """In one of four windows: a busy machine may keep a program waiting."""
    got: list[list[float]] = []
    for _ in range(4):
        got.append(had(boxes, seconds))
        if all(abs(one - want) <= points for one, want in zip(got[-1], wanted, strict=False)):
            return
    pytest.fail(f"{got} percent, {wanted} expected")
