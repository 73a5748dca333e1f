"""What every allocating function takes, to the byte, and what gives it back."""

from __future__ import annotations

import time

import pytest

from libcuda_wrap.sim import create
from tests.libcuda_wrap.wrapped import (
    GIB,
    INVALID_DEVICE,
    MIB,
    NO_DEVICE,
    NOT_INITIALIZED,
    NOT_READY,
    NOT_SUPPORTED,
    OK,
    OUT_OF_MEMORY,
    Box,
    part,
)

FAMILIES = ["linear", "managed", "pitch", "async", "async_ptsz", "pool", "array", "array3d", "mipmap", "physical"]
MALLOC_HEAP = 2
POOLED = ("async", "async_ptsz", "pool")
PIECE = 2 * MIB  # of physical memory, and of what a pool grows by


@pytest.mark.parametrize("family", FAMILIES)
def test_the_quota_is_exact_to_the_byte(box: Box, family: str) -> None:
    quota = 64 * MIB
    box.fresh(part(0, quota))
    client = box.client().ready()
    assert client.ask(f"alloc {family} 0 {quota}")[0] == OK
    assert box.used() == quota
    assert client.ask("alloc linear 1 1")[0] == OUT_OF_MEMORY
    assert client.ask(f"free {family} 0")[0] == OK
    if family in POOLED:
        assert box.used() == quota, "the pool still has it"
        assert client.ask("sync")[0] == OK
    assert box.used() == 0
    # of physical memory and pools, and of rows; arrays come in 16 bytes here
    step = PIECE if family in ("physical", *POOLED) else {"pitch": 512}.get(family, 16)
    assert client.ask(f"alloc {family} 0 {quota + step}")[0] == OUT_OF_MEMORY
    assert box.used() == 0
    usage = box.usage()
    assert (usage.gpus[0].denied_count, usage.gpus[0].denied_bytes) == (2, quota + step)
    assert usage.gpus[0].peak_bytes == quota


def test_one_byte_more_than_is_left_is_refused(box: Box) -> None:
    box.fresh(part(0, 1000))
    client = box.client().ready()
    assert client.ask("alloc linear 0 999")[0] == OK
    assert client.ask("alloc linear 1 2")[0] == OUT_OF_MEMORY
    assert client.ask("alloc linear 1 1")[0] == OK
    assert box.used() == 1000


def test_the_padding_of_a_pitched_row_counts(box: Box) -> None:
    box.fresh(part(0, GIB))
    client = box.client().ready()
    result, _, pitch = client.ask("alloc pitch 0 1")
    assert result == OK and pitch > 1
    assert box.used() == pitch
    assert client.ask("free pitch 0")[0] == OK
    box.resize(0, pitch - 1)
    assert client.ask("alloc pitch 0 1")[0] == OUT_OF_MEMORY
    assert box.used() == 0


def test_a_pitched_row_that_does_not_fit_is_not_even_asked_of_the_driver(box: Box) -> None:
    box.fresh(part(0, 511))
    assert box.client().ready().ask("alloc pitch 0 1")[0] == OUT_OF_MEMORY
    usage = box.usage().gpus[0]
    assert (usage.denied_bytes, usage.peak_bytes) == (512, 0)  # row and padding at once


def test_sparse_arrays_take_nothing(box: Box) -> None:
    box.fresh(part(0, MIB))
    assert box.client().ready().ask(f"alloc sparse 0 {GIB}")[0] in (OK, NOT_SUPPORTED)
    assert box.used() == 0


def test_what_the_driver_refuses_is_not_charged(box: Box) -> None:
    box.fresh(part(0, 2 * GIB), memory_bytes=GIB)
    client = box.client().ready()
    assert client.ask(f"alloc linear 0 {2 * GIB}")[0] == OUT_OF_MEMORY
    assert client.ask("alloc linear 0 0")[0] != OK
    assert box.used() == 0


@pytest.mark.parametrize("end", ["primary_release 0", "primary_reset 0"])
def test_the_end_of_the_primary_context_gives_back(box: Box, end: str) -> None:
    box.fresh(part(0, GIB))
    client = box.client().ready()
    for number, family in enumerate(["linear", "managed", "array", "mipmap", "pitch"]):
        assert client.ask(f"alloc {family} {number} {MIB}")[0] == OK
    assert box.used() >= 5 * MIB
    assert client.ask(end)[0] == OK
    assert box.used() == 0


def test_destroying_a_context_gives_back_its_own_memory_only(box: Box) -> None:
    box.fresh(part(0, GIB))
    client = box.client().ready()
    assert client.ask("alloc linear 0 100")[0] == OK
    assert client.ask("newctx 0")[0] == OK
    assert client.ask("alloc linear 1 50")[0] == OK
    assert client.ask("alloc physical 2 2097152")[0] == OK  # belongs to no context
    assert box.used() == 150 + 2 * MIB
    assert client.ask("destroyctx")[0] == OK
    assert box.used() == 100 + 2 * MIB


def test_physical_memory_stays_while_handle_or_mapping_does(box: Box) -> None:
    box.fresh(part(0, GIB))
    client, size = box.client().ready(), 2 * MIB
    assert client.ask(f"alloc physical 0 {size}")[0] == OK
    assert client.ask(f"alloc physical 1 {size}")[0] == OK
    assert client.ask(f"reserve 2 {2 * size}")[0] == OK
    assert client.ask(f"map 2 {size} 0")[0] == OK
    assert client.ask(f"mapat 2 {size} 1")[0] == OK
    assert client.ask("free physical 0")[0] == client.ask("free physical 1")[0] == OK
    assert box.used() == 2 * size
    assert client.ask("retain 3 2")[0] == OK
    assert client.ask(f"unmap 2 {2 * size}")[0] == OK
    assert box.used() == size
    assert client.ask("free physical 3")[0] == OK
    assert box.used() == 0


def test_a_larger_heap_in_the_context_is_charged(box: Box) -> None:
    box.fresh(part(0, GIB))
    client = box.client().ready()
    assert client.ask(f"limit {MALLOC_HEAP} {70 * GIB}")[0] == OUT_OF_MEMORY
    assert client.ask(f"limit {MALLOC_HEAP} {256 * MIB}")[0] == OK
    assert 0 < box.used() <= 256 * MIB
    assert client.ask("primary_reset 0")[0] == OK
    assert box.used() == 0


def test_freeing_what_is_not_ours_is_the_drivers_error(box: Box) -> None:
    box.fresh(part(0, GIB))
    assert box.client().ready().ask("free linear 77")[0] in (OK, 1)  # a null pointer, as the driver has it
    assert box.used() == 0


def test_bad_arguments_are_the_drivers_errors_and_errno_is_kept(box: Box) -> None:
    box.fresh(part(0, GIB))
    assert box.client().ready().ask("misuse") == (OK, 1, 1)
    assert box.used() == 0


def test_memory_of_a_capture_takes_nothing_yet(box: Box) -> None:
    box.fresh(part(0, GIB))
    result, began, _ = box.client().ready().ask("capture")
    assert (result, began) == (OK, OK)
    assert box.used() == 0


def test_before_init_and_without_context_the_driver_answers(box: Box) -> None:
    box.fresh(part(0, GIB))
    client = box.client()
    for command in ("alloc linear 0 1", "count", "info", "alloc physical 0 2097152", "primary 0"):
        assert client.ask(command)[0] == NOT_INITIALIZED, command
    assert client.ask("init")[0] == OK
    assert client.ask("alloc linear 0 1")[0] == 201  # no context


def test_memory_questions_show_the_slice(box: Box) -> None:
    box.fresh(part(0, 8 * GIB))
    client = box.client().ready()
    assert client.ask("total 0") == (OK, 8 * GIB, 0)
    assert client.ask(f"alloc linear 0 {3 * GIB}")[0] == OK
    assert client.ask("info") == (OK, 5 * GIB, 8 * GIB)


def test_the_quota_changes_while_the_program_runs(box: Box) -> None:
    box.fresh(part(0, 100))
    client = box.client().ready()
    assert client.ask("alloc linear 0 101")[0] == OUT_OF_MEMORY
    box.resize(0, 200)
    assert client.ask("alloc linear 0 101")[0] == OK
    box.resize(0, 50)
    assert client.ask("info") == (OK, 0, 50)
    assert client.ask("alloc linear 1 1")[0] == OUT_OF_MEMORY


def test_devices_are_the_slices_in_its_order(box: Box) -> None:
    box.fresh(part(2, GIB), part(0, 2 * GIB), gpus=3)
    client = box.client()
    assert client.ask("init")[0] == OK
    assert client.ask("count")[1] == 2
    for ordinal, index in enumerate((2, 0)):
        result, device, uuid = client.words(f"get {ordinal}")
        assert (result, f"{uuid}") == ("0", create.gpu_uuid(index)[4:].replace("-", ""))
        assert client.ask(f"total {device}") == (OK, (1 + ordinal) * GIB, 0)
    assert client.words("get 2")[0] == str(INVALID_DEVICE)
    assert client.ask("total 1")[0] == INVALID_DEVICE
    assert client.ask("primary 1")[0] == INVALID_DEVICE
    assert client.ask("primary 2")[0] == OK
    assert client.ask("alloc linear 0 4096")[0] == OK
    assert (box.used(0), box.used(1)) == (4096, 0)


def test_the_programs_own_choice_of_devices_is_kept(box: Box) -> None:
    box.fresh(part(1, GIB), part(0, GIB))
    client = box.client(CUDA_VISIBLE_DEVICES="1")
    assert client.ask("init")[0] == OK
    assert client.ask("count")[1] == 1
    assert client.words("get 0")[2] == create.gpu_uuid(1)[4:].replace("-", "")


def test_no_gpu_of_the_slice_is_no_device(box: Box) -> None:
    box.fresh(part(5, GIB))
    assert box.client().ask("init")[0] == NO_DEVICE


@pytest.mark.parametrize("name", ["quota", "usage"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "longer", "magic", "version"])
def test_without_its_files_nothing_is_allocated(box: Box, name: str, damage: str) -> None:
    box.fresh(part(0, GIB))
    path = box.folder / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        data[0] ^= damage == "magic"
        data[4] ^= (damage == "version") << 1
        end = {"empty": 0, "truncated": len(data) - 1}.get(damage, len(data))
        box.write(name, bytes(data[:end]) + b"\0" * (damage == "longer"))
    client = box.client()
    assert client.ask("init")[0] == NOT_READY
    assert client.ask("count")[0] in (NOT_READY, NOT_INITIALIZED)
    assert client.ask("primary 0")[0] != OK
    assert client.ask("alloc linear 0 1")[0] != OK


def test_first_use_is_written_down(box: Box) -> None:
    box.fresh(part(0, GIB))
    assert box.usage().armed_ns == 0
    box.client().ready()
    armed = box.usage().armed_ns
    assert 0 <= time.clock_gettime_ns(time.CLOCK_BOOTTIME) - armed < 30_000_000_000
    box.client().ready()
    assert box.usage().armed_ns == armed
    assert box.usage().wrapper_version == 0x000100


def test_the_program_hears_nothing_from_us(box: Box) -> None:
    box.fresh(part(0, 100))
    client = box.client().ready()
    assert client.ask("alloc linear 0 101")[0] == OUT_OF_MEMORY
    assert client.end() == ""
