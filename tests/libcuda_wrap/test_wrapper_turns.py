"""Who launches long kernels beside neighbours pays for its own time and not for theirs; what a liar can do.

By the simulated GPU's own count. Without a monitor.
"""

from __future__ import annotations

import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from libcuda_wrap import bindings
from libcuda_wrap.toolchain import PACKAGE
from oci_hook import neighbours
from tests.libcuda_wrap.beside import close_to, had
from tests.libcuda_wrap.wrapped import C_TESTS, GIB, Box, part

SETTLE_S = 1.0
CELL_SHIFT, CELLS = 18, 16384


@pytest.mark.parametrize(
    ("kinds", "shares", "window_s"),
    [
        ((("sync", 20_000), ("sync", 20_000)), (45, 25), 2.0),
        ((("sync", 20_000), ("flood", 1000)), (45, 40), 2.0),
        ((("flood", 200_000), ("flood", 200_000)), (20, 30), 4.0),
        ((("graph", 1000), ("mixed", 2000)), (30, 50), 1.0),
    ],
    ids=["two that wait", "one beside a busy one", "a fifth of a second", "kernels of two lengths"],
)
def test_neighbours_slices_are_not_charged(
    side_by_side: list[Box], kinds: tuple[tuple[str, int], ...], shares: tuple[int, ...], window_s: float
) -> None:
    for box, share in zip(side_by_side, shares, strict=False):
        box.slice(part(0, GIB, share))
    for box, kind in zip(side_by_side, kinds, strict=False):
        box.share(*kind)
    time.sleep(SETTLE_S)
    close_to(side_by_side, list(shares), 4, window_s)


def test_eight_processes_have_their_share_beside_a_neighbour(side_by_side: list[Box]) -> None:
    few, many, _ = side_by_side
    few.slice(part(0, GIB, 50))
    many.slice(part(0, GIB, 20))
    few.share("flood", 1000)
    for _ in range(8):
        many.share("flood", 1000)
    time.sleep(SETTLE_S)
    close_to(side_by_side, [50, 20], 3)


def test_a_neighbour_without_a_limit_tells_nothing_and_frees_nobody(side_by_side: list[Box]) -> None:
    held, free, _ = side_by_side
    held.slice(part(0, GIB, 30))
    free.slice(part(0, GIB, 100))
    held.share("flood", 5000)
    free.share("flood", 1000)
    time.sleep(SETTLE_S)
    assert had(side_by_side, 2.0)[0] <= 32


@contextmanager
def always_at_work(box: Box) -> Iterator[None]:
    """Its share file says so, of more processes than there can be, whatever it does."""
    done = threading.Event()

    def lie() -> None:
        while not done.is_set():
            first = (time.monotonic_ns() >> CELL_SHIFT) - CELLS // 2
            words = {number % CELLS: (number & 0xFFFFFFFF) << 32 | 0xFFFFFFFF for number in range(first, first + CELLS)}
            with (box.folder / "share").open("r+b") as file:
                file.seek(bindings.ffi().offsetof("struct vgw_share", "past"))
                file.write(struct.pack(f"<{CELLS}Q", *(words[at] for at in range(CELLS))))
            done.wait(1.0)

    thread = threading.Thread(target=lie)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_liar_gives_away_no_more_than_its_own_share(side_by_side: list[Box]) -> None:
    """20 belong to the liar; 30 to who launches long kernels, and 50 to nobody who is there."""
    believer, liar, _ = side_by_side
    believer.slice(part(0, GIB, 30))
    liar.slice(part(0, GIB, 20))
    with always_at_work(liar):
        believer.share("flood", 5000)
        time.sleep(3.0)  # what it may have saved up is gone
        got: list[float] = []
        for _ in range(4):  # on a busy machine it takes longer to use that up
            got.append(had(side_by_side, 2.0)[0])
            if 28 <= got[-1] <= 30 + 20 + 3:
                return
        pytest.fail(f"{got}")


@pytest.mark.parametrize("sanitize", ["address,undefined", "thread"])
def test_what_is_whose_by_the_cells(tmp_path: Path, sanitize: str) -> None:
    """tests/libcuda_wrap/c/turns.c: what neighbours tell -> what is ours, exactly; and batches of four threads."""
    box = Box(tmp_path, sanitize)
    box.slice(part(0, GIB, 30))
    neighbour = tmp_path / "neighbour"
    neighbour.write_bytes(bytes(neighbours.SHARE_BYTES))
    (tmp_path / "gpu0/40.0.1.0.77").hardlink_to(neighbour)
    names = ("ledger", "slot", "region", "bucket", "neighbours", "past", "cost", "measure")
    command = ["gcc", "-g", "-O1", "-std=gnu11", "-D_GNU_SOURCE", f"-fsanitize={sanitize}", "-pthread"]
    command += [str(PACKAGE / f"src/{name}.c") for name in names]
    command += [str(C_TESTS / "turns.c"), *(f"-I{PACKAGE / name}" for name in ("src", "include", "generated"))]
    subprocess.run([*command, f'-DVGW_BOX="{tmp_path}"', "-o", tmp_path / "turns"], check=True, timeout=100)
    # setarch: the sanitizer of gcc 12 does not know where newer kernels put libraries
    done = subprocess.run(
        ["setarch", "-R", tmp_path / "turns", neighbour], env={"TSAN_OPTIONS": "exitcode=66"},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", ""), done
