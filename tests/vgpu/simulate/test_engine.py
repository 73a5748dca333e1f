"""The simulation: the index answers as the live placement does, and the run does what the docs say."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from oci_hook.records import Ask
from vgpu.simulate import results
from vgpu.simulate.command import compared
from vgpu.simulate.engine import Outcome, simulate
from vgpu.simulate.fleet import POLICIES, Fleet
from vgpu.simulate.model import Cluster, Job, NodeKind, Shape

GIB = 1 << 30
SMALL = NodeKind(3, "A100", 4, 80 * GIB)
OTHER = NodeKind(2, "T4", 2, 16 * GIB)
JOINED = NodeKind(2, "A100", 4, 80 * GIB, nvlink=2)
ONE_GPU = Cluster((NodeKind(1, "A100", 1, 80 * GIB),))
WHOLE = Shape(Ask(memory_bytes=80 * GIB, cores_percent=100))
HALF = Shape(Ask(memory_bytes=40 * GIB, cores_percent=50))


def shapes(chance: random.Random) -> list[Shape]:
    some = [Shape(Ask(memory_percent=50, cores_percent=50), 1, ("t4",)), Shape(Ask(memory_percent=100), 4)]
    for _ in range(6):
        ask = Ask(
            memory_bytes=chance.choice([1, 5, 10, 16, 40]) * GIB, cores_percent=chance.choice([0, 10, 30, 50, 100])
        )
        some.append(Shape(ask, chance.choice([1, 1, 1, 2, 3])))
    return some


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("overcommit", [1.0, 1.5])
def test_the_index_answers_as_asking_every_node_does(policy: str, seed: int, overcommit: float) -> None:
    chance = random.Random(seed)
    weights = (("spread", 0.5), ("topology", 0.5))
    fleet = Fleet(Cluster((SMALL, OTHER, JOINED), overcommit, overcommit, weights), policy)
    asked = shapes(chance)
    running = []
    found = 0
    for _ in range(120):
        if running and chance.random() < 0.4:
            fleet.give_back(*running.pop(chance.randrange(len(running))))
            continue
        shape = chance.choice(asked)
        answer = fleet.find(shape)
        assert answer == fleet.naive_find(shape)
        if answer:
            found += 1
            fleet.take(*answer)
            running.append(answer)
    assert found > 20


def test_the_index_asks_the_live_placement_less_often_than_there_are_gpus() -> None:
    fleet = Fleet(Cluster((NodeKind(100, "A100", 8, 80 * GIB),)), "binpack")
    for _ in range(500):
        answer = fleet.find(HALF)
        assert answer is not None
        fleet.take(*answer)
    assert fleet.live_calls < 10


def job(name: str, arrival: int, duration: int, shape: Shape = WHOLE, **more: object) -> Job:
    return Job(name, str(more.pop("owner", "u")), arrival, duration, shape, **more)  # type: ignore[arg-type]


def run(*jobs: Job, cluster: Cluster = ONE_GPU, preempt: bool = False) -> Outcome:
    return simulate(cluster, jobs, "binpack", preempt=preempt)


def test_who_waits_starts_when_room_is_made() -> None:
    assert run(job("a", 0, 10), job("b", 3, 5), job("c", 4, 5)).starts == [0, 10, 15]


def test_priority_goes_first_among_those_who_wait() -> None:
    assert run(job("a", 0, 10), job("b", 1, 5), job("c", 2, 5, priority="high")).starts == [0, 15, 10]


def test_a_small_job_passes_one_that_does_not_fit() -> None:
    assert run(job("a", 0, 10, HALF), job("b", 1, 5), job("c", 2, 5, HALF)).starts == [0, 10, 2]


def test_instances_start_together_or_not_at_all() -> None:
    two = Cluster((NodeKind(2, "A100", 1, 80 * GIB),))
    outcome = run(job("a", 0, 10), job("b", 1, 5, instances=2), job("c", 2, 4), cluster=two)
    assert outcome.starts == [0, 10, 2]
    assert outcome.meter.used_bytes == 0


def test_preemption_ends_lower_priority_which_starts_again() -> None:
    jobs = job("a", 0, 10, priority="low"), job("b", 4, 5, priority="high")
    outcome = run(*jobs, preempt=True)
    assert (outcome.starts, outcome.preempted, outcome.end_s) == ([9, 4], 1, 19)
    assert run(*jobs).starts == [0, 10]


def test_preemption_ends_as_few_as_it_can() -> None:
    two = Cluster((NodeKind(2, "A100", 1, 80 * GIB),))
    low = {"priority": "low"}
    jobs = (
        job("a", 0, 50, HALF, **low),
        job("b", 0, 50, HALF, **low),
        job("c", 0, 50, **low),
        job("d", 1, 5, priority="high"),
    )
    outcome = run(*jobs, cluster=two, preempt=True)
    assert (outcome.preempted, outcome.starts) == (1, [0, 0, 6, 1])


def test_equal_priority_is_not_preempted() -> None:
    assert run(job("a", 0, 10), job("b", 1, 5), preempt=True).preempted == 0


def test_a_job_that_fits_nowhere_never_starts() -> None:
    outcome = run(job("a", 0, 5), job("b", 1, 5, Shape(Ask(memory_bytes=81 * GIB))))
    assert outcome.starts == [0, None]


def test_the_figures_of_a_case_that_can_be_done_by_hand() -> None:
    jobs = (job("a", 0, 10, HALF, owner="x"), job("b", 0, 10, owner="y"))
    rows, _ = compared(ONE_GPU, jobs, ("binpack", "spread"))
    row = rows[0]
    assert (row["placed"], row["at_once"], row["wait_mean_s"], row["wait_p99_s"], row["end_s"]) == (1, 0.5, 5, 10, 20)
    assert (row["memory_used"], row["cores_used"], row["blocked_by_fragmentation"]) == (0.75, 0.75, 0)
    assert row["bound_of_end"] == 0.75  # 15 GPU-seconds of work on one GPU, done at 20
    assert row["fairness"] == 0.9  # x at speed 1, y at 10/20: 1.5² / (2 · 1.25)


def test_stranded_and_blocked_by_hand() -> None:
    two = Cluster((NodeKind(2, "A100", 1, 80 * GIB),))
    all_cores = Shape(Ask(memory_bytes=20 * GIB, cores_percent=100))
    all_memory = Shape(Ask(memory_bytes=80 * GIB, cores_percent=20))
    last = Shape(Ask(memory_bytes=60 * GIB, cores_percent=80))
    jobs = (job("a", 0, 10, all_cores), job("b", 0, 10, all_memory), job("c", 0, 10, last))
    outcome = run(*jobs, cluster=two)
    assert outcome.blocked == 1  # 60 GiB and 80 percent are free, but not on one GPU
    row = results.summary(outcome, jobs, 0)
    # 10 of 20 seconds: 60 of 160 GiB on the GPU without cores, 80 of 200 percent on the one without memory
    assert (row["memory_stranded"], row["cores_stranded"]) == (0.1875, 0.2)


def test_no_run_ends_before_the_bound() -> None:
    chance = random.Random(1)
    jobs = tuple(job(str(n), n, chance.randint(1, 60), chance.choice([WHOLE, HALF])) for n in range(80))
    cluster = replace(ONE_GPU, weights=(("binpack", 1.0),))
    for policy in POLICIES:
        rows, _ = compared(cluster, jobs, (policy,))
        assert 0.5 < rows[0]["bound_of_end"] <= 1


def test_topology_takes_gpus_that_nvlink_joins() -> None:
    """One GPU of the first pair is taken: two together are those of the second pair, which binpack does not see."""
    node = Cluster((NodeKind(1, "A100", 4, 80 * GIB, nvlink=2),))
    taken = {}
    for policy in ("binpack", "topology"):
        fleet = Fleet(node, policy)
        first = fleet.find(HALF)
        assert first is not None
        fleet.take(*first)
        pair = fleet.find(Shape(HALF.ask, 2))
        assert pair is not None
        taken[policy] = ([gpu for gpu, _, _ in first[1].slices], sorted(gpu for gpu, _, _ in pair[1].slices))
    assert taken["topology"][1] in ([0, 1], [2, 3])
    [alone] = taken["binpack"][0]
    assert alone in taken["binpack"][1]
