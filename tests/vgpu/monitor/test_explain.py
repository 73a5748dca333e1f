"""Where the time went, on histories made up so that the answer is known."""

from __future__ import annotations

import pytest

from oci_hook.errors import HostError
from tests.vgpu.monitor.samples import row
from vgpu.monitor.explain import explain
from vgpu.monitor.explain_command import describe, resolve, text
from vgpu.monitor.report import HOST, MEMORY, NEIGHBOURS, NOTHING, OWN, PARTS, QUOTA, Report
from vgpu.monitor.rows import REST, Row

GIB, SECOND = 1 << 30, 1_000_000_000
STEP, LOOKS = 5.0, 61


def load(
    name: str, *, busy: float = 0.0, throttled: float = 0.0, sm: float | None = None, cores: int = 100,
    refused: int = 0, step: float = STEP, looks: int = LOOKS,
) -> list[Row]:  # fmt: skip
    """A container that does the same all the time. busy, throttled: seconds a second; sm: the driver's share of it."""
    return [
        row(
            name, number * step, cores_percent=cores, busy_ns=int(busy * number * step * SECOND), peak_bytes=7 * GIB,
            throttled_ns=int(throttled * number * step * SECOND), denied=(min(refused, number), 0, 0, 0),
            sm_percent=None if sm is None else 100 * sm,
        )
        for number in range(looks)
    ]  # fmt: skip


def gpu(percent: float | None, *, others: float | None = 0.0) -> list[Row]:
    """The GPU's own rows. others: share of processes that are in no container."""
    share = None if others is None else 100 * others
    return [row(REST, number * STEP, gpu_percent=percent, sm_percent=share) for number in range(LOOKS)]


def report(*histories: list[Row], container: str = "job") -> Report:
    rows = sorted((one for history in histories for one in history), key=lambda one: one.time_ns)
    (found,) = explain(rows, container, 600)
    assert sum(found.parts.values()) == pytest.approx(found.seconds)  # all of the time is somewhere, and only once
    return found


def shares(found: Report) -> dict[str, int]:
    return {part: round(100 * found.share(part)) for part in PARTS}


def test_a_container_that_computes_all_the_time_limits_itself() -> None:
    found = report(load("job", busy=0.95, sm=0.95), gpu(95))
    assert shares(found) == {OWN: 95, QUOTA: 0, NEIGHBOURS: 0, HOST: 5}
    assert (found.verdict, found.confidence) == (OWN, "high")
    assert "own compute fills 95 %" in found.advice


def test_a_container_held_by_its_quota_is_told_which_share_would_do() -> None:
    found = report(load("job", busy=0.30, sm=0.30, throttled=0.34, cores=30), gpu(30))
    assert shares(found) == {OWN: 30, QUOTA: 34, NEIGHBOURS: 0, HOST: 36}
    assert (found.verdict, found.confidence) == (QUOTA, "high")
    # 30 of the 66 parts of the time in which it did not wait are 45.5 %, and advice comes in steps of five
    assert "100 % of the wait is its 30 % share: 50 would remove it (vgpu set job --cores 50)." in found.advice


def test_a_share_that_the_gpu_does_not_have_is_not_promised() -> None:
    neighbour = load("other", busy=0.6, sm=0.6, cores=60)
    found = report(load("job", busy=0.30, sm=0.30, throttled=0.5, cores=30), neighbour, gpu(85))
    assert found.verdict == QUOTA
    assert "60 would remove it, but GPU 0 has only 10 % left" in found.advice


def test_a_container_held_by_a_neighbour_is_told_its_name() -> None:
    """Its launches take 80 % of the time as measured, of which the driver gave it 40: the rest is others' slices."""
    found = report(
        load("job", busy=0.8, sm=0.4), load("hog", busy=0.9, sm=0.5), load("small", busy=0.1, sm=0.1), gpu(100)
    )
    assert shares(found)[OWN] == 40
    assert shares(found)[NEIGHBOURS] == 60  # 40 stretched, 20 in the queue of a full GPU
    assert (found.verdict, next(iter(found.blame))) == (NEIGHBOURS, "hog")
    assert found.blame["hog"] / found.blame["small"] == pytest.approx(5)
    assert "83 % of that hog, which has no limit of its own" in found.advice


def test_processes_outside_of_slices_are_named_as_such() -> None:
    found = report(load("job", busy=0.7, sm=0.3), gpu(100, others=0.7))
    assert found.verdict == NEIGHBOURS
    assert list(found.blame) == ["(processes in no slice)"]
    assert "find out what that is" in found.advice


def test_what_was_measured_is_not_stretched_by_neighbours_that_did_nothing() -> None:
    found = report(load("job", busy=0.8, sm=0.1), load("idle", sm=0.0), gpu(80))
    assert shares(found) == {OWN: 80, QUOTA: 0, NEIGHBOURS: 0, HOST: 20}


def test_without_the_drivers_word_the_part_of_neighbours_is_inferred_and_said_so() -> None:
    found = report(load("job", busy=0.8), load("hog", busy=0.8), gpu(100, others=None))
    assert shares(found)[OWN] == 50
    assert found.verdict == NEIGHBOURS
    assert found.confidence == "medium"
    assert any("inferred" in doubt for doubt in found.doubts)
    assert "how much processes outside of slices computed" in found.unknown


def test_waiting_in_a_full_gpus_queue_and_idling_are_not_told_apart() -> None:
    found = report(load("job", busy=0.2, sm=0.2), load("hog", busy=0.8, sm=0.8), gpu(100))
    assert found.verdict == NEIGHBOURS
    assert any("look the same" in doubt for doubt in found.doubts)
    assert found.confidence == "medium"


def test_a_container_that_does_nothing_does_not_wait_for_a_full_gpu() -> None:
    found = report(load("job", sm=0.0), load("hog", busy=1.0, sm=1.0), gpu(100))
    assert shares(found) == {OWN: 0, QUOTA: 0, NEIGHBOURS: 0, HOST: 100}
    assert found.verdict == HOST


def test_refused_allocations_are_the_verdict_where_nothing_waits_and_a_remark_elsewhere() -> None:
    found = report(load("job", busy=0.1, sm=0.1, refused=3), gpu(10))
    assert (found.verdict, found.denied) == (MEMORY, {"quota": 3})
    assert "3 allocations were refused at its quota of 8 GiB (peak 7 GiB)" in found.advice
    found = report(load("job", busy=0.3, sm=0.3, throttled=0.5, cores=30, refused=1), gpu(30))
    assert found.verdict == QUOTA
    assert "Also: 1 allocation was refused" in found.advice


def test_several_threads_that_wait_at_once_do_not_make_more_time_than_there_is() -> None:
    found = report(load("job", busy=0.3, sm=0.3, throttled=3.5, cores=30), gpu(30))
    assert shares(found) == {OWN: 30, QUOTA: 70, NEIGHBOURS: 0, HOST: 0}
    assert any("others of its own" in doubt for doubt in found.doubts)


def test_counters_of_a_hostile_container_do_not_break_the_sum() -> None:
    rows = load("job", busy=0.3, sm=0.3)
    rows[20] = row("job", 20 * STEP, busy_ns=2**64 - 1, throttled_ns=2**64 - 1, sm_percent=30.0)
    found = report(rows, gpu(30))
    assert found.looks == LOOKS - 2  # the jump up counts once, cut to the time that passed; the way back not at all
    assert 0 < found.share(OWN) <= 1


def test_a_time_in_which_the_monitor_did_not_run_is_not_watched() -> None:
    early = load("job", busy=0.5, sm=0.5, looks=20)
    late = [row("job", 5000 + number * STEP, busy_ns=9999 * SECOND, sm_percent=0.0) for number in range(20)]
    found = report(early, late)
    assert (found.looks, found.seconds) == (38, pytest.approx(190))


def test_little_history_is_little_confidence() -> None:
    found = report(load("job", busy=0.9, sm=0.9, looks=3))
    assert found.confidence == "low"
    single = report(load("job", looks=1))
    assert (single.verdict, single.looks) == (NOTHING, 0)
    assert "look at least twice" in single.advice


def test_a_container_with_findings_is_not_judged_with_confidence() -> None:
    rows = load("job", busy=0.9, sm=0.9)
    rows[-1] = row("job", (LOOKS - 1) * STEP, busy_ns=int(0.9 * (LOOKS - 1) * STEP * SECOND), sm_percent=90.0,
                   findings=frozenset({"bypass-suspected"}))  # fmt: skip
    assert report(rows, gpu(90)).confidence == "low"


def test_each_gpu_has_a_report_of_its_own() -> None:
    second = [row("job", number * STEP, gpu=1) for number in range(LOOKS)]
    assert [found.gpu for found in explain([*load("job", sm=0.5), *second], "job", 60)] == [0, 1]


def test_the_text_fits_a_terminal_and_says_what_is_in_json() -> None:
    found = report(load("job", busy=0.8, sm=0.4, refused=2), load("hog", busy=0.9, sm=0.6), gpu(100))
    lines = text(found, simulated=True)
    assert max(map(len, lines)) <= 80
    shown = "\n".join(lines)
    for word in (
        "job",
        "simulated",
        "hog: ",
        "Limited by: its neighbours.",
        "Confidence: ",
        "allocations refused (quota): 2",
    ):
        assert word in shown
    told = describe(found)
    assert told["verdict"] == NEIGHBOURS
    assert sum(told["seconds"].values()) == pytest.approx(told["watched_s"])


def test_a_container_is_named_by_name_id_or_its_beginning() -> None:
    rows = [
        row("abc1", 1, name="job"), row("abc2", 2, name="job"), row("xyz", 3, name="other"), row(REST, 3),
    ]  # fmt: skip
    assert resolve(rows, "job") == "abc2"  # the newer one of that name
    assert resolve(rows, "abc1") == "abc1"
    assert resolve(rows, "x") == "xyz"
    for asked, words in (
        ("abc", "begins 2 containers' ids"),
        ("nope", "choose one of: job, other"),
        ("", "no container"),
    ):
        with pytest.raises(HostError) as caught:
            resolve(rows, asked)
        assert caught.value.code == "VGPU-MON-003"
        assert words in caught.value.line()
