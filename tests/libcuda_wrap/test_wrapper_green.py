"""Green contexts: what they take is charged, what is allocated in them is their primary context's, and their launches
are limited as others are. Witness: the simulation itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from libcuda_wrap.sim import create
from tests.libcuda_wrap.wrapped import INVALID_DEVICE, INVALID_VALUE, MIB, OUT_OF_MEMORY, Box, Client, part

CONTEXT, GREEN = 40 * MIB, 5 * MIB  # the simulation takes an eighth of a context for a green one
Check = Callable[[int], None]


@pytest.fixture
def check(box: Box) -> Check:
    """Holds that wrapper and driver agree on what is in use."""

    def agreed(used: int) -> None:
        assert (box.used(), create.read_state(box.folder / "sim").gpus[0].used_bytes) == (used, used)

    return agreed


@pytest.fixture
def client(box: Box) -> Client:
    box.fresh(part(0, 100 * MIB), context_bytes=CONTEXT)
    made = box.client("kernels")
    made.ok("init")
    return made


def test_it_is_charged_beside_the_primary_context(client: Client, check: Check) -> None:
    client.ok("primary 0", "green 1 0 64", "green 2 0 0")
    check(CONTEXT + 2 * GREEN)
    client.ok("green_end 1")
    check(CONTEXT + GREEN)
    client.ok("green_end 2")
    check(CONTEXT)


def test_the_first_one_makes_the_primary_context_and_the_last_one_ends_it(client: Client, check: Check) -> None:
    for _ in range(3):
        client.ok("green 1 0 8", "green 2 0 8")
        check(CONTEXT + 2 * GREEN)
        client.ok("green_use 1", "alloc 5 1000", "green_use 2", "alloc 6 24")
        check(CONTEXT + 2 * GREEN + 1024)
        client.ok("green_end 1")
        check(CONTEXT + GREEN + 1024)  # the primary context's, which is still there
        client.ok("green_end 2")
        check(0)


def test_memory_of_a_green_context_is_its_primary_ones(client: Client, check: Check) -> None:
    client.ok("primary 0", "green 1 0 8", "green_use 1", "alloc 5 1000", "green_end 1", "primary 0")
    check(CONTEXT + 1000)
    client.ok("free 5")
    check(CONTEXT)
    client.ok("green 1 0 8", "green_use 1", "alloc 5 1000", "reset 0")
    check(0)


def test_one_that_does_not_fit_is_undone(box: Box, client: Client, check: Check) -> None:
    box.resize(0, CONTEXT + GREEN - 1)
    assert client.ask("green 1 0 8")[0] == OUT_OF_MEMORY
    check(0)
    client.ok("primary 0")
    assert client.ask("green 1 0 8")[0] == OUT_OF_MEMORY
    check(CONTEXT)
    box.resize(0, CONTEXT - 1)
    client.ok("release 0")
    assert client.ask("green 1 0 8")[0] == OUT_OF_MEMORY
    check(0)


def test_bad_arguments_change_nothing(client: Client, check: Check) -> None:
    assert client.ask("green_on 1 0")[0] == INVALID_VALUE
    check(0)
    assert client.ask("green_end 1")[0] != 0
    client.ok("green 1 0 8")
    assert client.ask("green_on 2 0")[0] == INVALID_VALUE
    check(CONTEXT + GREEN)
    client.ok("green_end 1")
    check(0)


def test_a_device_outside_the_slice_is_refused(box: Box) -> None:
    box.fresh(part(1, 100 * MIB), context_bytes=CONTEXT)
    client = box.client("kernels")
    client.ok("init")
    assert client.ask("green 1 0 8")[0] == client.ask("green_on 1 0")[0] == INVALID_DEVICE
    assert create.read_state(box.folder / "sim").gpus[0].used_bytes == 0
    client.ok("green 1 1 8")
    assert box.used() == CONTEXT + GREEN


@pytest.mark.parametrize("stream", ["0", "9"], ids=["default stream", "own stream"])
def test_launches_in_it_are_limited_and_measured(plain_box: Box, stream: str) -> None:
    """Forty kernels of 10 ms, by the GPU's own count, at 40 percent."""
    plain_box.fresh(part(0, 100 * MIB, 40))
    client = plain_box.client("kernels")
    client.ok("init", "green 1 0 64", "green_use 1", "green_stream 9 1", "module 2 0 0", "function 3 2 sleep_us_10000")
    client.ok(*[f"launch 3 {stream}"] * 5, "sync")
    began, before = time.monotonic(), create.read_state(plain_box.folder / "sim").gpus[0].busy_ns
    client.ok(*[f"launch 3 {stream}"] * 40, "sync")
    took, busy = time.monotonic() - began, create.read_state(plain_box.folder / "sim").gpus[0].busy_ns - before
    assert busy == 40 * 10_000_000
    assert busy / 1e9 / took <= 0.45
    client.ok("launch 3", "sync")  # what is measured by then is told
    assert plain_box.usage().gpus[0].busy_ns == pytest.approx(45 * 10_000_000, rel=0.1)
