"""Multicast objects: they take nothing themselves, and what is bound to them is charged for as long as they keep it.

The simulated driver counts what is bound with the process that made it; the ledger must never be below that.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from libcuda_wrap.sim import create
from tests.libcuda_wrap.wrapped import (
    GIB,
    INVALID_DEVICE,
    INVALID_VALUE,
    MIB,
    NOT_INITIALIZED,
    NOT_SUPPORTED,
    OK,
    OUT_OF_MEMORY,
    Box,
    Client,
    Start,
    killed_at_random,
    ok,
    part,
    sharer,
    starter,
    taken,
)

SIZE = 4 * MIB
TEAM, MEMORY, OTHER, AT, FD, PLAIN = range(6)  # registers
SHAREABLE = 1


def team(client: Client, gpus: int = 1, shareable: int = SHAREABLE) -> None:
    """A multicast object over the first GPUs."""
    ok(client, f"m_new {TEAM} {gpus} {SIZE} {shareable}", *(f"m_add {TEAM} {gpu}" for gpu in range(gpus)))


def joined(user: Client, maker: Client) -> None:
    """The object, exported by one process and imported by another."""
    ok(maker, f"export {TEAM} {FD}")
    ok(user, f"import {TEAM} {maker.process.pid} {maker.ask(f'value {FD}')[1]}")


def test_an_object_takes_nothing_and_maps_for_nothing(box: Box, start: Start) -> None:
    box.fresh(part(0, SIZE))
    client = start()
    team(client)
    ok(client, f"create {MEMORY} {SIZE}", f"m_bind {TEAM} {MEMORY} {SIZE}", f"map {AT} {SIZE} {TEAM}", f"write {AT} 7")
    assert box.used() == taken(box) == SIZE


def test_what_is_bound_is_charged_until_it_is_unbound(box: Box, start: Start) -> None:
    """The object keeps it: released and given back, any amount could be kept for nothing."""
    box.fresh(part(0, SIZE))
    client = start()
    team(client)
    ok(client, f"create {MEMORY} {SIZE}", f"m_bind {TEAM} {MEMORY} {SIZE}", f"release {MEMORY}")
    assert box.used() == taken(box) == SIZE
    assert client.ask(f"alloc {PLAIN} 1")[0] == OUT_OF_MEMORY
    ok(client, f"m_unbind {TEAM} 0 {SIZE}")
    assert box.used() == taken(box) == 0
    assert client.ask(f"m_unbind {TEAM} 0 {SIZE}")[0] == INVALID_VALUE


@pytest.mark.parametrize("last", ["release", "unmap", "retained"])
def test_what_is_bound_ends_with_the_last_of_the_object(box: Box, start: Start, last: str) -> None:
    box.fresh(part(0, GIB))
    client = start()
    team(client)
    ok(client, f"create {MEMORY} {SIZE}", f"m_bind {TEAM} {MEMORY} {SIZE}", f"release {MEMORY}")
    if last != "release":
        ok(client, f"map {AT} {SIZE} {TEAM}")
    if last == "retained":
        ok(client, f"retain {OTHER} {AT}", f"unmap {AT} {SIZE}")
    ok(client, f"release {TEAM}")
    if last != "release":
        assert box.used() == taken(box) == SIZE
        ok(client, f"unmap {AT} {SIZE}" if last == "unmap" else f"release {OTHER}")
    assert box.used() == taken(box) == 0


def test_memory_by_handle_and_by_address_on_two_gpus(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB), part(1, GIB))
    client, half = start(), SIZE // 2
    team(client, gpus=2)
    ok(client, f"create {MEMORY} {SIZE} 1", f"m_bind {TEAM} {MEMORY} {SIZE}", f"release {MEMORY}")
    ok(client, f"create {OTHER} {SIZE} 0", f"map {AT} {SIZE} {OTHER}", f"release {OTHER}")
    ok(client, f"m_at {TEAM} {AT} {half} {half}", f"unmap {AT} {SIZE}")  # the second half of it keeps all of it
    assert (box.used(0), box.used(1)) == (taken(box, 0), taken(box, 1)) == (SIZE, SIZE)
    ok(client, f"m_unbind {TEAM} 0 {half}")
    assert (box.used(0), box.used(1)) == (0, SIZE)
    ok(client, f"release {TEAM}")
    assert (box.used(0), box.used(1)) == (taken(box, 0), taken(box, 1)) == (0, 0)


def test_a_part_is_unbound_and_the_rest_stays(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB))
    client, half = start(), SIZE // 2
    team(client)
    for register, offset in ((MEMORY, 0), (OTHER, half)):
        ok(client, f"create {register} {half}", f"m_bind {TEAM} {register} {half} {offset}", f"release {register}")
    assert box.used() == taken(box) == SIZE
    ok(client, f"m_unbind {TEAM} 0 {half} {half}")
    assert box.used() == taken(box) == half
    ok(client, f"m_unbind {TEAM} 0 {SIZE}")
    assert box.used() == taken(box) == 0


def test_a_gpu_that_is_not_of_the_slice_is_none(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB))
    client = start()
    ok(client, f"m_new {TEAM} 1 {SIZE} 0")
    for command in (f"m_add {TEAM} 1", f"m_add {TEAM} 99", f"m_unbind {TEAM} 1 {SIZE}"):
        assert client.ask(command)[0] == INVALID_DEVICE, command
    ok(client, f"m_add {TEAM} 0")


def test_what_the_driver_refuses_changes_nothing(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB))
    client = start()
    team(client, shareable=0)
    assert client.ask(f"m_new {OTHER} 0 {SIZE} 0")[0] == INVALID_VALUE
    assert client.ask(f"m_new {OTHER} 1 1 0")[0] == INVALID_VALUE
    assert client.ask(f"m_add {TEAM} 0")[0] == INVALID_VALUE  # twice
    assert client.ask(f"export {TEAM} {FD}")[0] == INVALID_VALUE  # not made for that
    ok(client, f"create {MEMORY} {2 * SIZE}")
    assert client.ask(f"m_bind {TEAM} {MEMORY} {2 * SIZE}")[0] == INVALID_VALUE  # larger than the object
    assert client.ask(f"m_bind {TEAM} {TEAM} {SIZE}")[0] == INVALID_VALUE
    assert client.ask(f"m_bind {MEMORY} {MEMORY} {SIZE}")[0] == INVALID_VALUE
    assert client.ask(f"m_bind {TEAM} 40 {SIZE}")[0] == INVALID_VALUE
    ok(client, f"release {MEMORY}", f"release {TEAM}")
    assert client.ask(f"release {TEAM}")[0] == INVALID_VALUE
    assert box.used() == taken(box) == 0


def test_before_cu_init_it_answers_as_the_driver_does(box: Box, driver: Path) -> None:
    box.fresh(part(0, GIB))
    commands = [f"m_new {TEAM} 1 {SIZE} 0", f"m_add {TEAM} 0", f"m_bind {TEAM} {MEMORY} {SIZE}"]
    commands += [f"m_at {TEAM} {AT} {SIZE}", f"m_unbind {TEAM} 0 {SIZE}"]
    done = subprocess.run(
        [sharer(box, driver)],
        input="".join(f"{command}\n" for command in commands),
        env=box.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [int(line.split()[0]) for line in done.stdout.splitlines()] == [NOT_INITIALIZED] * len(commands)


def test_a_bind_waits_for_the_whole_team(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB), part(1, GIB))
    maker, user = start(), start()
    ok(maker, f"m_new {TEAM} 2 {SIZE} 1", f"m_add {TEAM} 0", f"create {MEMORY} {SIZE}")
    joined(user, maker)
    maker.tell(f"m_bind {TEAM} {MEMORY} {SIZE}")
    ok(user, f"create {MEMORY} {SIZE} 1", f"m_add {TEAM} 1", f"m_bind {TEAM} {MEMORY} {SIZE}")
    assert int(maker.answer_to("m_bind")[0]) == OK
    assert (taken(box, 0), taken(box, 1)) == (SIZE, SIZE)


def test_who_has_a_shared_object_is_charged_all_that_can_be_bound_to_it(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB), part(1, GIB))
    maker, user = start(), start()
    team(maker, gpus=2)
    joined(user, maker)
    joined(user, maker)  # another descriptor of the same object costs nothing
    assert (box.used(0), box.used(1)) == (SIZE, SIZE)  # the maker; an import is charged where it is mapped
    create.set_fault(box.folder / "sim", "cuMemGetAllocationPropertiesFromHandle=1")
    joined(user, maker)  # a driver that does not say where a multicast object is
    create.set_fault(box.folder / "sim", "")
    ok(user, f"map {AT} {SIZE} {TEAM}")
    assert (box.used(0), box.used(1)) == (2 * SIZE, 2 * SIZE)
    ok(user, f"unmap {AT} {SIZE}")
    ok(maker, f"release {TEAM}")
    assert (box.used(0), box.used(1)) == (0, 0)


def test_an_import_that_was_used_as_one_is_charged_as_a_multicast_object(box: Box, start: Start) -> None:
    """What the driver says of a multicast object's place is not the place of what is bound to it."""
    box.fresh(part(0, GIB), part(1, GIB))
    maker, user = start(), start()
    ok(maker, f"m_new {TEAM} 2 {SIZE} 1", f"m_add {TEAM} 0")
    joined(user, maker)
    ok(user, f"m_add {TEAM} 1", f"map {AT} {SIZE} {TEAM}")
    assert (box.used(0), box.used(1)) == (2 * SIZE, 2 * SIZE)


def test_what_is_bound_to_a_shared_object_is_charged_until_it_is_unbound(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB))
    maker, user = start(), start()
    team(maker)
    joined(user, maker)
    ok(user, f"create {MEMORY} {SIZE}", f"m_bind {TEAM} {MEMORY} {SIZE}", f"release {MEMORY}", f"release {TEAM}")
    assert (box.used(), taken(box)) == (2 * SIZE, SIZE)
    joined(user, maker)
    ok(user, f"create {MEMORY} {SIZE}", f"m_bind {TEAM} {MEMORY} {SIZE}")
    assert user.ask(f"m_unbind {TEAM} 0 {SIZE}")[0] == OK
    ok(user, f"release {MEMORY}")
    assert (box.used(), taken(box)) == (2 * SIZE, SIZE)


@pytest.mark.parametrize("dies", ["maker", "user"])
def test_who_is_killed_leaves_what_the_other_may_keep_charged(box: Box, start: Start, dies: str) -> None:
    box.fresh(part(0, GIB))
    maker, user = start(), start()
    team(maker)
    joined(user, maker)
    for client in (maker, user):
        ok(client, f"create {MEMORY} {SIZE // 2}", f"m_bind {TEAM} {MEMORY} {SIZE // 2} {SIZE // 2 * (client is user)}")
        ok(client, f"release {MEMORY}", f"map {AT} {SIZE} {TEAM}")
    assert box.used() == 2 * SIZE + SIZE
    (maker if dies == "maker" else user).kill()
    ok(start(), f"alloc {PLAIN} 1")
    assert box.used() == SIZE + SIZE // 2 + 1  # the living's own, and all that the object may keep


def test_what_does_not_fit_is_neither_exported_nor_mapped(box: Box, start: Start) -> None:
    box.fresh(part(0, SIZE), part(1, SIZE - 1))
    maker, user = start(), start()
    team(maker)
    assert maker.ask(f"export {TEAM} {FD}")[0] == OUT_OF_MEMORY
    assert (box.used(0), box.used(1)) == (0, 0)
    box.resize(1, SIZE)
    joined(user, maker)
    assert user.ask(f"map {AT} {SIZE} {TEAM}")[0] == OUT_OF_MEMORY
    assert (box.used(0), box.used(1)) == (SIZE, SIZE)


def test_imported_memory_is_bound_where_it_is_mapped(box: Box, start: Start) -> None:
    """How large it is, only its mapping tells."""
    box.fresh(part(0, GIB))
    maker, user = start(), start()
    ok(maker, f"create {MEMORY} {SIZE}", f"export {MEMORY} {FD}")
    team(user)
    ok(user, f"import {MEMORY} {maker.process.pid} {maker.ask(f'value {FD}')[1]}")
    assert user.ask(f"m_bind {TEAM} {MEMORY} {SIZE}")[0] == NOT_SUPPORTED
    assert user.ask(f"m_at {TEAM} {PLAIN} {SIZE}")[0] == NOT_SUPPORTED  # no mapping
    ok(user, f"map {AT} {SIZE} {MEMORY}", f"m_at {TEAM} {AT} {SIZE}", f"unmap {AT} {SIZE}", f"release {MEMORY}")
    assert (box.used(), taken(box)) == (2 * SIZE, SIZE)
    ok(user, f"m_unbind {TEAM} 0 {SIZE}")
    assert box.used() == SIZE


def test_processes_killed_while_they_bind_leave_nothing(plain_box: Box, driver: Path) -> None:
    plain_box.fresh(part(0, GIB))
    start = starter(plain_box, driver)
    maker = start()
    team(maker)
    ok(maker, f"export {TEAM} {FD}", f"create {MEMORY} {SIZE}", f"map {AT} {SIZE} {MEMORY}")
    turn = [f"import {TEAM} {maker.process.pid} {maker.ask(f'value {FD}')[1]}", f"map {AT} {SIZE} {TEAM}"]
    turn += [f"create {MEMORY} {SIZE // 2}", f"m_bind {TEAM} {MEMORY} {SIZE // 2}", f"release {MEMORY}"]
    turn += [f"m_unbind {TEAM} 0 {SIZE}", f"unmap {AT} {SIZE}", f"release {TEAM}"]
    turn += [f"m_new {OTHER} 1 {SIZE} 1", f"m_add {OTHER} 0", f"create {MEMORY} {SIZE}"]
    turn += [f"m_bind {OTHER} {MEMORY} {SIZE}", f"release {MEMORY}", f"export {OTHER} {FD}", f"release {OTHER}"]
    killed_at_random(plain_box, start, turn)
    ok(start(), f"alloc {PLAIN} 1")
    assert (plain_box.used(), taken(plain_box)) == (2 * SIZE + 1, SIZE + 1)
