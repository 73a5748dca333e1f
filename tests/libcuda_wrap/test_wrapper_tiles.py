"""Memory bound to sparse and deferred arrays: charged for as long as it is bound, exactly. Witness: the simulation."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from libcuda_wrap.sim import create
from tests.libcuda_wrap.wrapped import GIB, INVALID_VALUE, MIB, OUT_OF_MEMORY, Box, Client, part

POOL = 2 * MIB  # 32 tiles
SPARSE, DEFERRED = 0x40, 0x80
Check = Callable[[int], None]


@pytest.fixture
def check(box: Box) -> Check:
    """Holds that wrapper and driver agree on what is in use, once all streams have got to their end."""

    def agreed(used: int) -> None:
        witness = _taken(box)
        until = time.monotonic() + 5
        while witness != used and time.monotonic() < until:  # the simulation lets go on a thread of its own
            time.sleep(0.005)
            witness = _taken(box)
        box.clients[-1].ok("sync")
        assert (box.used(), witness) == (used, used)

    return agreed


def _taken(box: Box) -> int:
    return create.read_state(box.folder / "sim").gpus[0].used_bytes


@pytest.fixture
def client(box: Box) -> Client:
    box.fresh(part(0, GIB))
    made = box.client("kernels").ready()
    made.ok("stream 9", f"tile_array 1 1024 1024 {SPARSE} 0")  # 8 by 8 tiles
    return made


def test_bound_memory_stays_charged_until_it_is_unbound_and_released(client: Client, check: Check) -> None:
    client.ok(f"tile_pool 2 {POOL} 0", "tile_bind 1 2 9 0 0 0 4 2")
    check(POOL)
    client.ok("tile_release 2", "stream_wait 9")
    check(POOL)
    client.ok("tile_unbind 1 9 0 0 0 4 1", "stream_wait 9")
    check(POOL)  # the second row
    client.ok("tile_unbind 1 9 0 0 1 4 1", "stream_wait 9")
    check(0)


def test_unbound_memory_stays_charged_until_it_is_released(client: Client, check: Check) -> None:
    client.ok(f"tile_pool 2 {POOL} 0", "tile_bind 1 2 9 0 0 0 1 1", "tile_unbind 1 9 0 0 0 1 1", "stream_wait 9")
    check(POOL)
    client.ok("tile_release 2")
    check(0)


def test_binding_other_memory_lets_the_first_go(client: Client, check: Check) -> None:
    client.ok(f"tile_pool 2 {POOL} 0", f"tile_pool 3 {2 * POOL} 0", "tile_bind 1 2 9 0 0 0 2 2", "tile_release 2")
    client.ok("tile_bind 1 3 9 0 0 0 2 1", "stream_wait 9")
    check(3 * POOL)
    client.ok("tile_bind 1 3 9 0 0 1 2 1", "stream_wait 9")
    check(2 * POOL)
    client.ok("tile_release 3", "tile_array_end 1")
    check(0)


def test_it_is_charged_until_the_stream_gets_there(box: Box, client: Client, check: Check) -> None:
    client.ok(f"tile_pool 2 {POOL} 0", "tile_bind 1 2 9 0 0 0 2 2", "tile_release 2", "stream_wait 9")
    client.ok("module 4 0 0", "function 5 4 sleep_us_600000", "launch 5 9", "tile_unbind 1 9 0 0 0 2 2")
    assert (box.used(), _taken(box)) == (POOL, POOL)
    client.ok(f"tile_pool 3 {POOL} 0", "tile_release 3")
    assert (box.used(), _taken(box)) == (POOL, POOL)
    client.ok("stream_wait 9")
    check(0)


def test_room_is_made_before_an_allocation_is_refused(box: Box, client: Client) -> None:
    box.resize(0, POOL)
    client.ok(f"tile_pool 2 {POOL} 0", "tile_bind 1 2 9 0 0 0 2 2", "tile_release 2", "stream_wait 9")
    assert client.ask("alloc 8 1")[0] == OUT_OF_MEMORY
    client.ok("tile_unbind 1 9 0 0 0 2 2")
    until = time.monotonic() + 5
    while _taken(box) != 0 and time.monotonic() < until:
        time.sleep(0.005)
    client.ok(f"alloc 8 {POOL}")
    assert box.used() == POOL == _taken(box)


@pytest.mark.parametrize("levels", [0, 3])
def test_a_deferred_array_is_bound_as_a_whole(client: Client, check: Check, levels: int) -> None:
    kind, suffix = ("tile_mipmap", "_mipmap") if levels else ("tile_array", "")
    client.ok(f"{kind} 6 256 256 {DEFERRED} {levels}", f"tile_pool 2 {POOL} 0", f"tile_bind{suffix} 6 2 9 7 7 7 7 7")
    client.ok("tile_release 2", "stream_wait 9")
    check(POOL)
    client.ok(f"tile_unbind{suffix} 6 9 0 0 0 1 1", "stream_wait 9")
    check(0)
    client.ok(f"tile_pool 2 {POOL} 0", f"tile_bind{suffix} 6 2 9 0 0 0 0 0", "tile_release 2")
    check(POOL)
    client.ok(f"{kind}_end 6")
    check(0)


def test_levels_and_tail_of_a_mipmap_are_parts_of_their_own(client: Client, check: Check) -> None:
    client.ok(f"tile_mipmap 6 512 512 {SPARSE} 10")
    for memory, where in ((2, "0 0 0 4 4"), (3, "1 0 0 2 2"), (4, "2 0 0 1 1"), (5, "99 0 0 1 0")):
        client.ok(f"tile_pool {memory} {POOL} 0", f"tile_bind_mipmap 6 {memory} 9 {where}", f"tile_release {memory}")
    check(4 * POOL)
    client.ok("tile_unbind_mipmap 6 9 1 0 0 2 2", "tile_unbind_mipmap 6 9 99 0 0 1 0", "stream_wait 9")
    check(2 * POOL)
    client.ok("tile_mipmap_end 6")
    check(0)


def test_the_end_of_a_context_lets_its_arrays_memory_go(client: Client, check: Check) -> None:
    client.ok("newctx 10 0", f"tile_array 6 256 256 {SPARSE} 0", f"tile_pool 2 {POOL} 0", f"tile_pool 3 {POOL} 0")
    client.ok("tile_bind 6 2 0 0 0 0 2 1", "tile_bind 6 3 0 0 0 1 2 1", "tile_release 2", "tile_release 3")
    client.ok("tile_unbind 6 0 0 0 0 2 1", "destroyctx 10", "primary 0")
    check(0)


def test_what_the_driver_refuses_changes_nothing(client: Client, check: Check) -> None:
    client.ok(f"tile_pool 2 {POOL} 0")
    assert client.ask("tile_bind 1 2 9 0 0 0 9 9")[0] == INVALID_VALUE  # beyond the array
    assert client.ask("tile_bind 1 2 9 0 0 0 8 8")[0] == INVALID_VALUE  # more than the memory has
    assert client.ask("tile_bind 1 9 9 0 0 0 1 1")[0] == INVALID_VALUE  # no memory, but a stream
    assert client.ask("tile_bind 9 2 9 0 0 0 1 1")[0] == INVALID_VALUE  # no array
    check(POOL)
    client.ok("tile_release 2")
    check(0)


def test_a_killed_process_leaves_nothing(box: Box, client: Client) -> None:
    client.ok(f"tile_pool 2 {POOL} 0", "tile_bind 1 2 9 0 0 0 2 2", "tile_release 2")
    client.kill()
    other = box.client("kernels").ready()
    other.ok("alloc 8 1")
    assert box.used() == 1 == _taken(box)


def test_any_order_of_binding_and_unbinding_ends_with_what_the_driver_has(client: Client, check: Check) -> None:
    """At random, each memory as large as its number; the witness keeps its tiles one by one, the wrapper boxes."""
    chance = random.Random(20261124)
    tiles: dict[tuple[int, int], int] = {}
    live: dict[int, int] = {}
    for step in range(300):
        x, y = chance.randrange(8), chance.randrange(8)
        width, height = 1 + chance.randrange(min(8 - x, 5)), 1 + chance.randrange(min(8 - y, 5))
        where = f"0 {x} {y} {width} {height}"
        covered = [(column, row) for column in range(x, x + width) for row in range(y, y + height)]
        if chance.random() < 0.6:
            number = step + 1
            live[number] = (1 + number % 4) * POOL
            client.ok(f"tile_pool 2 {live[number]} 0", f"tile_bind 1 2 9 {where}", "tile_release 2")
            tiles.update(dict.fromkeys(covered, number))
        else:
            client.ok(f"tile_unbind 1 9 {where}")
            for tile in covered:
                tiles.pop(tile, None)
        if step % 20 == 0:
            client.ok("stream_wait 9")
            check(sum(live[number] for number in set(tiles.values())))
    client.ok("tile_array_end 1")
    check(0)
