"""What the driver says against what the containers say: noticed when it lasts, and only then."""

from __future__ import annotations

from tests.vgpu.monitor.samples import GIB, container, process, sample, use
from vgpu.monitor.sample import ContainerSample, ProcessTruth, SliceSample
from vgpu.monitor.truth import (
    ALLOWANCE_BYTES,
    BYPASS,
    CLEAR_AFTER,
    INACTIVE,
    RAISE_AFTER,
    UNACCOUNTED,
    Key,
    Track,
    raised,
    step,
    suspicions,
)


def charged(count: int) -> tuple[SliceSample, ...]:
    return (SliceSample(0, "GPU-0", 8 * GIB, 30, use(used_bytes=count)),)


def kinds(one: ContainerSample, *processes: ProcessTruth) -> set[str]:
    return {key.kind for key in suspicions(sample(one, processes=processes))}


def test_accounts_that_agree_are_no_finding() -> None:
    assert kinds(container(slices=charged(GIB)), process()) == set()
    assert kinds(container(slices=charged(0))) == set()
    assert kinds(container(slices=charged(GIB)), process(memory_bytes=GIB + ALLOWANCE_BYTES)) == set()
    assert kinds(container(slices=charged(2 * GIB)), process()) == set()  # the dead are charged until room is needed


def test_memory_above_the_charge_is_unaccounted() -> None:
    assert kinds(container(slices=charged(GIB)), process(memory_bytes=GIB + ALLOWANCE_BYTES + 1)) == {UNACCOUNTED}
    two = (process(), process(pid=101, inner_pid=2, memory_bytes=2 * ALLOWANCE_BYTES + 1))
    assert kinds(container(slices=charged(GIB), pids=frozenset({1, 2})), *two) == {UNACCOUNTED}


def test_use_of_the_gpu_without_the_wrapper_is_not_active() -> None:
    assert kinds(container(armed=False, pids=frozenset()), process()) == {INACTIVE}
    assert kinds(container(armed=False), process(memory_bytes=0, sm_percent=3.0)) == {INACTIVE}
    assert kinds(container(armed=False), process(memory_bytes=0)) == set()  # listed, but it does nothing


def test_a_process_without_a_place_in_the_account_is_a_suspected_bypass() -> None:
    armed = container(slices=charged(2 * GIB))
    assert kinds(armed, process(), process(pid=101, inner_pid=2)) == {BYPASS}
    assert kinds(armed, process(), process(pid=101, inner_pid=0)) == set()  # it has ended meanwhile
    assert kinds(armed, process(), process("another", pid=101, inner_pid=2)) == set()


def test_what_cannot_be_read_is_no_finding() -> None:
    unreadable = (SliceSample(0, "GPU-0", 8 * GIB, 30, None),)
    assert kinds(container(slices=unreadable, armed=False), process()) == set()
    assert kinds(container(slices=charged(GIB)), process(memory_bytes=None, sm_percent=None)) == set()


def test_a_finding_is_raised_when_it_lasts_and_dropped_when_it_has_been_good() -> None:
    key = Key("job", 0, BYPASS)
    tracks: dict[Key, Track] = {}
    held = []
    for bad in [True] * RAISE_AFTER + [False] * CLEAR_AFTER:
        tracks = step(tracks, {key: "pid 1"} if bad else {}, ["job"])
        held.append(raised(tracks) == {("job", 0): frozenset({BYPASS})})
    assert held == [False] * (RAISE_AFTER - 1) + [True] * CLEAR_AFTER + [False]
    assert tracks == {}


def test_one_bad_look_among_good_ones_is_never_raised() -> None:
    key = Key("job", 0, UNACCOUNTED)
    tracks: dict[Key, Track] = {}
    for number in range(30):
        tracks = step(tracks, {key: ""} if number % RAISE_AFTER else {}, ["job"])
        assert raised(tracks) == {}


def test_one_good_look_does_not_drop_it_and_the_end_of_the_container_does() -> None:
    key = Key("job", 0, INACTIVE)
    tracks = {key: Track(bad=9, raised=True)}
    tracks = step(step(tracks, {}, ["job"]), {key: "again"}, ["job"])
    assert (tracks[key].raised, tracks[key].detail) == (True, "again")
    assert step(tracks, {key: "again"}, []) == {}
