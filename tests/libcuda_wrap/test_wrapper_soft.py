"""Idle time is borrowed, shared out by priority and share, and given back; by the simulated GPU's own count."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from libcuda_wrap.sim import create
from oci_hook import neighbours
from tests.libcuda_wrap.beside import close_to, had
from tests.libcuda_wrap.wrapped import GIB, Box, part

SETTLE_S = 0.4
MAX = (1 << 64) - 1


@pytest.mark.parametrize(("kind", "us"), [("flood", 1000), ("sync", 10000)])
def test_what_others_leave_idle_is_used_up(side_by_side: list[Box], kind: str, us: int) -> None:
    borrower, owner, _ = side_by_side
    borrower.slice(part(0, GIB, 30), burst="soft")
    owner.slice(part(0, GIB, 70))
    borrower.share(kind, us)
    time.sleep(SETTLE_S)
    close_to(side_by_side, [100], 8)


def test_hard_leaves_it(side_by_side: list[Box]) -> None:
    first, second, _ = side_by_side
    first.slice(part(0, GIB, 30))
    second.slice(part(0, GIB, 70))
    first.share("flood", 1000)
    time.sleep(SETTLE_S)
    close_to(side_by_side, [30], 2)
    first.set_field("flags", 1)  # vgpu set --burst soft
    first.tell_neighbours()
    time.sleep(0.1)
    close_to(side_by_side, [100], 8)
    first.set_field("flags", 0)
    first.tell_neighbours()
    time.sleep(0.1)
    close_to(side_by_side, [30], 2)


def test_an_owner_who_returns_has_its_share_within_100_ms(side_by_side: list[Box]) -> None:
    borrower, owner, _ = side_by_side
    borrower.slice(part(0, GIB, 30), burst="soft")
    owner.slice(part(0, GIB, 70))
    returning = owner.share("flood", 1000)
    time.sleep(SETTLE_S)  # it has learned what its kernels take
    borrower.share("flood", 1000)
    shares = []
    for _ in range(6):  # a busy machine may be slow to wake it up: the best counts
        returning.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        assert had(side_by_side, 0.2)[0] > 85  # what a stopped neighbour holds is borrowed as well
        returning.send_signal(signal.SIGCONT)
        time.sleep(0.1)
        shares.append(had(side_by_side, 0.2))
        if shares[-1][1] >= 65 and shares[-1][0] <= 35:
            return
    pytest.fail(f"{shares}")


def test_who_is_killed_leaves_all_it_had(side_by_side: list[Box]) -> None:
    borrower, owner, _ = side_by_side
    borrower.slice(part(0, GIB, 30), burst="soft")
    owner.slice(part(0, GIB, 70))
    borrower.share("flood", 1000)
    owner.share("flood", 1000).kill()
    time.sleep(SETTLE_S)
    close_to(side_by_side, [100], 8)


def test_borrowing_takes_nothing_from_a_neighbour_that_wants_its_share(side_by_side: list[Box]) -> None:
    """60 are kept for the neighbour, 10 for nobody."""
    borrower, owner, _ = side_by_side
    borrower.slice(part(0, GIB, 30), burst="soft", priority="high")
    owner.slice(part(0, GIB, 60))
    owner.share("flood", 1000)
    borrower.share("flood", 1000)
    time.sleep(SETTLE_S)
    close_to(side_by_side, [40, 60], 3)


@pytest.mark.parametrize(
    ("priorities", "wanted"),
    [(("normal", "normal"), [33.3, 66.7]), (("high", "normal"), [60, 40]), (("low", "normal"), [20, 80])],
)
def test_two_share_what_is_idle_by_priority_then_by_share(
    side_by_side: list[Box], priorities: tuple[str, str], wanted: list[float]
) -> None:
    first, second, idle = side_by_side
    first.slice(part(0, GIB, 20), burst="soft", priority=priorities[0])
    second.slice(part(0, GIB, 40), burst="soft", priority=priorities[1])
    idle.slice(part(0, GIB, 40))
    first.share("flood", 1000)
    second.share("flood", 1000)
    time.sleep(SETTLE_S)
    close_to(side_by_side, wanted, 5)


HOSTILE = {
    "idle, whatever it does": struct.pack("<q5Q16x", (1 << 63) - 1, 0, 0, 0, 0, 0),
    "in debt for ever": struct.pack("<q5Q16x", -(1 << 63), 1, 0, 0, 0, 0),
    "from the future": struct.pack("<q5Q16x", 0, MAX, MAX, MAX, MAX, MAX),
    "all ones": b"\xff" * 64,
    "borrows everything": struct.pack("<q5Q16x", 0, 1, 0, MAX, 1, 0),
    "cut to nothing": b"",
}


@pytest.mark.parametrize("record", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_record_costs_at_most_its_own_share(side_by_side: list[Box], record: bytes) -> None:
    """20 belong to the liar, who computes nothing; 30 and 50 to others: those have theirs, whatever it says."""
    borrower, owner, liar = side_by_side
    borrower.slice(part(0, GIB, 30), burst="soft")
    owner.slice(part(0, GIB, 50))
    liar.slice(part(0, GIB, 20), burst="soft", priority="high")
    os.truncate(liar.folder / "share", len(record))
    with (liar.folder / "share").open("r+b") as file:
        file.write(record)
    owner.share("flood", 1000)
    borrower.share("flood", 1000)
    time.sleep(SETTLE_S)
    got: list[list[float]] = []
    for _ in range(4):
        got.append(had(side_by_side))
        if 28 <= got[-1][0] <= 52 and 47 <= got[-1][1] <= 52:
            return
    pytest.fail(f"{got}")


def test_whatever_neighbours_write_is_read_within_bounds(boxes: Callable[[str], Box]) -> None:
    """Under the address and undefined-behaviour sanitizers, with all hostile records at once."""
    box = boxes("address,undefined")
    box.fresh(part(0, GIB, 30))
    box.slice(part(0, GIB, 30), burst="soft")
    folder = Path(neighbours.gpu_folder(str(box.folder), create.gpu_uuid(0)))
    names = [f"{cores}.{number}.0.{kind}.{cores}" for cores, number, kind in zip(
        (1, 99, 100, 50, 20, 0), (0, 15, 0, 0, 16, 0), (0, 3, 9, 1, 2, 3), strict=True)]  # fmt: skip
    for name, record in zip(names, HOSTILE.values(), strict=True):
        (folder / name).write_bytes(record * 16)
    for name in ("", "1.2.3", "999999.99999.99999.9.1", "-1.-1.-1.-1.-1", "x" * 200):
        (folder / f"_{name}" if not name else folder / name).write_bytes(b"")
    process = box.share("flood", 1000)
    time.sleep(1.5)
    gpu = box.usage().gpus[0]
    alive = process.poll() is None
    box.close()
    shutil.rmtree(folder)
    assert alive and gpu.launches > 100


def test_a_fifo_or_a_link_in_the_folder_holds_nobody_up(side_by_side: list[Box]) -> None:
    """The folder is the host's, so nobody can put one there: it is not trusted to be so."""
    borrower = side_by_side[0]
    borrower.slice(part(0, GIB, 30), burst="soft")
    folder = Path(neighbours.gpu_folder(str(borrower.folder), create.gpu_uuid(0)))
    os.mkfifo(folder / "70.0.0.0.1")
    (folder / "70.0.0.1.2").symlink_to("/etc/passwd")
    try:
        borrower.share("flood", 1000)
        time.sleep(SETTLE_S)
        assert had(side_by_side)[0] > 28
    finally:
        for name in ("70.0.0.0.1", "70.0.0.1.2"):
            (folder / name).unlink()
