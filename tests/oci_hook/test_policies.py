"""Policies beyond binpack and spread, what keeps a container off a GPU, quotas and reservations."""

from __future__ import annotations

import subprocess
import sys

import pytest
from test_placement import GIB, POLICY, TWO, asking, chosen, gpu, taken

from oci_hook.errors import PlacementError
from oci_hook.placement import place, refusal
from oci_hook.records import Allocation, Ask, Gpu, Host, Placement, Quota, Request, Reservation
from oci_hook.values import replace


def rejects(placement: Placement) -> list[str | None]:
    return [item.reject for item in placement.candidates]


def of(index: int, gib: int, name: str = "x", how: str = "binpack", **asked: object) -> Allocation:
    entry = taken(index, gib)
    placed = replace(entry.placement, policy=how)
    return replace(entry, id=name, placement=placed, request=replace(entry.request, **asked))


def quad() -> tuple[Gpu, ...]:
    """0 and 3 are joined by NVLink, 1 and 2 by a PCIe switch; all else is across the sockets."""
    links = {0: {"GPU-3": "NV12"}, 3: {"GPU-0": "NV12"}, 1: {"GPU-2": "PIX"}, 2: {"GPU-1": "PIX"}}
    return tuple(replace(gpu(index), links=links[index], numa_node=index // 2) for index in range(4))


def test_topology_takes_the_pair_that_is_joined_best() -> None:
    topology = replace(POLICY, placement="topology")
    assert chosen(place(asking(8, 8), quad(), [], topology)) == [0, 3]
    assert chosen(place(asking(8, 8), quad(), [taken(0, 79)], topology)) == [1, 2]
    assert sorted(chosen(place(asking(8, 8), quad(), [], POLICY))) == [0, 1]  # binpack does not look


def test_topology_keeps_pairs_whole_for_a_single_gpu() -> None:
    assert chosen(place(asking(8, policy="topology"), quad(), [], POLICY))[0] in (1, 2)
    assert chosen(place(asking(8, policy="topology"), quad()[:2], [], POLICY)) == [0]


def test_exclusive_wants_an_empty_gpu_and_lets_nobody_else_on_it() -> None:
    alone = place(asking(8, policy="exclusive"), TWO, [taken(0, 1)], POLICY)
    assert chosen(alone) == [1]
    assert rejects(alone)[0] == "ExclusiveDeviceAllocateConflict"
    after = place(asking(1), TWO, [of(1, 8, "alone", "exclusive")], POLICY)
    assert chosen(after) == [0]
    assert after.candidates[1].detail == "alone has it alone"


def test_a_mutex_keeps_two_of_one_word_apart() -> None:
    given = [of(0, 40, mutex="db")]
    assert chosen(place(asking(8, mutex="db"), TWO, given, POLICY)) == [1]
    assert chosen(place(asking(8, mutex="web"), TWO, given, POLICY)) == [0]
    assert rejects(place(asking(8, mutex="db"), TWO[:1], given, POLICY)) == ["ExclusiveDeviceAllocateConflict"]


def test_least_contended_goes_by_the_measured_load() -> None:
    host = Host(load={"GPU-0": 0.9, "GPU-1": 0.2})
    placement = place(asking(8, policy="least-contended"), TWO, [taken(0, 1)], POLICY, host)
    assert [item.score for item in placement.candidates] == [0.1, 0.8]
    assert chosen(placement) == [1]


def test_weighted_mixes_and_keeps_the_parts() -> None:
    mixed = replace(POLICY, placement="weighted", weights={"binpack": 1.0, "least-contended": 3.0})
    placement = place(asking(8), TWO, [taken(0, 72)], mixed, Host(load={"GPU-0": 1.0}))
    assert placement.candidates[0].parts == {"binpack": 0.5, "least-contended": 0.0}
    assert placement.candidates[0].score == pytest.approx(0.125)
    assert placement.candidates[1].score == pytest.approx((0.05 + 3) / 4)
    with pytest.raises(PlacementError, match=r"vgpu\.policy=weighted") as caught:
        place(asking(8, policy="weighted"), TWO, [], POLICY)
    assert caught.value.code == "VGPU-PLC-003"


def test_a_cordoned_and_a_sick_gpu_are_left_out() -> None:
    host = Host(cordoned={"GPU-0": "for an upgrade"}, sick={"GPU-1": "XID 79"})
    placement = place(asking(1), (*TWO, gpu(2)), [], POLICY, host)
    assert chosen(placement) == [2]
    assert rejects(placement)[:2] == ["CardCordoned", "CardNotHealth"]
    assert str(refusal(place(asking(1), TWO, [], POLICY, host))).startswith(
        "no room: 1/2 CardCordoned, 1/2 CardNotHealth: GPU 0: CardCordoned (for an upgrade)"
    )


def test_type_and_numa_node_can_be_asked_for() -> None:
    cards = (gpu(0), replace(gpu(1), name="NVIDIA A100-SXM4-80GB", numa_node=1), gpu(2))
    assert rejects(place(asking(1, gpu_types=("a100",)), cards, [], POLICY)) == [
        "CardTypeMismatch", None, "CardTypeMismatch",
    ]  # fmt: skip
    assert rejects(place(asking(1, numa=1), cards, [], POLICY)) == ["NumaNotFit", None, "NumaNotFit"]


def test_a_gpu_takes_so_many_containers() -> None:
    placement = place(asking(1), TWO[:1], [taken(0, 1), taken(0, 1)], replace(POLICY, max_slices=2))
    assert rejects(placement) == ["CardTimeSlicingExhausted"]
    assert place(asking(1), TWO[:1], [taken(0, 1), taken(0, 1)], replace(POLICY, max_slices=3)).slices


@pytest.mark.parametrize(
    ("quota", "labels", "fits"),
    [
        (Quota("team=a", memory_bytes=16 * GIB), {"team": "a"}, False),
        (Quota("team=a", memory_bytes=20 * GIB), {"team": "a"}, True),
        (Quota("team=a", memory_bytes=16 * GIB), {"team": "b"}, True),
        (Quota("team", memory_bytes=16 * GIB), {"team": "a"}, False),
        (Quota("team", memory_bytes=16 * GIB), {"team": "b"}, True),  # each team for itself
        (Quota("team", memory_bytes=1 * GIB), {}, True),
        (Quota("team=", containers=0), {}, False),
        (Quota("team=a", containers=1), {"team": "a"}, False),
        (Quota("team=a", containers=2), {"team": "a"}, True),
        (Quota("team=a", cores_percent=20), {"team": "a"}, False),
    ],
)
def test_a_quota_holds_all_with_its_label_together(quota: Quota, labels: dict[str, str], fits: bool) -> None:
    given = [of(0, 10, labels={"team": "a"})]
    placement = place(asking(8, cores=30, labels=labels), TWO, given, replace(POLICY, quotas=(quota,)))
    assert bool(placement.slices) == fits
    assert set(rejects(placement)) == ({None} if fits else {"ResourceQuotaNotFit"})
    if not fits:
        assert f"2/2 ResourceQuotaNotFit: GPU 0: ResourceQuotaNotFit (quota of {quota.label}: " in str(
            refusal(placement)
        )


def test_a_share_in_percent_is_held_to_the_quota_when_the_gpu_is_known() -> None:
    quota = replace(POLICY, placement="spread", quotas=(Quota("team=a", memory_bytes=20 * GIB),))
    request = Request(asks=(Ask(memory_percent=50),), labels={"team": "a"})
    placement = place(request, (gpu(0, 24), gpu(1, 80)), [], quota)
    assert not placement.slices or placement.slices[0].memory_bytes <= 20 * GIB
    assert not place(request, (gpu(1, 80),), [], quota).slices


def test_a_reservation_is_kept_for_those_who_name_it_until_it_ends() -> None:
    host = Host(reservations=(Reservation("night", "GPU-0", 60 * GIB, 50, 1000),), now_ns=999)
    one = TWO[:1]
    assert rejects(place(asking(30), one, [], POLICY, host)) == ["CardInsufficientMemory"]
    assert "61440 MiB and 50 percent are reserved" in place(asking(30), one, [], POLICY, host).candidates[0].detail
    assert rejects(place(asking(8, cores=60), one, [], POLICY, host)) == ["CardInsufficientCore"]
    assert place(asking(30, reservation="night"), one, [], POLICY, host).slices
    half = [of(0, 30, reservation="night")]  # it is counted as given out, and no longer as reserved
    assert place(asking(20), one, half, POLICY, host).slices
    assert not place(asking(21), one, half, POLICY, host).slices
    late = replace(host, now_ns=1000)
    assert place(asking(80), one, [], POLICY, late).slices
    with pytest.raises(PlacementError, match="'night'") as caught:
        place(asking(1, reservation="night"), one, [], POLICY, late)
    assert caught.value.code == "VGPU-PLC-004"


def test_placement_loads_the_rest_only_when_it_is_needed() -> None:
    code = "import sys; import oci_hook.placement; sys.exit('oci_hook.policies_more' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
