"""A GPU is chosen by the policy, never over-committed, and a refusal says why of every GPU."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci_hook.errors import PlacementError
from oci_hook.placement import place, refusal
from oci_hook.records import Allocation, Ask, Gpu, Placement, Policy, Process, Request, Slice
from oci_hook.values import replace

GIB = 1 << 30
POLICY = Policy(runtime="/usr/bin/runc", prefix="/opt/vgpu")


def gpu(index: int, gib: int = 80, health: str = "ok") -> Gpu:
    return Gpu(index, f"GPU-{index}", "Simulated GPU", gib * GIB, f"0000:0{index}:00.0", index, health)


def taken(index: int, gib: int, cores: int = 0) -> Allocation:
    part = Slice(index, f"GPU-{index}", gib * GIB, cores)
    process = Process(1, 1)
    request = Request(asks=(Ask(gib * GIB, None, cores),))
    placement = Placement("binpack", (part,), ())
    return Allocation("x", "", "", "armed", 0, process, process, request, placement, (), True, "550.1")


def asking(*gib: int, cores: int = 0, **more: object) -> Request:
    return replace(Request(asks=tuple(Ask(size * GIB, None, cores) for size in gib)), **more)


TWO = (gpu(0), gpu(1))


def chosen(placement: Placement) -> list[int]:
    return [part.index for part in placement.slices]


def test_binpack_fills_the_fuller_one_and_spread_the_emptier() -> None:
    given = [taken(1, 10)]
    assert chosen(place(asking(8), TWO, given, POLICY)) == [1]
    assert chosen(place(asking(8), TWO, given, replace(POLICY, placement="spread"))) == [0]
    assert chosen(place(asking(8, policy="spread"), TWO, given, POLICY)) == [0]


def test_between_equals_the_lower_index_decides() -> None:
    for policy in ("binpack", "spread"):
        assert chosen(place(asking(8), (gpu(1), gpu(0)), [], replace(POLICY, placement=policy))) == [0]


def test_cores_weigh_as_much_as_memory() -> None:
    assert chosen(place(asking(8, cores=10), TWO, [taken(0, 10), taken(1, 8, cores=50)], POLICY)) == [1]


def test_more_than_one_gpu_means_different_ones() -> None:
    placement = place(asking(8, 8), TWO, [], POLICY)
    assert sorted(chosen(placement)) == [0, 1]
    assert place(asking(8, 8, 8), TWO, [], POLICY).slices == ()


def test_a_later_ask_is_not_blocked_by_an_earlier_ones_best_choice() -> None:
    spread = replace(POLICY, placement="spread")  # the small ask alone would take the emptier GPU 0
    placement = place(asking(8, 40), TWO, [taken(1, 60)], spread)
    assert chosen(placement) == [1, 0]


def test_every_candidate_is_kept_with_score_or_reason() -> None:
    placement = place(asking(30), (gpu(0, 24), gpu(1), gpu(2, health="lost from the bus")), [taken(1, 1)], POLICY)
    by_index = {item.index: item for item in placement.candidates}
    assert by_index[0].reject == "CardInsufficientMemory"
    assert by_index[1].score == pytest.approx((31 / 80) / 2, abs=1e-6)
    assert by_index[2].reject == "CardNotHealth"
    assert by_index[2].detail == "lost from the bus"


def test_a_refusal_counts_the_reasons_and_names_each_gpu() -> None:
    placement = place(asking(70), (gpu(0), gpu(1, 24)), [taken(0, 79)], POLICY)
    assert placement.slices == ()
    error = refusal(placement)
    assert error.code == "VGPU-PLC-001"
    assert error.exit_code == 4
    assert str(error) == (
        "no room: 2/2 CardInsufficientMemory: "
        "GPU 0: CardInsufficientMemory (asked 71680 MiB, free 1024 of 81920 MiB); "
        "GPU 1: CardInsufficientMemory (asked 71680 MiB, the GPU has 24576 MiB)"
    )


def test_a_refusal_of_several_says_how_many_fit() -> None:
    error = refusal(place(asking(8, 8, 8), TWO, [], POLICY))
    assert "3 GPUs asked and 2 fit" in str(error)
    stuck = refusal(place(asking(8, 90), TWO, [], POLICY))
    assert "no room for GPU 1 of the container: 2/2 CardInsufficientMemory" in str(stuck)
    assert "no GPU" in str(refusal(place(asking(1), (), [], POLICY)))


def test_reserved_cores_are_not_given_twice() -> None:
    placement = place(asking(1, cores=30), TWO[:1], [taken(0, 1, cores=80)], POLICY)
    assert [item.reject for item in placement.candidates] == ["CardInsufficientCore"]
    assert "cores asked 30, free 20 of 100" in placement.candidates[0].detail
    assert place(asking(1, cores=20), TWO[:1], [taken(0, 1, cores=80)], POLICY).slices
    assert place(asking(1, cores=100), TWO[:1], [taken(0, 1)], POLICY).slices  # the other reserved none


def test_a_gpu_whose_cores_are_all_reserved_takes_nobody() -> None:
    placement = place(asking(1), TWO[:1], [taken(0, 1, cores=100)], POLICY)
    assert [item.reject for item in placement.candidates] == ["CardComputeUnitsExhausted"]


def test_overcommit_gives_out_more_but_never_more_to_one_than_there_is() -> None:
    twice = replace(POLICY, overcommit_memory=2.0, overcommit_cores=1.5)
    one = TWO[:1]
    assert place(asking(80, cores=50), one, [taken(0, 80, cores=100)], twice).slices
    assert not place(asking(81), one, [], twice).slices
    assert not place(asking(1), one, [taken(0, 80), taken(0, 80)], twice).slices


def test_named_devices_by_index_or_uuid_in_their_order() -> None:
    placement = place(asking(8, 8, devices=("GPU-1", "0")), TWO, [], POLICY)
    assert chosen(placement) == [1, 0]
    assert [item.reject for item in placement.candidates if item.index == 0][0] == "CardUuidMismatch"
    assert chosen(place(asking(8, devices=("1",)), TWO, [taken(0, 40)], POLICY)) == [1]
    full = place(asking(8, devices=("0",)), TWO, [taken(0, 80)], POLICY)
    assert {item.reject for item in full.candidates} == {"CardInsufficientMemory", "CardUuidMismatch"}


def test_a_device_that_the_host_does_not_have() -> None:
    with pytest.raises(PlacementError, match=r"no GPU '2'; it has 0 \(GPU-0\), 1 \(GPU-1\)") as caught:
        place(asking(8, devices=("2",)), TWO, [], POLICY)
    assert caught.value.code == "VGPU-PLC-002"


def test_the_same_gpu_named_by_index_and_by_uuid_fits_once_only() -> None:
    assert place(asking(1, 1, devices=("0", "GPU-0")), TWO, [], POLICY).slices == ()


def test_percent_is_of_each_gpu_and_held_to_the_cap() -> None:
    request = Request(asks=(Ask(memory_percent=50),))
    assert place(request, [gpu(0, 24)], [], POLICY).slices[0].memory_bytes == 12 * GIB
    capped = replace(POLICY, max_memory_bytes=10 * GIB)
    assert place(request, [gpu(0, 24)], [], capped).slices[0].memory_bytes == 10 * GIB
    assert place(request, [gpu(0, 16)], [], capped).slices[0].memory_bytes == 8 * GIB


@settings(max_examples=200)
@given(
    st.lists(st.integers(1, 8), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 8), st.integers(0, 100)), max_size=6),
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 100)), min_size=1, max_size=4),
    st.sampled_from(["binpack", "spread"]),
)
def test_found_if_and_only_if_there_is_a_way(
    sizes: list[int], given: list[tuple[int, int, int]], asks: list[tuple[int, int]], how: str
) -> None:
    """Against the plain definition: try every assignment. Never over, and never refused what fits."""
    gpus = [gpu(index, size) for index, size in enumerate(sizes)]
    before = [taken(index, size, cores) for index, size, cores in given]
    request = Request(asks=tuple(Ask(size * GIB, None, cores) for size, cores in asks), policy=how)

    def fits(index: int, ask: Ask) -> bool:
        if index >= len(gpus):
            return False
        memory = sum(size for at, size, _ in given if at == index)
        cores = sum(share for at, _, share in given if at == index)
        enough = (ask.memory_bytes or 0) <= (sizes[index] - memory) * GIB
        return enough and cores < 100 and cores + ask.cores_percent <= 100

    possible = any(
        all(fits(index, ask) for index, ask in zip(order, request.asks, strict=True))
        for order in permutations(range(max(len(gpus), len(asks))), len(asks))
    )
    placement = place(request, gpus, before, POLICY)
    assert bool(placement.slices) == possible
    assert len(placement.candidates) == len(asks) * len(gpus)
    indices = chosen(placement)
    assert len(set(indices)) == len(indices)
    assert all(fits(index, ask) for index, ask in zip(indices, request.asks, strict=False))
    if not placement.slices:
        assert refusal(placement).line().isprintable()
