"""Memory of graphs, and memory that several processes use: what is charged, to whom, and for how long.

The simulated driver's own count is the independent witness.
"""

from __future__ import annotations

import pytest

from tests.libcuda_wrap.wrapped import (
    GIB,
    INVALID_VALUE,
    MIB,
    NOT_SUPPORTED,
    OK,
    OUT_OF_MEMORY,
    Box,
    Client,
    Start,
    ok,
    part,
    taken,
)

INVALID_CONTEXT, INVALID_HANDLE = 201, 400


def test_a_graphs_memory_is_charged_while_it_is_executable(box: Box, start: Start) -> None:
    box.fresh(part(0, 64 * MIB))
    client = start()
    ok(client, "g_new 0", f"g_alloc 0 {60 * MIB} 0", f"g_alloc 0 {4 * MIB} 1", "g_free 0 0", "g_free 0 1")
    assert (box.used(), taken(box)) == (0, 0)
    ok(client, "g_make 0")
    assert (box.used(), taken(box)) == (64 * MIB, 0)
    ok(client, "g_launch 0", "g_launch 0")
    assert (box.used(), taken(box)) == (64 * MIB, 64 * MIB)
    assert client.ask("alloc 2 1")[0] == OUT_OF_MEMORY
    ok(client, "g_end 0")
    assert (box.used(), taken(box)) == (0, 0)


def test_a_graph_that_needs_a_byte_too_many_cannot_be_made(box: Box, start: Start) -> None:
    box.fresh(part(0, 64 * MIB))
    client = start()
    ok(client, "g_new 0", f"g_alloc 0 {64 * MIB} 0", "g_alloc 0 1 1")
    assert client.ask("g_make 0")[0] == OUT_OF_MEMORY
    assert (box.used(), taken(box)) == (0, 0)
    assert box.usage().gpus[0].denied_count > 0


def test_memory_nodes_of_a_graph_within_a_graph_count(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB))
    client = start()
    ok(client, "g_new 0", "g_alloc 0 1000 0", "g_free 0 0", "g_new 1", "g_alloc 1 24 1", "g_child 1 0", "g_make 1")
    assert box.used() == 1024
    ok(client, "g_end 1")
    assert box.used() == 0


def test_an_allocation_in_a_capture_is_the_graphs(box: Box, start: Start) -> None:
    box.fresh(part(0, 4096))
    client = start()
    ok(client, "g_capture 0 4096", "g_make 0", "g_launch 0")
    assert (box.used(), taken(box)) == (4096, 4096)
    ok(client, "g_end 0", "g_capture 1 4097")
    assert client.ask("g_make 1")[0] == OUT_OF_MEMORY
    assert box.used() == 0


def test_what_an_ended_graph_left_allocated_stays_charged(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB))
    client = start()
    ok(client, "g_new 0", "g_alloc 0 1000 0", "g_alloc 0 500 1", "g_free 0 1", "g_make 0", "g_launch 0")
    assert client.ask("g_launch 0")[0] == INVALID_VALUE  # not before it is freed
    ok(client, "g_end 0")
    assert (box.used(), taken(box)) == (1000, 1000)
    ok(client, "free 0", "g_trim 0")
    assert (box.used(), taken(box)) == (0, 0)


def test_room_is_made_before_a_graph_or_an_allocation_is_refused(box: Box, start: Start) -> None:
    box.fresh(part(0, 1000))
    client = start()
    ok(client, "g_new 0", "g_alloc 0 1000 0", "g_make 0", "g_launch 0", "g_end 0", "free 0")
    ok(client, "g_new 1", "g_alloc 1 1000 1", "g_make 1", "g_launch 1")
    assert box.used() == 1000 == taken(box)
    ok(client, "g_end 1", "free 1", "alloc 2 1000")
    assert box.used() == 1000 == taken(box)
    assert box.usage().gpus[0].denied_count == 0


def exported(client: Client, size: int) -> int:
    """Makes physical memory in register 0 and exports it; its descriptor."""
    ok(client, f"create 0 {size}", "export 0 1")
    return client.ask("value 1")[1]


def test_a_mapped_import_is_charged_and_shows_the_same_bytes(box: Box, start: Start) -> None:
    box.fresh(part(0, 8 * MIB))
    maker, user, size = start(), start(), 2 * MIB
    fd = exported(maker, size)
    ok(maker, f"map 2 {size} 0", "write 2 77")
    ok(user, f"import 0 {maker.process.pid} {fd}")
    assert (box.used(), taken(box)) == (size, size)
    ok(user, f"map 1 {size} 0")
    assert user.ask("read 1") == (OK, 77)
    assert box.used() == 2 * size  # charged to both: neither knows when the other ends
    ok(user, "release 0")
    assert box.used() == 2 * size
    ok(user, f"unmap 1 {size}")
    assert box.used() == size


def test_an_import_that_does_not_fit_cannot_be_mapped(box: Box, start: Start) -> None:
    box.fresh(part(0, 3 * MIB))
    maker, user, size = start(), start(), 2 * MIB
    fd = exported(maker, size)
    ok(user, f"import 0 {maker.process.pid} {fd}")
    assert user.ask(f"map 1 {size} 0")[0] == OUT_OF_MEMORY
    ok(user, "release 0")
    assert user.ask("release 0")[0] == INVALID_VALUE
    assert box.used() == size


@pytest.mark.parametrize("dies", ["maker", "user"])
def test_who_is_killed_is_charged_no_more_and_the_other_still_is(box: Box, start: Start, dies: str) -> None:
    box.fresh(part(0, 8 * MIB))
    maker, user, size = start(), start(), 2 * MIB
    fd = exported(maker, size)
    ok(user, f"import 0 {maker.process.pid} {fd}", f"map 1 {size} 0")
    (maker if dies == "maker" else user).kill()
    ok(start(), "alloc 0 1")  # who allocates next takes back what the dead held
    assert box.used() == size + 1


def test_exported_memory_stays_charged_until_its_process_ends(box: Box, start: Start) -> None:
    """The descriptor keeps the memory: released and given back, any number could be kept for nothing."""
    box.fresh(part(0, 2 * MIB))
    client = start()
    exported(client, 2 * MIB)
    ok(client, "release 0")
    assert box.used() == 2 * MIB
    assert client.ask(f"create 3 {2 * MIB}")[0] == OUT_OF_MEMORY
    client.kill()
    ok(start(), f"create 0 {2 * MIB}")
    assert box.used() == 2 * MIB


def test_a_failed_export_changes_nothing(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB))
    client = start()
    ok(client, f"create 0 {2 * MIB}", "release 0")
    assert client.ask("export 0 1")[0] == INVALID_VALUE
    assert client.ask("import 4 1 999999")[0] == INVALID_VALUE
    assert box.used() == 0


def test_opened_memory_is_charged_to_who_opens_it_once(box: Box, start: Start) -> None:
    box.fresh(part(0, 3000))
    maker, user = start(), start()
    ok(maker, "alloc 0 1000")
    handle = maker.words("name_ipc 0")[1]
    assert int(maker.words(f"named_ipc 5 0 {handle}")[0]) == INVALID_CONTEXT
    first, again = user.ask(f"named_ipc 0 0 {handle}"), user.ask(f"named_ipc 1 0 {handle}")
    assert first[0] == OK and first == again
    assert box.used() == 2000
    ok(user, "ipc_close 0")
    assert box.used() == 2000
    ok(user, "ipc_close 0")
    assert box.used() == 1000
    assert user.ask("ipc_close 0")[0] == INVALID_VALUE
    assert user.ask(f"named_ipc 0 0 {'00' * 64}")[0] == INVALID_VALUE
    assert box.used() == 1000


def test_opened_memory_that_does_not_fit_is_closed_again(box: Box, start: Start) -> None:
    box.fresh(part(0, 1999))
    maker, user = start(), start()
    ok(maker, "alloc 0 1000")
    handle = maker.words("name_ipc 0")[1]
    assert user.ask(f"named_ipc 0 0 {handle}")[0] == OUT_OF_MEMORY
    assert box.used() == 1000
    box.resize(0, 2000)
    ok(user, f"named_ipc 0 0 {handle}")
    maker.kill()
    assert user.ask("alloc 1 1001")[0] == OUT_OF_MEMORY  # the maker's are back, the user's are not
    ok(user, "alloc 1 1000", "reset 0")
    assert box.used() == 0


def test_external_memory_is_charged_until_it_is_destroyed(box: Box, start: Start) -> None:
    box.fresh(part(0, 1000))
    client = start()
    assert client.ask("ext 0 1001")[0] == OUT_OF_MEMORY
    assert client.ask("ext 0 0")[0] == INVALID_VALUE
    ok(client, "ext 0 1000")
    assert (box.used(), taken(box)) == (1000, 1000)
    ok(client, "ext_end 0")
    assert client.ask("ext_end 0")[0] == INVALID_HANDLE
    assert (box.used(), taken(box)) == (0, 0)


def test_what_is_refused_is_counted(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB))
    client = start()
    assert client.ask("refused 0")[0] == NOT_SUPPORTED
    assert box.usage().gpus[0].denied["refused"] == 1
