"""cuMemUnmap: several mappings side by side end in one call, a part of one never does, and the ledger follows."""

from __future__ import annotations

import pytest

from libcuda_wrap.sim import create
from tests.libcuda_wrap.wrapped import GIB, INVALID_VALUE, MIB, OK, Box, Client, Start, ok, part, taken

A, B = 2 * MIB, 4 * MIB  # sizes of two mappings, side by side
RANGE, HANDLE, OTHER, FD = range(4)  # registers


@pytest.fixture
def mapped(box: Box, start: Start) -> Client:
    """A and B side by side, which nothing but the mappings keeps."""
    box.fresh(part(0, GIB))
    client = start()
    ok(client, f"reserve {RANGE} {8 * MIB}")
    for size, at in ((A, 0), (B, A)):
        ok(client, f"create {HANDLE} {size}", f"map_at {RANGE} {size} {HANDLE} {at}", f"release {HANDLE}")
    assert box.used() == taken(box) == A + B
    return client


def test_one_call_ends_all_mappings_of_the_range(box: Box, mapped: Client) -> None:
    ok(mapped, f"unmap {RANGE} {A + B}")
    assert box.used() == taken(box) == 0


@pytest.mark.parametrize(("first", "left"), [((A, 0), B), ((B, A), A)])
def test_each_can_be_ended_by_itself(box: Box, mapped: Client, first: tuple[int, int], left: int) -> None:
    size, at = first
    ok(mapped, f"unmap {RANGE} {size} {at}")
    assert box.used() == taken(box) == left


@pytest.mark.parametrize(
    ("size", "at"),
    [(A + MIB * 2, 0), (2 * MIB, A), (2 * MIB, A + 2 * MIB), (4 * MIB, 4 * MIB), (A + B + 2 * MIB, 0), (0, 0), (1, 0)],
    ids=["ends within B", "first of B", "last of B", "beyond B", "more than both", "nothing", "a byte"],
)
def test_a_part_of_a_mapping_cannot_be_ended(box: Box, mapped: Client, size: int, at: int) -> None:
    assert mapped.ask(f"unmap {RANGE} {size} {at}")[0] == INVALID_VALUE
    assert box.used() == taken(box) == A + B
    ok(mapped, f"unmap {RANGE} {A + B}")
    assert box.used() == taken(box) == 0


def test_what_the_driver_does_not_unmap_stays_charged(box: Box, mapped: Client) -> None:
    create.set_fault(box.folder / "sim", "cuMemUnmap=1")
    assert mapped.ask(f"unmap {RANGE} {A + B}")[0] == INVALID_VALUE
    create.set_fault(box.folder / "sim", "")
    assert box.used() == taken(box) == A + B
    ok(mapped, f"unmap {RANGE} {B} {A}", f"unmap {RANGE} {A}")
    assert box.used() == taken(box) == 0


def test_one_memory_mapped_twice_is_charged_until_both_end(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB))
    client = start()
    ok(client, f"reserve {RANGE} {8 * MIB}", f"create {HANDLE} {A}")
    ok(client, f"map_at {RANGE} {A} {HANDLE} 0", f"map_at {RANGE} {A} {HANDLE} {A}", f"release {HANDLE}")
    ok(client, f"unmap {RANGE} {A} {A}")
    assert box.used() == taken(box) == A
    ok(client, f"unmap {RANGE} {A}")
    assert box.used() == taken(box) == 0


def test_ours_and_anothers_side_by_side_end_in_one_call(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB))
    maker, user = start(), start()
    ok(maker, f"create {HANDLE} {B}", f"export {HANDLE} {FD}")
    ok(user, f"reserve {RANGE} {8 * MIB}", f"create {HANDLE} {A}")
    ok(user, f"import {OTHER} {maker.process.pid} {maker.ask(f'value {FD}')[1]}")
    ok(user, f"map_at {RANGE} {A} {HANDLE} 0", f"map_at {RANGE} {B} {OTHER} {A}")
    ok(user, f"release {HANDLE}", f"release {OTHER}")
    assert box.used() == A + 2 * B
    assert user.ask(f"unmap {RANGE} {A + B}")[0] == OK
    assert (box.used(), taken(box)) == (B, B)


def test_a_handle_is_retained_from_any_address_of_its_mapping(box: Box, mapped: Client) -> None:
    ok(mapped, f"retain {HANDLE} {RANGE} {A + 2 * MIB}", f"unmap {RANGE} {A + B}")
    assert box.used() == taken(box) == B
    ok(mapped, f"release {HANDLE}")
    assert box.used() == taken(box) == 0
