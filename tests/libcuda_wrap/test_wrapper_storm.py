"""64 processes that allocate, free, fork, exec and are killed, on two GPUs; `make storm` does the same for minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.libcuda_wrap.storm import Storm, build, initialise_at_once
from tests.libcuda_wrap.wrapped import MIB, OK, OUT_OF_MEMORY, Box, part

SECONDS, PROCESSES = 8, 64


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, driver: Path) -> Path:
    return build(tmp_path_factory.mktemp("storm"), driver)


def test_a_storm_is_never_a_byte_over_and_ends_with_equal_books(plain_box: Box, program: Path, tmp_path: Path) -> None:
    quotas = [24 * MIB + 1, 16 * MIB + 4097]
    plain_box.fresh(*(part(number, quota) for number, quota in enumerate(quotas)))
    storm = Storm(plain_box, program, tmp_path, PROCESSES, quotas, largest=2 * MIB)
    storm.start()
    try:
        for _ in range(5):  # on a busy machine eight seconds show little
            storm.blow(SECONDS)
            if storm.seen.samples >= 3 and storm.seen.killed >= 20:
                break
        assert storm.waits_for_progress(30) == []
        held = storm.hold_still()
    finally:
        storm.end()
    seen = storm.seen
    assert seen.over == []
    assert seen.samples >= 3 and seen.killed >= 20 and seen.operations > 10_000, seen
    assert all(most > quota // 2 for most, quota in zip(seen.most_bytes, quotas, strict=True)), seen  # it was full
    assert len(held) == PROCESSES and sum(sum(truth) for _, truth in held.values()) > 0
    assert {pid: pair for pid, pair in held.items() if pair[0] != pair[1]} == {}
    last = plain_box.client().ready()
    assert last.ask("info") == (OK, quotas[0], quotas[0])
    assert (plain_box.used(0), plain_box.used(1)) == (0, 0)
    assert last.ask(f"alloc linear 0 {quotas[0]}")[0] == OK
    assert last.ask("alloc linear 1 1")[0] == OUT_OF_MEMORY


@pytest.mark.slow
def test_200_processes_can_begin_at_once(plain_box: Box, program: Path, driver: Path) -> None:
    plain_box.fresh(part(0, 64 * MIB), part(1, 64 * MIB))
    wrapped = initialise_at_once(program, 200, plain_box.environment())
    direct = initialise_at_once(program, 200, {**plain_box.environment(), "LD_LIBRARY_PATH": str(driver)})
    assert wrapped < 10 * direct + 5  # the benchmark has the figures; this is against a quadratic surprise
