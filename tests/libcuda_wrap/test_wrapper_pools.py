"""Memory pools: what a pool keeps counts, whoever needs room gets it back, and the driver's own figure agrees."""

from __future__ import annotations

import pytest

from libcuda_wrap.sim import create
from tests.libcuda_wrap.wrapped import GIB, MIB, OK, OUT_OF_MEMORY, Box, part

PIECE = 2 * MIB
FAMILIES = ["async", "async_ptsz", "pool"]
every_family = pytest.mark.parametrize("family", FAMILIES)


def truth(box: Box) -> int:
    """What the simulated driver says is in use on GPU 0: the witness, which counts by itself."""
    return create.read_state(box.folder / "sim").gpus[0].used_bytes


@every_family
def test_what_a_pool_keeps_is_charged_until_it_gives_it_back(box: Box, family: str) -> None:
    box.fresh(part(0, 64 * MIB))
    client = box.client().ready()
    assert client.ask(f"alloc {family} 0 {10 * MIB}")[0] == OK
    assert client.ask(f"pool_keep {GIB}")[0] == OK
    assert client.ask(f"free {family} 0")[0] == client.ask("sync")[0] == OK
    assert box.used() == truth(box) == 10 * MIB
    assert client.ask(f"pool_trim {4 * MIB}")[0] == OK
    assert box.used() == truth(box) == 4 * MIB
    assert client.ask("pool_keep 0")[0] == client.ask("sync")[0] == OK
    assert client.ask(f"pool_trim {0}")[0] == OK
    assert box.used() == truth(box) == 0


@every_family
def test_a_byte_takes_a_piece_and_the_next_takes_none(box: Box, family: str) -> None:
    box.fresh(part(0, PIECE))
    client = box.client().ready()
    assert client.ask(f"alloc {family} 0 1")[0] == OK
    assert box.used() == truth(box) == PIECE
    assert client.ask(f"alloc {family} 1 {PIECE - 1}")[0] == OK
    assert client.ask(f"alloc {family} 2 1")[0] == OUT_OF_MEMORY
    assert box.used() == truth(box) == PIECE


@every_family
def test_a_pool_cannot_be_filled_beyond_the_quota_by_allocating_and_freeing(box: Box, family: str) -> None:
    """The peers' hole: the allocation is counted and uncounted, what the pool has reserved is not."""
    quota = 16 * MIB
    box.fresh(part(0, quota))
    client = box.client().ready()
    assert client.ask(f"alloc {family} 0 1")[0] == client.ask(f"pool_keep {GIB}")[0] == OK
    for size in (3, 5, 9, 13):
        assert client.ask(f"alloc {family} 1 {size * MIB}")[0] == OK
        assert client.ask("alloc linear 2 1024")[0] == OK
        assert truth(box) <= quota
        assert client.ask(f"free {family} 1")[0] == client.ask("free linear 2")[0] == OK
        assert box.used() == truth(box) <= quota
    assert client.ask(f"alloc {family} 1 {quota}")[0] == OUT_OF_MEMORY


@every_family
def test_what_a_pool_keeps_makes_room_before_memory_is_refused(box: Box, family: str) -> None:
    box.fresh(part(0, 64 * MIB))
    client = box.client().ready()
    assert client.ask(f"alloc {family} 0 {60 * MIB}")[0] == client.ask(f"pool_keep {GIB}")[0] == OK
    assert client.ask(f"free {family} 0")[0] == OK
    assert box.used() == 60 * MIB
    assert client.ask(f"alloc linear 1 {64 * MIB}")[0] == OK
    assert box.used() == truth(box) == 64 * MIB
    assert box.usage().gpus[0].denied_count == 0


def test_one_pool_makes_room_for_another(box: Box) -> None:
    box.fresh(part(0, 64 * MIB))
    client = box.client().ready()
    assert client.ask(f"pool_keep {GIB}")[0] == OK  # the device's own
    assert client.ask(f"alloc async 0 {60 * MIB}")[0] == client.ask("free async 0")[0] == OK
    assert client.ask(f"alloc pool 1 {60 * MIB}")[0] == OK
    assert box.used() == truth(box) == 60 * MIB


def test_memory_that_outlives_its_pool_is_charged_until_it_is_freed(box: Box) -> None:
    box.fresh(part(0, 64 * MIB))
    client = box.client().ready()
    assert client.ask(f"alloc pool 0 {4 * MIB}")[0] == client.ask(f"alloc pool 1 {6 * MIB}")[0] == OK
    assert client.ask("pool_destroy")[0] == client.ask("free pool 0")[0] == OK
    assert box.used() >= truth(box) == 6 * MIB
    assert client.ask("free pool 1")[0] == OK
    assert box.used() == truth(box) == 0


def test_an_empty_pool_gives_all_back_when_it_is_destroyed(box: Box) -> None:
    box.fresh(part(0, 64 * MIB))
    client = box.client().ready()
    assert client.ask(f"alloc pool 0 {4 * MIB}")[0] == client.ask(f"pool_keep {GIB}")[0] == OK
    assert client.ask("free pool 0")[0] == OK
    assert client.ask("pool_destroy")[0] == OK
    assert box.used() == truth(box) == 0


@every_family
def test_an_ordinary_free_of_a_pools_memory_counts_too(box: Box, family: str) -> None:
    box.fresh(part(0, 64 * MIB))
    client = box.client().ready()
    assert client.ask(f"alloc {family} 0 {4 * MIB}")[0] == OK
    assert client.ask("free linear 0")[0] == client.ask("sync")[0] == OK
    assert box.used() == truth(box) == 0


@every_family
def test_a_killed_program_leaves_no_pool(plain_box: Box, family: str) -> None:
    plain_box.fresh(part(0, 64 * MIB))
    client = plain_box.client().ready()
    assert client.ask(f"alloc {family} 0 {60 * MIB}")[0] == OK
    client.kill()
    assert plain_box.client().ready().ask(f"alloc linear 0 {64 * MIB}")[0] == OK
    assert truth(plain_box) == 64 * MIB


@every_family
def test_what_the_driver_has_no_room_for_is_told_apart(box: Box, family: str) -> None:
    box.fresh(part(0, GIB), memory_bytes=64 * MIB)
    client = box.client().ready()
    assert client.ask(f"alloc {family} 0 {80 * MIB}")[0] == OUT_OF_MEMORY
    denied = box.usage().gpus[0].denied
    assert (denied["driver"], denied["quota"]) == (1, 0)
    assert box.used() == truth(box) == 0
