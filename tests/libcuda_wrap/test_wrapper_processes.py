"""Many processes share one quota: none escapes it, and the dead give back what they held."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from libcuda_wrap.sim import create
from libcuda_wrap.toolchain import PACKAGE, WARNINGS
from tests.libcuda_wrap.wrapped import C_TESTS, GIB, MIB, OK, OUT_OF_MEMORY, Box, Client, part

# one bit for the tag's sequence number: it comes round at once, as 1023 operations of another process would make it
SEQUENCES = {"short": ["-DVGW_SEQ_WORD=1u"], "as built": []}


@pytest.mark.parametrize("flags", SEQUENCES.values(), ids=SEQUENCES)
def test_the_ledger_is_exact_wherever_a_process_dies(tmp_path: Path, flags: list[str]) -> None:
    model = tmp_path / "model"
    command = ["gcc", "-O2", "-std=gnu11", *WARNINGS, "-Wno-missing-prototypes", "-D_GNU_SOURCE", *flags]
    command += [f"-I{PACKAGE / 'include'}", f"-I{PACKAGE / 'src'}", str(C_TESTS / "ledger_model.c"), "-o", str(model)]
    subprocess.run(command, check=True, timeout=60)
    done = subprocess.run([model, "1", "8000"], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "ok 8000\n"


@pytest.mark.parametrize("left_over", [0, 1, 4095])
def test_processes_that_race_get_exactly_the_quota(plain_box: Box, left_over: int) -> None:
    chunk, chunks = 4096, 1001
    plain_box.fresh(part(0, chunk * chunks + left_over))
    clients = [plain_box.client().ready() for _ in range(8)]
    for client in clients:
        client.tell(f"fill {chunk}")
    answers = [client.process.stdout.readline().split() for client in clients if client.process.stdout]
    assert [answer[0] for answer in answers] == [str(OUT_OF_MEMORY)] * 8
    assert sum(int(answer[1]) for answer in answers) == chunks
    assert plain_box.used() == chunk * chunks


def test_killed_processes_leave_nothing_and_nothing_more_gets_through(plain_box: Box) -> None:
    quota = 6 * MIB
    plain_box.fresh(part(0, quota))
    chance = random.Random(20261124)
    clients: list[Client] = []
    killed, until = 0, time.monotonic() + 6
    while time.monotonic() < until:
        while len(clients) < 5:
            clients.append(plain_box.client().ready())
            clients[-1].tell(f"storm {chance.randrange(1 << 30)} {MIB}")
        time.sleep(chance.random() * 0.02)
        clients.pop(chance.randrange(len(clients))).kill()
        killed += 1
        usage = plain_box.usage()
        assert usage.gpus[0].used_bytes <= quota
        assert usage.gpus[0].peak_bytes <= quota
    for client in clients:
        client.kill()
    assert killed > 40
    last = plain_box.client().ready()
    assert last.ask("info") == (OK, quota, quota)  # the dead are not counted
    assert plain_box.used() == 0
    assert last.ask(f"alloc linear 0 {quota}")[0] == OK
    assert last.ask("alloc linear 1 1")[0] == OUT_OF_MEMORY
    assert create.read_state(plain_box.folder / "sim").gpus[0].used_bytes >= quota


def test_who_needs_room_takes_it_from_the_dead(plain_box: Box) -> None:
    plain_box.fresh(part(0, GIB))
    living, dying = plain_box.client().ready(), plain_box.client().ready()
    assert living.ask("alloc linear 0 10")[0] == OK
    assert dying.ask(f"alloc linear 0 {GIB - 10}")[0] == OK
    assert living.ask("alloc linear 1 1")[0] == OUT_OF_MEMORY
    dying.kill()
    usage = plain_box.usage()
    assert (usage.gpus[0].used_bytes, usage.gpus[0].ended_bytes) == (GIB, GIB - 10)
    assert sorted(process.alive for process in usage.processes) == [False, True]
    assert living.ask(f"alloc linear 1 {GIB - 10}")[0] == OK
    assert plain_box.used() == GIB


def test_memory_questions_do_not_count_the_dead_for_long(plain_box: Box) -> None:
    plain_box.fresh(part(0, GIB))
    living, dying = plain_box.client().ready(), plain_box.client().ready()
    assert dying.ask("alloc linear 0 4096")[0] == OK
    assert living.ask("info")[1] == GIB - 4096
    dying.kill()
    time.sleep(0.02)
    assert living.ask("info")[1] == GIB


@pytest.mark.parametrize("kind", ["fork", "clone"])
def test_a_child_has_a_slot_of_its_own_and_outlives_its_parent(plain_box: Box, kind: str) -> None:
    plain_box.fresh(part(0, GIB))
    parent = plain_box.client().ready()
    assert parent.ask("alloc linear 0 100")[0] == OK
    answer = parent.ask(f"child {kind} 50 0")
    assert plain_box.used() <= 150
    assert parent.ask("free linear 0")[0] == OK  # the child's end has not taken the parent's slot
    if answer[0] == OK:
        assert plain_box.usage().gpus[0].ended_bytes == plain_box.used() == 50
    assert parent.ask("alloc linear 0 100")[0] == OK
    parent.tell(f"child {kind} 50 1")
    assert parent.process.stdout
    child = int(parent.process.stdout.readline().split()[1])
    parent.process.kill()  # its child lives on, and must not hide that it has ended
    parent.process.wait(timeout=10)
    time.sleep(0.05)
    ended = [process for process in plain_box.usage().processes if process.pid == parent.process.pid]
    assert [process.alive for process in ended] == [False]
    os.kill(child, signal.SIGKILL)


def test_closing_unknown_descriptors_does_not_lose_the_slot(plain_box: Box) -> None:
    plain_box.fresh(part(0, GIB))
    client, other = plain_box.client().ready(), plain_box.client().ready()
    assert client.ask(f"alloc linear 0 {GIB}")[0] == OK
    assert client.ask("closeall")[0] == OK
    assert other.ask("alloc linear 0 1")[0] == OUT_OF_MEMORY
    assert plain_box.used() == GIB
    assert client.ask("free linear 0")[0] == OK
    assert other.ask("alloc linear 0 1")[0] == OK


def test_a_program_that_execs_another_has_ended(plain_box: Box) -> None:
    plain_box.fresh(part(0, GIB))
    client, other = plain_box.client().ready(), plain_box.client().ready()
    assert client.ask(f"alloc linear 0 {GIB}")[0] == OK
    client.tell("exec")
    assert client.words("hello") == ["hello"]  # it is cat now, with the same pid
    assert other.ask(f"alloc linear 0 {GIB}")[0] == OK


def test_slots_are_used_again(plain_box: Box) -> None:
    plain_box.fresh(part(0, GIB))
    for _ in range(5):
        client = plain_box.client().ready()
        assert client.ask("alloc linear 0 10")[0] == OK
        assert client.end() == ""
    assert plain_box.client().ready().ask("alloc linear 0 10")[0] == OK
    assert len(plain_box.usage().processes) == 1
    assert plain_box.used() == 10


def test_threads_share_a_slot(plain_box: Box, tmp_path: Path, driver: Path) -> None:
    plain_box.fresh(part(0, 64 * MIB))
    flags = [f"-I{PACKAGE / 'include'}", f"-I{PACKAGE / 'generated'}", f"-L{driver}", "-l:libcuda.so.1", "-pthread"]
    source = str(C_TESTS / "threads.c")
    subprocess.run(["gcc", "-O1", "-std=gnu11", source, "-o", tmp_path / "threads", *flags], check=True, timeout=60)
    done = plain_box.run([str(tmp_path / "threads"), str(64 * MIB)])
    assert (done.returncode, done.stdout) == (0, "ok\n"), done
    assert plain_box.usage().gpus[0].peak_bytes <= 64 * MIB
