"""Many at once, and death at any moment: never more is given out than there is, and nothing is lost for good."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import bundle, leftovers
from tests.harness.bundle import Container
from tests.harness.installed import Vgpu

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
GIB = 1 << 30
EVERYTHING = {"vgpu.memory": "100%", "vgpu.count": "2"}  # fits only when nothing at all is given out


@pytest.mark.timeout(300)  # 50 starts on two cores
def test_fifty_at_once_on_two_gpus(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    """20 GiB each on 2 x 80 GiB: exactly eight fit, 42 are told why not."""
    boxes = [
        bundle.make(vgpu.runtime, tmp_path / "b", c_tree, ["sleep", "300"], annotations={"vgpu.memory": "20GiB"})
        for _ in range(50)
    ]
    try:
        starts = [(box, box.spawn_create()) for box in boxes]
        while any(start.poll() is None for _, start in starts):
            with contextlib.suppress(FileNotFoundError):  # an allocation that ends while we read
                assert all(given <= 80 * GIB for given in vgpu.given_out().values())
            time.sleep(0.02)
        codes = [start.returncode for _, start in starts]
        assert sorted(codes) == [0] * 8 + [4] * 42
        assert vgpu.given_out() == {0: 80 * GIB, 1: 80 * GIB}
        refused = [box for box, start in starts if start.returncode]
        assert all((box.folder / "create.err").read_text().count("VGPU-PLC-001") == 1 for box in refused)
        assert not any(box.state() for box in refused)
    finally:
        for box in boxes:
            box.delete()


def children(pid: int) -> Iterator[int]:
    """All descendants of a process of ours, nearest first."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from children(child)


def kill_starter(box: Container, starter: int) -> None:
    """The process that is launcher, then runc."""
    bundle.kill(starter)


def kill_shim(box: Container, starter: int) -> None:
    """The shim, which later is the hook that waits, if there is one at this moment: it is no child of the launcher."""
    for words, pid in leftovers.processes(box.folder.parent):
        if "vgpu_shim" in words and box.id in words:
            bundle.kill(pid)


def kill_children(box: Container, starter: int) -> None:
    """runc's children: the container's first process, or what becomes it."""
    for pid in list(children(starter)):
        bundle.kill(pid)


VICTIMS: list[Callable[[Container, int], None]] = [kill_starter, kill_shim, kill_children]


@pytest.mark.timeout(600)  # 200 starts that are killed, and 200 that must work
def test_kill_at_any_moment_and_the_next_start_gets_everything(
    vgpu: Vgpu, c_tree: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Each round starts a container on all of both GPUs and kills a part of it at a random moment. The next start needs
    all of both GPUs again: whatever the dead one kept would be missed at once."""
    seed = int(os.environ.get("VGPU_TEST_SEED", time.time_ns() % 100_000))
    chance = random.Random(seed)
    rounds = 200 if "runc" in request.node.name else 50
    killed_before_it_was_up = 0
    for number in range(rounds):
        victim = chance.choice(VICTIMS)
        moment, lost_poststop = chance.uniform(0, 0.12), chance.random() < 0.5
        where = f"seed {seed}, round {number}, {victim.__name__} after {moment * 1000:.1f} ms"
        with bundle.container(vgpu.runtime, tmp_path / "b", c_tree, ["sleep", "60"], annotations=EVERYTHING) as box:
            start = box.spawn_create()
            time.sleep(moment)
            victim(box, start.pid)
            killed_before_it_was_up += start.wait(30) != 0
            state = box.state()
            if state is not None and lost_poststop:
                kill_first_process(state["pid"])
            else:
                box.delete()
                kill_adopted(box)
            with bundle.container(vgpu.runtime, tmp_path / "b", c_tree, ["true"], annotations=EVERYTHING) as after:
                result = after.run(30)
                assert result.code == 0, f"{where}: {result}"
    leftovers.unmount_runcs_own(tmp_path)
    assert killed_before_it_was_up > rounds // 10, "the kills came too late to mean anything"


def kill_adopted(box: Container) -> None:
    """When crun dies before it has written its state, its first process waits for ever for a `start`, and no
    `delete` finds it. An engine, its parent by then as we are, kills it; until then its slice is rightly given out."""
    for pid in children(os.getpid()):
        with contextlib.suppress(OSError):
            if box.id.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                kill_first_process(pid)


def kill_first_process(pid: int) -> None:
    """As a power cut for this one container: no delete, no poststop. pid: as the runtime's state has it, 0: ended;
    a runtime that was killed may not have written its pid file."""
    if pid:
        bundle.kill(pid)
        with contextlib.suppress(ChildProcessError):  # its parent, the runtime, may not have gone yet
            os.waitpid(pid, 0)


@pytest.mark.timeout(120)
def test_killed_programs_release_on_delete(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    """kill -9 of the container's first process while it holds memory of the GPU: delete gives the slice back."""
    for _ in range(5):
        args = ["cuda_client", "hold", "60"]
        with bundle.container(vgpu.runtime, tmp_path / "b", c_tree, args, annotations=EVERYTHING) as box:
            assert box.create().code == 0
            box.start()
            time.sleep(0.1)
            bundle.kill(box.pid)
            assert box.wait() == 128 + 9
        assert vgpu.containers() == []
