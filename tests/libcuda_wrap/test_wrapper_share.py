"""The compute share holds, by the simulated GPU's own count of who ran for how long, which the wrapper does not see.

With kernels that are long against what a busy machine takes to wake a program up: else the program, and not the share,
is what keeps the GPU idle.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from libcuda_wrap.sim import create
from tests.libcuda_wrap.wrapped import GIB, Box, part

WINDOW_S = 2.0
SETTLE_S = 0.3  # what a container has saved up, and what the first launches teach


def percent(box: Box, seconds: float = WINDOW_S) -> float:
    """Of GPU 0's time that was used, by whomever."""
    before, start = create.read_state(box.folder / "sim").gpus[0].busy_ns, time.monotonic_ns()
    time.sleep(seconds)
    after, end = create.read_state(box.folder / "sim").gpus[0].busy_ns, time.monotonic_ns()
    return 100 * (after - before) / (end - start)


def holds(box: Box, share: int, seconds: float = WINDOW_S) -> None:
    """Never above the share, and not below it in one of four windows: a busy machine may keep the program waiting."""
    got = []
    for _ in range(4):
        got.append(percent(box, seconds))
        assert got[-1] <= share + 2
        if got[-1] >= share - 2:
            return
    pytest.fail(f"{got} percent, {share} asked for")


@pytest.mark.parametrize(
    ("kind", "us", "share"),
    [("flood", 10, 30), ("flood", 1000, 50), ("flood", 15000, 30), ("sync", 20000, 30), ("sync", 20000, 50),
     ("graph", 1000, 30), ("streams", 500, 50), ("fill", 2000, 40)],
)  # fmt: skip
def test_the_share_holds(plain_box: Box, kind: str, us: int, share: int) -> None:
    plain_box.fresh(part(0, GIB, share))
    plain_box.share(kind, us)
    time.sleep(SETTLE_S)
    holds(plain_box, share)


def test_kernels_of_half_a_second_are_paid_back(plain_box: Box) -> None:
    plain_box.fresh(part(0, GIB, 50))
    plain_box.share("flood", 500_000)
    time.sleep(0.6)
    holds(plain_box, 50, 4.0)


def test_eight_processes_share_one_share(plain_box: Box) -> None:
    plain_box.fresh(part(0, GIB, 30))
    for _ in range(8):
        plain_box.share("flood", 1000)
    time.sleep(SETTLE_S)
    holds(plain_box, 30)


@pytest.mark.parametrize("kind", ["streams", "graph"])
def test_the_limiter_is_clean_under_the_sanitizers(boxes: Callable[[str], Box], kind: str) -> None:
    """Address and undefined behaviour; both end a program at the first fault."""
    box = boxes("address,undefined")
    box.fresh(part(0, GIB, 30))
    process = box.share(kind, 1000)
    time.sleep(SETTLE_S)
    got, alive = percent(box, 1.0), process.poll() is None
    box.close()
    assert alive and 5 < got <= 32


def test_a_hundred_percent_is_left_alone(plain_box: Box) -> None:
    plain_box.fresh(part(0, GIB, 100))
    plain_box.share("sync", 20000)
    assert percent(plain_box, 1.0) > 60
    gpu = plain_box.usage().gpus[0]
    assert (gpu.launches, gpu.throttled_ns, sum(gpu.waits)) == (0, 0, 0)


def test_a_new_share_is_in_force_at_once(plain_box: Box) -> None:
    plain_box.fresh(part(0, GIB, 20))
    plain_box.share("flood", 1000)
    time.sleep(SETTLE_S)
    plain_box.set_cores(70)
    time.sleep(0.1)
    holds(plain_box, 70)
    plain_box.set_cores(100)
    time.sleep(0.1)
    assert percent(plain_box, 0.5) > 80


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
def test_who_is_stopped_or_killed_takes_nothing_along(plain_box: Box, how: signal.Signals) -> None:
    plain_box.fresh(part(0, GIB, 50))
    plain_box.share("flood", 1000)
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        other = plain_box.share("flood", 3000)
        time.sleep(0.05)
        other.send_signal(how)
    time.sleep(SETTLE_S)
    holds(plain_box, 50)


def test_what_waited_is_told(plain_box: Box) -> None:
    """By the program's own clock: its launches take no time but what they wait."""
    plain_box.fresh(part(0, GIB, 40))
    process = plain_box.share("burst", 1000)
    assert process.stdout
    spent = sum(int(process.stdout.readline()) for _ in range(80))
    process.send_signal(signal.SIGSTOP)  # within the next burst, which is one in eighty
    gpu = plain_box.usage().gpus[0]
    assert gpu.throttled_ns == pytest.approx(spent, rel=0.05)
    middles = sum(count * 0.75 * 2**bucket * 1000 for bucket, count in enumerate(gpu.waits))
    assert middles == pytest.approx(spent, rel=0.35)  # the histogram says the same, as well as its buckets can
    assert gpu.launches > 1500
    assert gpu.busy_ns > 0


def test_waits_that_were_injected_are_what_is_told(plain_box: Box) -> None:
    """The bucket is put in debt, so that how long a launch will wait is known before."""
    plain_box.fresh(part(0, GIB, 50))
    process = plain_box.share("asked", 100)
    assert process.stdin and process.stdout

    def launch() -> None:
        print(file=process.stdin, flush=True)
        assert process.stdout and process.stdout.readline() == "done\n"

    launch()  # it learns what the kernel takes
    before = plain_box.usage().gpus[0]
    injected_ms = [180, 400] * 4
    for wait_ms in injected_ms:
        plain_box.set_debt(wait_ms * 1_000_000 * 50 // 100)
        launch()
    after = plain_box.usage().gpus[0]
    assert after.throttled_ns - before.throttled_ns == pytest.approx(sum(injected_ms) * 1_000_000, rel=0.05)
    counted = {bucket: new - old for bucket, (new, old) in enumerate(zip(after.waits, before.waits, strict=True))}
    assert {bucket: count for bucket, count in counted.items() if count} == {18: 4, 19: 4}  # from 131, 262 ms on


def test_the_wrappers_own_measure_is_the_gpus(plain_box: Box) -> None:
    plain_box.fresh(part(0, GIB, 50))
    plain_box.share("flood", 1000)
    time.sleep(1.5)
    measured, real = plain_box.usage().gpus[0].busy_ns, create.read_state(plain_box.folder / "sim").gpus[0].busy_ns
    assert measured == pytest.approx(real, rel=0.05)
    (process,) = plain_box.usage().processes
    assert process.busy_ns[0] == pytest.approx(measured, rel=0.05)
