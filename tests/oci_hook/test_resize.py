"""A slice that changes: entry and quota file never part, wherever the one who changes them dies."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oci_hook import ledger, quota_file, resize
from oci_hook.errors import HostError, PlacementError, RequestError, VgpuError
from oci_hook.records import Allocation, Ask, Gpu, Host, Placement, Plan, Policy, Request, Reservation, Slice
from oci_hook.values import replace

GIB = 1 << 30
POLICY = Policy(runtime="/usr/bin/runc", prefix="/opt/vgpu")
GPUS = tuple(Gpu(index, f"GPU-{index}", "Simulated GPU", 80 * GIB, "", index) for index in range(2))


def entry(container: str, *slices: Slice, burst: str | None = None) -> Allocation:
    me = ledger.process(os.getpid())
    assert me is not None
    asked = Request(asks=tuple(Ask(part.memory_bytes) for part in slices), burst=burst)
    placed = Placement("binpack", slices, ())
    return Allocation(container, f"name-{container}", "", "creating", 0, me, None, asked, placed, (), True, "550.1")


def on(index: int, gib: int, cores: int = 0) -> Slice:
    return Slice(index, f"GPU-{index}", gib * GIB, cores)


def add(state: Path, allocation: Allocation, burst: str = "hard") -> Allocation:
    quota = quota_file.quota(allocation.id, allocation.placement.slices, burst=burst, priority="normal")
    with ledger.Ledger(str(state)) as book:
        book.add(allocation, Plan((), ()), quota, quota_file.usage_header(), quota_file.USAGE_BYTES)
    return allocation


def in_file(state: Path, container: str) -> tuple[int, list[tuple[int, int, int]]]:
    """The generation, and (memory, cores, flags) of each GPU, read apart from the code under test."""
    data = (state / f"containers/{container}/box/quota").read_bytes()
    (count,) = struct.unpack_from("<I", data, 12)
    gpus = [struct.unpack_from("<QII", data, 128 + 128 * number + 48) for number in range(count)]
    return struct.unpack_from("<Q", data, 96)[0], gpus


def said(allocation: Allocation) -> list[tuple[int, int]]:
    return [(part.memory_bytes, part.cores_percent or 100) for part in allocation.placement.slices]


def resized(state: Path, before: Allocation, change: resize.Change, used: list[int] | None = None) -> Allocation:
    after = resize.changed(before, change)
    with ledger.Ledger(str(state)) as book:
        resize.apply(book, before, after, None if used is None else lambda: used)
    return after


def test_entry_and_file_change_together_and_the_generation_grows(tmp_path: Path) -> None:
    before = add(tmp_path, entry("abc", on(0, 8), on(1, 8, 30)))
    after = resized(tmp_path, before, resize.Change(memory_bytes=12 * GIB, cores_percent=50, gpu=1, burst="soft"))
    assert ledger.read(str(tmp_path), "abc") == after
    generation, gpus = in_file(tmp_path, "abc")
    assert gpus == [(8 * GIB, 100, 1), (12 * GIB, 50, 1)]
    assert generation > 1
    assert os.listdir(tmp_path / "containers") == ["abc"]
    again = resized(tmp_path, after, resize.Change(memory_bytes=4 * GIB))
    assert said(again) == [(4 * GIB, 100), (4 * GIB, 50)]
    assert in_file(tmp_path, "abc")[1] == [(4 * GIB, 100, 1), (4 * GIB, 50, 1)]
    assert in_file(tmp_path, "abc")[0] > generation


def test_below_what_is_in_use_is_refused_and_nothing_stays_changed(tmp_path: Path) -> None:
    before = add(tmp_path, entry("abc", on(0, 8)))
    with pytest.raises(RequestError, match=r"--memory=4 GiB: 6 GiB of GPU 0 are in use") as refused:
        resized(tmp_path, before, resize.Change(memory_bytes=4 * GIB), [6 * GIB])
    assert refused.value.code == "VGPU-SET-002" and "--force" in refused.value.remedy
    assert in_file(tmp_path, "abc") == (1, [(8 * GIB, 100, 0)])  # nobody was disturbed
    assert ledger.read(str(tmp_path), "abc") == before


def test_what_is_allocated_between_the_look_and_the_change_is_seen(tmp_path: Path) -> None:
    before = add(tmp_path, entry("abc", on(0, 8)))
    after = resize.changed(before, resize.Change(memory_bytes=4 * GIB))
    looks: list[int] = []

    def in_use() -> list[int]:
        looks.append(in_file(tmp_path, "abc")[1][0][0])
        return [3 * GIB if len(looks) == 1 else 5 * GIB]

    with ledger.Ledger(str(tmp_path)) as book, pytest.raises(RequestError, match="5 GiB of GPU 0 are in use"):
        resize.apply(book, before, after, in_use)
    assert looks == [8 * GIB, 4 * GIB]  # the second look is at a container that can get no more
    assert in_file(tmp_path, "abc")[1] == [(8 * GIB, 100, 0)]
    assert ledger.read(str(tmp_path), "abc") == before
    assert os.listdir(tmp_path / "containers") == ["abc"]


CHANGES = [
    resize.Change(memory_bytes=16 * GIB, cores_percent=20, burst="soft"),
    resize.Change(memory_bytes=2 * GIB, cores_percent=90),
    resize.Change(memory_bytes=2 * GIB, cores_percent=10, burst="hard"),
]
STEPS = [
    (ledger.Ledger, "mark"),
    (resize.LiveQuota, "store"),
    (ledger.Ledger, "rewrite"),
    (ledger.Ledger, "unmark"),
]


def killed_at(owner: type, name: str, when: int, work: Callable[[], object]) -> int:
    """Runs `work` in a child that dies before (when even) or after call number when // 2 of owner.name; its code."""
    pid = os.fork()
    if pid == 0:
        real, calls = getattr(owner, name), [0]

        def counted(*arguments: Any) -> Any:
            call, calls[0] = calls[0], calls[0] + 1
            if when == 2 * call:
                os._exit(9)
            result = real(*arguments)
            if when == 2 * call + 1:
                os._exit(9)
            return result

        setattr(owner, name, counted)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("change", CHANGES, ids=["grows", "mixed", "shrinks"])
def test_wherever_it_is_killed_no_program_gets_more_and_the_next_repairs(tmp_path: Path, change: resize.Change) -> None:
    deaths = 0
    for owner, name in STEPS:
        for when in range(4):
            state = tmp_path / f"{name}{when}"
            before = add(state, entry("abc", on(0, 8, 50), burst="soft"), burst="soft")
            after = resize.changed(before, change)
            deaths += killed_at(owner, name, when, lambda s=state, b=before: resized(s, b, change)) == 9
            found = ledger.read(str(state), "abc")
            assert found in (before, after)
            ((memory, cores, _),) = in_file(state, "abc")[1]
            assert memory <= said(found)[0][0] and cores <= said(found)[0][1]
            with ledger.Ledger(str(state)):
                pass
            assert in_file(state, "abc")[1] == [(*said(found)[0], int(found.request.burst == "soft"))]
            assert os.listdir(state / "containers") == ["abc"]
    assert deaths == 10  # store is called twice, the others once; each dies before and after


def test_a_file_that_cannot_be_repaired_holds_up_no_start(tmp_path: Path) -> None:
    before = add(tmp_path, entry("abc", on(0, 8)))
    with ledger.Ledger(str(tmp_path)) as book:
        book.mark("abc")
        book.mark("gone")
    os.truncate(tmp_path / "containers/abc/box/quota", 10)
    with ledger.Ledger(str(tmp_path)) as book:
        assert book.entries() == [before]
    assert sorted(os.listdir(tmp_path / "containers")) == [".resize-abc", "abc"]


@pytest.mark.parametrize("damage", ["missing", "short", "version", "other container", "link"])
def test_a_file_that_is_not_this_containers_is_not_written(tmp_path: Path, damage: str) -> None:
    before = add(tmp_path, entry("abc", on(0, 8)))
    path = tmp_path / "containers/abc/box/quota"
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "version":
        data[4] += 1
    elif damage == "other container":
        data[16:19] = b"xyz"
    if damage == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
    elif damage != "missing":
        path.write_bytes(data[:100] if damage == "short" else data)
    with pytest.raises(HostError) as refused:
        resized(tmp_path, before, resize.Change(memory_bytes=GIB))
    assert refused.value.code == "VGPU-HOST-009"
    assert ledger.read(str(tmp_path), "abc") == before
    if damage == "link":
        assert (tmp_path / "elsewhere").read_bytes() == data


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (resize.Change(memory_bytes=21 * GIB), "CardInsufficientMemory (asked 21 GiB, it can have 20 GiB in all)"),
        (resize.Change(memory_bytes=81 * GIB, gpu=1), "CardInsufficientMemory (asked 81 GiB, it can have 80 GiB"),
        (resize.Change(cores_percent=41), "CardInsufficientCore (cores asked 41, it can have 40 in all)"),
        (resize.Change(memory_bytes=20 * GIB, cores_percent=40), None),
        (resize.Change(memory_bytes=80 * GIB, gpu=1), None),
    ],
)
def test_growing_needs_room_on_the_gpu(change: resize.Change, reason: str | None) -> None:
    mine, other = entry("a", on(0, 8, 30), on(1, 8)), entry("b", on(0, 60, 60))
    check = lambda: resize.check_room(mine, resize.changed(mine, change), GPUS, [mine, other], POLICY)  # noqa: E731  # run twice
    if reason is None:
        check()
        return
    with pytest.raises(PlacementError) as refused:
        check()
    assert refused.value.code == "VGPU-PLC-001" and reason in str(refused.value)


def test_overcommit_is_room_but_never_more_than_the_gpu_has() -> None:
    mine, other = entry("a", on(0, 8)), entry("b", on(0, 80, 100))
    twice = replace(POLICY, overcommit_memory=2.0, overcommit_cores=1.5)
    resize.check_room(mine, resize.changed(mine, resize.Change(80 * GIB, 50)), GPUS, [mine, other], twice)
    for change in (resize.Change(81 * GIB), resize.Change(cores_percent=51)):
        with pytest.raises(PlacementError):
            resize.check_room(mine, resize.changed(mine, change), GPUS, [mine, other], twice)


def test_what_shrinks_needs_no_room_and_no_healthy_gpu() -> None:
    mine, other = entry("a", on(0, 8, 30)), entry("b", on(0, 80, 100))  # the factor was taken back meanwhile
    smaller = resize.changed(mine, resize.Change(GIB, 10))
    assert not resize.grows(mine, smaller)
    resize.check_room(mine, smaller, (), [mine, other], POLICY)
    ill = (replace(GPUS[0], health="lost"),)
    with pytest.raises(PlacementError, match="CardNotHealth"):
        resize.check_room(mine, resize.changed(mine, resize.Change(9 * GIB)), ill, [mine], POLICY)


def test_caps_and_gpus_are_checked() -> None:
    capped = replace(POLICY, max_memory_bytes=16 * GIB, max_cores_percent=50)
    resize.check_caps(resize.Change(16 * GIB, 50), capped)
    for change, words in [(resize.Change(17 * GIB), "17 GiB asked, the policy allows 16 GiB"),
                          (resize.Change(cores_percent=51), "51 % asked, the policy allows 50 %")]:  # fmt: skip
        with pytest.raises(VgpuError, match=words) as refused:
            resize.check_caps(change, capped)
        assert refused.value.code == "VGPU-SET-003"
    with pytest.raises(RequestError, match=r"--gpu=3: container 'name-a' has a slice of GPU 0, 1") as unknown:
        resize.changed(entry("a", on(0, 8), on(1, 8)), resize.Change(GIB, gpu=3))
    assert unknown.value.code == "VGPU-SET-004"


def test_a_reader_never_sees_half_a_number(tmp_path: Path) -> None:
    small, large = 1, (1 << 44) - 1
    before = add(tmp_path, entry("abc", replace(on(0, 1), memory_bytes=small)))
    other = replace(before, placement=Placement("binpack", (replace(on(0, 1), memory_bytes=large),), ()))
    pid = os.fork()
    if pid == 0:
        with resize.LiveQuota(str(tmp_path), before) as live:
            while True:
                live.store(other)
                live.store(before)
    try:
        with resize.LiveQuota(str(tmp_path), before) as live, memoryview(live._map) as raw, raw.cast("Q") as words:
            at = (quota_file.gpu_at(0) + quota_file.MEMORY_AT) // 8
            seen = {words[at] for _ in range(300_000)}
            until = time.monotonic() + 30
            while len(seen) < 2 and time.monotonic() < until:  # on a busy machine the writer has not begun yet
                seen |= {words[at] for _ in range(300_000)}
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert seen == {small, large}


def test_growing_does_not_take_what_is_reserved_for_others() -> None:
    mine = entry("mine", on(0, 8))
    larger = resize.changed(mine, resize.Change(20 * GIB))
    kept = Host(reservations=(Reservation("night", mine.placement.slices[0].uuid, 65 * GIB, 0, 10),), now_ns=9)
    with pytest.raises(PlacementError, match="CardInsufficientMemory"):
        resize.check_room(mine, larger, GPUS, [mine], POLICY, kept)
    resize.check_room(mine, larger, GPUS, [mine], POLICY, replace(kept, now_ns=10))
    claimed = replace(mine, request=replace(mine.request, reservation="night"))
    resize.check_room(claimed, resize.changed(claimed, resize.Change(20 * GIB)), GPUS, [claimed], POLICY, kept)
