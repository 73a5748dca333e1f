"""A wait that ends in time, one that does not, and the alarm that somebody else had set."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from oci_hook import deadline


def test_a_wait_that_ends_is_true_and_one_that_does_not_is_false() -> None:
    assert deadline.within(5, lambda: None)
    began = time.monotonic()
    assert not deadline.within(0.1, lambda: time.sleep(30))
    assert time.monotonic() - began < 10


def test_what_the_wait_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        deadline.within(5, lambda: 1 // 0 and None)


def test_the_callers_own_alarm_still_comes() -> None:
    rung = threading.Event()
    handler = signal.signal(signal.SIGALRM, lambda *_: rung.set())
    before = signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        assert not deadline.within(0.1, lambda: time.sleep(30))
        assert not rung.is_set()
        time.sleep(2)  # ends with the signal's handler, not with the signal
        assert rung.is_set()
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_a_thread_waits_as_long_as_it_takes() -> None:
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(deadline.within(0.01, lambda: time.sleep(0.1))))
    thread.start()
    thread.join(10)
    assert answers == [True]


def test_who_waits_longest_has_the_lock_first(tmp_path: Path) -> None:
    """As polling did not: one that came late could be first again and again."""
    lock, order = tmp_path / "lock", tmp_path / "order"
    lock.touch()
    order.touch()
    program = (
        "import fcntl, os, sys; from oci_hook import deadline; file = open(sys.argv[1]); print('asks', flush=True); "
        "assert deadline.within(60, lambda: fcntl.flock(file, fcntl.LOCK_EX)); "
        "out = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND); os.write(out, sys.argv[3].encode())"
    )
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = []
        for name in "abcdefgh":
            command = ["/usr/bin/python3", "-c", program, str(lock), str(order), name]
            started = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
            waiting.append(started)
            assert started.stdout is not None
            assert started.stdout.readline() == b"asks\n"
            while not _waits(started.pid):
                time.sleep(0.005)
    assert [process.wait(30) for process in waiting] == [0] * 8
    for process in waiting:
        assert process.stdout is not None
        process.stdout.close()
    # all are woken in turn, but on two cores one may run before its neighbour
    places = {name: place for place, name in enumerate(order.read_text())}
    assert len(places) == 8
    assert all(abs(places[name] - place) <= 3 for place, name in enumerate("abcdefgh")), order.read_text()


def _waits(pid: int) -> bool:
    return any(
        line.split()[1] == "->" and str(pid) in line.split() for line in Path("/proc/locks").read_text().splitlines()
    )
