"""A program that runs while the host changes its quota, as `vgpu set` does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from oci_hook import ledger, quota_file, resize
from oci_hook.errors import RequestError
from oci_hook.records import Allocation, Ask, Placement, Plan, Request
from tests.libcuda_wrap.wrapped import GIB, OK, OUT_OF_MEMORY, Box, part


@pytest.fixture
def slice_of_8(plain_box: Box, tmp_path: Path) -> tuple[Box, Path, Allocation]:
    """A box that is a container's, in a ledger of its own."""
    plain_box.fresh(part(0, 8 * GIB))
    me = ledger.process(os.getpid())
    assert me is not None
    placed = Placement("binpack", (part(0, 8 * GIB),), ())
    entry = Allocation("c0ffee", "", "", "creating", 0, me, None, Request((Ask(8 * GIB),)), placed, (), True, "")
    with ledger.Ledger(str(tmp_path)) as book:
        book.add(entry, Plan((), ()), b"", quota_file.usage_header(), quota_file.USAGE_BYTES)
    shutil.rmtree(tmp_path / "containers/c0ffee/box")
    (tmp_path / "containers/c0ffee/box").symlink_to(plain_box.folder)
    return plain_box, tmp_path, entry


def give(box: Box, state: Path, entry: Allocation, memory_bytes: int, *, force: bool = False) -> Allocation:
    after = resize.changed(entry, resize.Change(memory_bytes))
    with ledger.Ledger(str(state)) as book:
        resize.apply(book, entry, after, None if force else lambda: [box.used()])
    return after


def test_more_is_there_at_the_next_call(slice_of_8: tuple[Box, Path, Allocation]) -> None:
    box, state, entry = slice_of_8
    client = box.client().ready()
    assert client.ask(f"alloc linear 0 {8 * GIB}")[0] == OK
    assert client.ask(f"alloc linear 1 {4 * GIB}")[0] == OUT_OF_MEMORY
    give(box, state, entry, 12 * GIB)
    assert client.ask("info") == (OK, 4 * GIB, 12 * GIB)
    assert client.ask("total 0") == (OK, 12 * GIB, 0)
    assert client.ask(f"alloc linear 1 {4 * GIB}")[0] == OK
    assert client.ask("alloc linear 2 1")[0] == OUT_OF_MEMORY


def test_less_than_is_in_use_needs_force_and_then_lets_nothing_in(slice_of_8: tuple[Box, Path, Allocation]) -> None:
    box, state, entry = slice_of_8
    client = box.client().ready()
    assert client.ask(f"alloc linear 0 {3 * GIB}")[0] == OK
    assert client.ask(f"alloc linear 1 {3 * GIB}")[0] == OK
    with pytest.raises(RequestError, match="6 GiB of GPU 0 are in use"):
        give(box, state, entry, 4 * GIB)
    assert client.ask("info") == (OK, 2 * GIB, 8 * GIB)
    smaller = give(box, state, entry, 4 * GIB, force=True)
    assert client.ask("info") == (OK, 0, 4 * GIB)
    assert client.ask("alloc linear 2 1")[0] == OUT_OF_MEMORY
    assert box.used() == 6 * GIB  # what is there stays
    assert client.ask("free linear 0")[0] == OK
    assert client.ask(f"alloc linear 0 {GIB}")[0] == OK
    assert client.ask("alloc linear 2 1")[0] == OUT_OF_MEMORY
    assert give(box, state, smaller, 5 * GIB) != smaller
    assert client.ask(f"alloc linear 2 {GIB}")[0] == OK


def test_a_storm_never_has_more_than_the_smallest_quota_in_force(slice_of_8: tuple[Box, Path, Allocation]) -> None:
    box, state, entry = slice_of_8
    clients = [box.client().ready() for _ in range(3)]
    for number, client in enumerate(clients):
        client.tell(f"storm {number + 1} {64 << 20}")
    for size in (GIB, 2 * GIB, 512 << 20) * 5:
        entry = give(box, state, entry, size, force=True)
        for client in clients:  # what the larger quota let in is freed with its process
            client.kill()
        clients = [box.client().ready() for _ in range(3)]
        for number, client in enumerate(clients):
            client.tell(f"storm {number + 7} {64 << 20}")
        usage = box.usage().gpus[0]
        assert usage.used_bytes - usage.ended_bytes <= size
