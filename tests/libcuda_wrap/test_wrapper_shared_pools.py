"""Memory pools that several processes use: what each is charged, exactly, and who is charged when one of them dies.

The simulated driver counts shared memory with its maker alone; the ledger counts it with everyone who keeps it.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from libcuda_wrap.sim import create
from tests.libcuda_wrap.wrapped import (
    GIB,
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

PIECE = 2 * MIB
POOL, POINTER, FD, PLAIN = range(4)  # registers


def shared(maker: Client, size: int) -> tuple[int, str]:
    """A pool with an allocation, exported: its descriptor, and the name of the allocation."""
    ok(maker, f"p_new {POOL} 0", f"p_alloc {POINTER} {size} {POOL}", f"p_export {POOL} {FD}")
    return maker.ask(f"value {FD}")[1], named(maker)


def named(maker: Client, pointer: int = POINTER) -> str:
    result, name = maker.words(f"name_pointer {pointer}")
    assert int(result) == OK
    return name


def imported(user: Client, maker: Client, fd: int, name: str) -> int:
    """The result of importing an allocation of a pool that was imported."""
    ok(user, f"p_import {POOL} {maker.process.pid} {fd}")
    return user.ask(f"named_pointer {POINTER} {POOL} {name}")[0]


@pytest.mark.parametrize("size", [1, PIECE, PIECE + 1, 6 * MIB])
def test_an_importer_is_charged_the_pieces_that_its_pointer_lies_in(box: Box, start: Start, size: int) -> None:
    box.fresh(part(0, GIB))
    maker, user = start(), start()
    pieces = (size + PIECE - 1) // PIECE * PIECE
    fd, name = shared(maker, size)
    assert box.used() == taken(box) == pieces
    ok(user, f"p_import {POOL} {maker.process.pid} {fd}")
    assert box.used() == pieces  # of an imported pool nothing is here yet
    ok(user, f"named_pointer {POINTER} {POOL} {name}")
    assert (box.used(), taken(box)) == (2 * pieces, pieces)


def test_an_importer_is_charged_until_it_ends_its_pool(box: Box, start: Start) -> None:
    """The driver gives nothing of a shared pool back before that, whatever is freed and trimmed."""
    box.fresh(part(0, GIB))
    maker, user = start(), start()
    fd, name = shared(maker, 3 * MIB)
    assert imported(user, maker, fd, name) == OK
    ok(user, f"p_free {POINTER}", "sync", f"p_trim {POOL}")
    assert box.used() == 8 * MIB
    ok(user, f"p_end {POOL}")
    assert box.used() == 4 * MIB
    assert imported(user, maker, fd, name) == OK
    ok(user, f"p_end {POOL}")
    assert box.used() == 8 * MIB  # the pointer keeps it
    ok(user, f"free {POINTER}")
    assert box.used() == 4 * MIB


def test_an_import_that_takes_a_byte_too_many_is_undone(box: Box, start: Start) -> None:
    box.fresh(part(0, 4 * MIB - 1))
    maker, user = start(), start()
    fd, name = shared(maker, 1)
    assert imported(user, maker, fd, name) == OUT_OF_MEMORY
    # the driver's imported pool keeps the piece: nothing else fits until it is destroyed
    assert box.used() == 4 * MIB
    assert user.ask(f"alloc {PLAIN} 1")[0] == OUT_OF_MEMORY
    ok(user, f"p_end {POOL}", f"alloc {PLAIN} {2 * MIB - 1}")
    assert box.used() == 4 * MIB - 1
    box.resize(0, 6 * MIB - 1)
    assert imported(user, maker, fd, name) == OK
    assert box.used() == 6 * MIB - 1


def test_room_is_made_before_an_import_is_refused(box: Box, start: Start) -> None:
    box.fresh(part(0, 8 * MIB))
    maker, user = start(), start()
    fd, name = shared(maker, 2 * MIB)
    ok(user, "g_new 0", f"g_alloc 0 {6 * MIB} 9", "g_make 0", "g_launch 0", "g_end 0", "free 9")
    assert box.used() == 8 * MIB
    assert imported(user, maker, fd, name) == OK
    assert box.used() == 4 * MIB


@pytest.mark.parametrize("dies", ["maker", "user"])
def test_who_is_killed_is_charged_no_more_and_the_other_still_is(box: Box, start: Start, dies: str) -> None:
    box.fresh(part(0, GIB))
    maker, user = start(), start()
    fd, name = shared(maker, 4 * MIB)
    assert imported(user, maker, fd, name) == OK
    (maker if dies == "maker" else user).kill()
    ok(start(), f"alloc {PLAIN} 1")  # who allocates next takes back what the dead held
    assert box.used() == 4 * MIB + 1


def test_what_an_exported_pool_had_stays_charged_to_its_maker(box: Box, start: Start) -> None:
    """Its descriptor may keep the memory: destroyed and given back, any number of pools could be kept for nothing."""
    box.fresh(part(0, 4 * MIB))
    maker = start()
    shared(maker, 4 * MIB)
    ok(maker, f"p_free {POINTER}", "sync", f"p_trim {POOL}")
    assert box.used() == 4 * MIB
    ok(maker, f"p_alloc {POINTER} {4 * MIB} {POOL}")  # it can be used again
    ok(maker, f"p_free {POINTER}", f"p_end {POOL}")
    assert box.used() == 4 * MIB
    assert maker.ask(f"alloc {PLAIN} 1")[0] == OUT_OF_MEMORY
    maker.kill()
    ok(start(), f"alloc {PLAIN} {4 * MIB}")


def test_a_pool_that_was_not_exported_is_given_back_whole(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB))
    maker = start()
    ok(maker, f"p_new {POOL} 0", f"p_alloc {POINTER} 1 {POOL}", f"p_free {POINTER}", f"p_end {POOL}")
    assert box.used() == taken(box) == 0


def test_what_an_allocation_in_larger_pieces_left_behind_is_charged(box: Box, start: Start) -> None:
    """The piece does not fit, and a pool that can be shared does not give it back when the allocation is undone."""
    box.fresh(part(0, 4 * MIB))
    maker = start()
    ok(maker, f"p_piece {8 * MIB}", f"p_new {POOL} 0")
    assert maker.ask(f"p_alloc {POINTER} 1 {POOL}")[0] == OUT_OF_MEMORY
    assert box.used() == taken(box) == 8 * MIB
    assert maker.ask(f"alloc {PLAIN} 1")[0] == OUT_OF_MEMORY
    ok(maker, f"p_end {POOL}")
    assert box.used() == taken(box) == 0


def test_only_its_maker_allocates_from_a_pool(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB))
    maker, user = start(), start()
    fd, name = shared(maker, 1)
    assert imported(user, maker, fd, name) == OK
    assert user.ask(f"p_alloc {PLAIN} 1 {POOL}")[0] == INVALID_VALUE
    assert user.ask(f"p_current {POOL}")[0] == INVALID_VALUE
    assert user.ask(f"p_export {POOL} {FD}")[0] == INVALID_VALUE
    assert box.used() == 4 * MIB


def test_what_cannot_be_shared_changes_nothing(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB))
    maker, user = start(), start()
    fd, name = shared(maker, 1)
    assert int(maker.words("name_pointer 40")[0]) == INVALID_VALUE
    assert maker.ask(f"named_pointer 40 {POOL} {name}")[0] == INVALID_VALUE  # into a pool that is not imported
    assert user.ask(f"p_import {POOL} {maker.process.pid} 999999")[0] == INVALID_VALUE
    ok(user, f"p_import {POOL} {maker.process.pid} {fd}")
    assert user.ask(f"named_pointer {POINTER} {POOL} {'00' * 64}")[0] == INVALID_VALUE
    assert user.ask(f"named_pointer {POINTER} 40 {name}")[0] == INVALID_VALUE
    assert box.used() == PIECE == taken(box)


def test_before_cu_init_it_answers_as_the_driver_does(box: Box, driver: Path) -> None:
    box.fresh(part(0, GIB))
    commands = [f"p_import {POOL} 1 1", f"named_pointer {POINTER} {POOL} 00", f"p_export {POOL} {FD}"]
    done = subprocess.run(
        [sharer(box, driver)],
        input="".join(f"{command}\n" for command in commands),
        env=box.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [int(line.split()[0]) for line in done.stdout.splitlines()] == [NOT_INITIALIZED] * 3


def test_importers_that_race_are_charged_each_and_no_more_fit_than_there_is_room(box: Box, start: Start) -> None:
    box.fresh(part(0, 4 * PIECE))
    maker, users = start(), [start() for _ in range(7)]
    fd, name = shared(maker, 1)
    for user in users:
        ok(user, f"p_import {POOL} {maker.process.pid} {fd}")
        user.tell(f"named_pointer {POINTER} {POOL} {name}")
    results = [int(user.answer_to("named_pointer")[0]) for user in users]
    assert sorted(results) == [OK] * 3 + [OUT_OF_MEMORY] * 4
    assert box.used() == 8 * PIECE  # the refused keep the piece until they end their pool, and are charged for it
    for user, result in zip(users, results, strict=True):
        if result != OK:
            ok(user, f"p_end {POOL}")
    assert box.used() == 4 * PIECE
    fitted = [user for user, result in zip(users, results, strict=True) if result == OK]
    for client in (maker, *fitted[1:]):
        client.kill()
    ok(start(), f"alloc {PLAIN} 1")
    assert box.used() == PIECE + 1


@pytest.mark.parametrize("attribute", ["cuMemGetAddressRange", "cuPointerGetAttribute", "cuMemPoolGetAttribute"])
def test_what_nobody_can_measure_is_refused(box: Box, start: Start, attribute: str) -> None:
    box.fresh(part(0, GIB))
    maker, user = start(), start()
    fd, name = shared(maker, 1)
    ok(user, f"p_import {POOL} {maker.process.pid} {fd}")
    create.set_fault(box.folder / "sim", f"{attribute}=1")
    assert user.ask(f"named_pointer {POINTER} {POOL} {name}")[0] == NOT_SUPPORTED
    create.set_fault(box.folder / "sim", "")
    ok(user, f"p_end {POOL}")
    assert box.used() == PIECE


def test_maker_and_importer_in_different_containers_are_charged_each(boxes: Callable[[str], Box], driver: Path) -> None:
    one, other = boxes(""), boxes("address,undefined")
    one.fresh(part(0, 6 * MIB))
    other.fresh(part(0, 4 * MIB))
    maker = starter(one, driver)()
    user = starter(other, driver, VGPU_SIM_DIR=str(one.folder / "sim"))()
    fd, name = shared(maker, 6 * MIB)
    assert imported(user, maker, fd, name) == OUT_OF_MEMORY
    ok(user, f"p_end {POOL}")
    other.resize(0, 6 * MIB)
    assert imported(user, maker, fd, name) == OK
    assert (one.used(), other.used()) == (6 * MIB, 6 * MIB)
    maker.kill()
    ok(starter(one, driver)(), f"alloc {PLAIN} 1")
    assert (one.used(), other.used()) == (1, 6 * MIB)
    one.close()
    other.close()


def test_processes_killed_while_they_share_leave_nothing(plain_box: Box, driver: Path) -> None:
    """Importers and makers, killed at any moment between their commands and within them."""
    plain_box.fresh(part(0, GIB))
    start = starter(plain_box, driver)
    maker = start()
    fd, name = shared(maker, 3 * MIB)
    turn = [f"p_import {POOL} {maker.process.pid} {fd}", f"named_pointer {POINTER} {POOL} {name}"]
    turn += [f"p_new {PLAIN} 0", f"p_alloc 9 {PIECE} {PLAIN}", f"p_export {PLAIN} {FD}"]
    turn += [f"free {POINTER}", f"p_end {POOL}", "free 9", f"p_end {PLAIN}"]
    killed_at_random(plain_box, start, turn)
    ok(start(), f"alloc {PLAIN} 1")
    assert (plain_box.used(), taken(plain_box)) == (4 * MIB + 1, 4 * MIB + 1)


BINDINGS = """
import ctypes, socket
from cuda.bindings import driver as cuda
def ok(result):
    assert result[0] == cuda.CUresult.CUDA_SUCCESS, result
    return result[1] if len(result) == 2 else result[1:]
ok(cuda.cuInit(0))
ok(cuda.cuCtxSetCurrent(ok(cuda.cuDevicePrimaryCtxRetain(0))))
channel, kind = socket.socket(fileno=0), cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
"""
EXPORTS = """
props = cuda.CUmemPoolProps()
props.allocType = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
props.handleTypes = kind
props.location.type, props.location.id = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE, 0
pool = ok(cuda.cuMemPoolCreate(props))
pointer = ok(cuda.cuMemAllocFromPoolAsync(3 << 20, pool, 0))
fd = ok(cuda.cuMemPoolExportToShareableHandle(pool, kind, 0))
data = ok(cuda.cuMemPoolExportPointer(pointer))
socket.send_fds(channel, [ctypes.string_at(data.getPtr(), 64)], [fd])
channel.recv(1)
"""
IMPORTS = """
data = cuda.CUmemPoolPtrExportData()
said, (fd,), _, _ = socket.recv_fds(channel, 64, 1)
ctypes.memmove(data.getPtr(), said, 64)
pool = ok(cuda.cuMemPoolImportFromShareableHandle(fd, kind, 0))
pointer = ok(cuda.cuMemPoolImportPointer(pool, data))
ok(cuda.cuMemsetD8(pointer, 7, 3 << 20))
print(ok(cuda.cuPointerGetAttribute(cuda.CUpointer_attribute.CU_POINTER_ATTRIBUTE_RANGE_SIZE, pointer)), flush=True)
channel.recv(1)
"""


def test_cuda_bindings_share_a_pool_over_a_socket(plain_box: Box) -> None:
    pytest.importorskip("cuda.bindings")
    plain_box.fresh(part(0, 8 * MIB))
    ends = socket.socketpair()
    maker, user = (
        subprocess.Popen(
            [sys.executable, "-c", BINDINGS + code],
            stdin=end, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=plain_box.environment(),
        )
        for code, end in zip((EXPORTS, IMPORTS), ends, strict=True)
    )  # fmt: skip
    plain_box.clients += [Client(maker), Client(user)]
    for end in ends:
        end.close()
    assert user.stdout and maker.stderr and user.stderr
    assert user.stdout.readline() == f"{3 * MIB}\n", maker.stderr.read() + user.stderr.read()
    assert plain_box.used() == 8 * MIB
