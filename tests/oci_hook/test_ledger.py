"""The folder is the ledger: never over, exact after any death, and closed where it cannot be understood."""

from __future__ import annotations

import os
import random
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oci_hook import ledger
from oci_hook.errors import HostError
from oci_hook.placement import place
from oci_hook.quota_file import USAGE_BYTES, quota, usage_header
from oci_hook.records import Allocation, Ask, Gpu, Mount, Placement, Plan, Policy, Process, Request, Slice
from oci_hook.values import replace

GIB = 1 << 30
POLICY = Policy(runtime="/usr/bin/runc", prefix="/opt/vgpu")
GPUS = tuple(Gpu(index, f"GPU-{index}", "Simulated GPU", 80 * GIB, "", index) for index in range(2))
PLAN = Plan(mounts=(Mount("/a", "box", "usage", (), True),), libraries=())
NOBODY = Process(pid=1 << 22, start_ticks=1)  # no pid is that high


def myself() -> Process:
    found = ledger.process(os.getpid())
    assert found is not None
    return found


def entry(container: str, creator: Process | None = None, placement: Placement | None = None) -> Allocation:
    placement = placement or Placement("binpack", (Slice(0, "GPU-0", 8 * GIB, 0),), ())
    request = Request(asks=(Ask(8 * GIB),))
    return Allocation(
        container, "", "", "creating", 0, creator or myself(), None, request, placement, (), True, "550.1"
    )  # fmt: skip


def add(state: Path, allocation: Allocation) -> None:
    with ledger.Ledger(str(state)) as book:
        put(book, allocation)


def put(book: ledger.Ledger, allocation: Allocation) -> None:
    limits = quota(allocation.id, allocation.placement.slices, burst="hard", priority="normal")
    book.add(allocation, PLAN, limits, usage_header(), USAGE_BYTES)


def in_child(work: Callable[[], None]) -> int:
    """The pid of a process that runs `work` and exits 0, or 1 if it raises."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def test_an_allocation_is_read_back_with_its_plan_and_box(tmp_path: Path) -> None:
    state = tmp_path / "state"
    old = os.umask(0o077)
    try:
        add(state, entry("abc"))
    finally:
        os.umask(old)
    assert ledger.read(str(state), "abc") == entry("abc")
    assert ledger.read_plan(str(state), "abc") == PLAN
    base = state / "containers/abc"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [base, *base.rglob("*")]}
    assert modes == {
        "abc": 0o700, "plan.json": 0o600, "allocation.json": 0o600, "box": 0o755, "quota": 0o644, "usage": 0o666,
        "libvgpu-driver.so": 0o644, "libvgpu-nvml.so": 0o644, "share": 0o666, "gpu0": 0o700,
    }  # fmt: skip
    assert (base / "box/usage").stat().st_size == USAGE_BYTES
    assert [stat.S_IMODE(path.stat().st_mode) for path in (state, state / "containers")] == [0o755, 0o755]
    assert ledger.read(str(state), "none") is None


def test_arming_hands_the_slice_from_the_creator_to_the_init(tmp_path: Path) -> None:
    add(tmp_path, entry("abc", creator=NOBODY))
    assert ledger.read(str(tmp_path), "abc") is not None
    armed = ledger.arm(str(tmp_path), "abc", myself())
    assert (armed.state, armed.init) == ("armed", myself())
    assert ledger.read(str(tmp_path), "abc") == armed
    with ledger.Ledger(str(tmp_path)) as book:
        assert book.reap() == []
    assert sorted(os.listdir(tmp_path / "containers/abc")) == ["allocation.json", "box", "plan.json"]


def test_release_leaves_nothing_and_twice_is_no_error(tmp_path: Path) -> None:
    add(tmp_path, entry("abc"))
    assert ledger.release(str(tmp_path), "abc")
    assert not ledger.release(str(tmp_path), "abc")
    assert not ledger.release(str(tmp_path), "../abc")
    assert os.listdir(tmp_path / "containers") == []
    with pytest.raises(HostError) as caught:
        ledger.arm(str(tmp_path), "abc", myself())
    assert caught.value.code == "VGPU-HOST-003"


def test_the_dead_are_reaped_and_the_living_kept(tmp_path: Path) -> None:
    add(tmp_path, entry("living"))
    add(tmp_path, entry("gone", creator=NOBODY))
    add(tmp_path, entry("other", creator=replace(myself(), start_ticks=1)))  # its pid is somebody else's now
    ended = in_child(lambda: None)
    time.sleep(0.05)
    ticks = int(Path(f"/proc/{ended}/stat").read_bytes().rpartition(b")")[2].split()[19])
    add(tmp_path, entry("zombie", creator=Process(ended, ticks)))
    with ledger.Ledger(str(tmp_path)) as book:
        assert sorted(dead.id for dead in book.reap()) == ["gone", "other", "zombie"]
        assert [found.id for found in book.entries()] == ["living"]
    os.waitpid(ended, 0)


def test_the_name_of_a_process_cannot_confuse_the_reading_of_its_stat() -> None:
    def work() -> None:
        Path("/proc/self/comm").write_text(") Z 1 (")
        assert ledger.process(os.getpid()) is not None

    assert os.waitpid(in_child(work), 0)[1] == 0


def test_an_id_that_is_taken_is_refused_and_leaves_no_leftover(tmp_path: Path) -> None:
    add(tmp_path, entry("abc"))
    with pytest.raises(HostError) as caught:
        add(tmp_path, entry("abc"))
    assert caught.value.code == "VGPU-OCI-004"
    assert os.listdir(tmp_path / "containers") == ["abc"]


def test_leftovers_of_the_dead_are_cleared_and_never_counted(tmp_path: Path) -> None:
    add(tmp_path, entry("abc"))
    for name in (".new-x-1/box", ".old-y-2/box", ".new-z-3"):
        (tmp_path / "containers" / name).mkdir(parents=True)
    (tmp_path / "containers/.old-y-2/allocation.json").write_text("{")
    (tmp_path / "containers/.old-link").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").mkdir()
    (tmp_path / "containers/a-file").write_text("")
    with ledger.Ledger(str(tmp_path)) as book:
        assert [found.id for found in book.entries()] == ["abc"]
    assert sorted(os.listdir(tmp_path / "containers")) == ["a-file", "abc"]
    assert (tmp_path / "precious").exists()


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{}",
        "[1]",
        '{"id": "abc"}',
        "\ud800",
        '{"id":',
        "null",
        "LINK",
        "FIFO",
        "DIRECTORY",
        "OTHER",
        "NUMBERS",
    ],
)
def test_an_entry_that_cannot_be_read_is_refused_by_name(tmp_path: Path, text: str | None) -> None:
    add(tmp_path, entry("abc"))
    file = tmp_path / "containers/abc/allocation.json"
    good = file.read_text()
    file.unlink()
    if text == "LINK":
        (tmp_path / "elsewhere").write_text(good)
        file.symlink_to(tmp_path / "elsewhere")
    elif text == "FIFO":
        os.mkfifo(file)
    elif text == "DIRECTORY":
        file.mkdir()
    elif text == "OTHER":
        file.write_text(good.replace('"id":"abc"', '"id":"abd"'))
    elif text == "NUMBERS":
        file.write_text(good.replace(str(8 * GIB), f'"{8 * GIB}"'))
    elif text is not None:
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with ledger.Ledger(str(tmp_path)) as book:
        for call in (book.reap, book.entries):
            with pytest.raises(HostError) as caught:
                call()
            assert caught.value.code == "VGPU-HOST-003"
            assert "containers/abc" in str(caught.value)
            assert caught.value.line().isprintable()
        assert book.remove("abc")
    assert os.listdir(tmp_path / "containers") == []


def test_a_plan_that_cannot_be_read(tmp_path: Path) -> None:
    add(tmp_path, entry("abc"))
    (tmp_path / "containers/abc/plan.json").write_text("{}")
    with pytest.raises(HostError) as caught:
        ledger.read_plan(str(tmp_path), "abc")
    assert caught.value.code == "VGPU-HOST-003"


def test_a_state_folder_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    state = tmp_path / "state"
    for make in (lambda: state.mkdir(mode=0o777), lambda: state.symlink_to(tmp_path), lambda: state.write_text("")):
        make()
        if state.is_dir() and not state.is_symlink():
            state.chmod(0o777)
        with pytest.raises(HostError) as caught:
            ledger.release(str(state), "abc")
        assert caught.value.code == "VGPU-HOST-006"
        state.rmdir() if state.is_dir() and not state.is_symlink() else state.unlink()


def test_a_lock_that_is_held_for_ever_is_told(tmp_path: Path) -> None:
    with ledger.Ledger(str(tmp_path)), pytest.raises(HostError) as caught, ledger.Ledger(str(tmp_path), timeout_s=0.1):
        pass
    assert caught.value.code == "VGPU-HOST-003"
    assert "has been held" in str(caught.value)


def test_a_lock_file_that_was_removed_meanwhile_is_not_taken_for_the_lock(tmp_path: Path) -> None:
    """Who waited on a file that is gone must lock the one that others lock by then."""

    def waits() -> None:
        time.sleep(0.1)
        with ledger.Ledger(str(tmp_path), timeout_s=5):
            now = (tmp_path / "lock").stat().st_ino
            links = Path("/proc/self/fd").iterdir()
            assert now in {os.stat(link).st_ino for link in links if link.exists()}

    child = in_child(waits)
    with ledger.Ledger(str(tmp_path)):
        time.sleep(0.3)
        (tmp_path / "lock").unlink()
    assert os.waitpid(child, 0)[1] == 0


def test_a_full_file_system_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    ledger.prepare(str(tmp_path))
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(HostError) as caught:
        add(tmp_path, entry("abc"))
    assert caught.value.code == "VGPU-HOST-003"
    assert "no space left" in str(caught.value)
    assert os.listdir(tmp_path / "containers") == []


def test_fifty_starts_at_once_never_over_commit(tmp_path: Path) -> None:
    """8 GiB each on 2 GPUs of 80 GiB: twenty get a place, thirty are refused, whoever comes first."""
    go, done = os.pipe(), os.pipe()

    def start(number: int) -> None:
        os.close(done[0])
        os.close(go[1])
        os.read(go[0], 1)  # all at once, when the parent closes its end
        with ledger.Ledger(str(tmp_path)) as book:
            book.reap()
            placement = place(Request(asks=(Ask(8 * GIB),)), GPUS, book.entries(), POLICY)
            if placement.slices:
                container = entry(f"c{number}", placement=placement)
                put(book, container)
        os.write(done[1], b"+" if placement.slices else b"-")
        time.sleep(60)  # a living creator, until it is killed

    children = [in_child(lambda number=number: start(number)) for number in range(50)]  # type: ignore[misc]
    os.close(go[0])
    os.close(done[1])
    os.close(go[1])
    results = b""
    while len(results) < 50 and (more := os.read(done[0], 50)):
        results += more
    os.close(done[0])
    try:
        assert (results.count(b"+"), results.count(b"-")) == (20, 30)
        with ledger.Ledger(str(tmp_path)) as book:
            assert book.reap() == []
            used = {gpu.uuid: 0 for gpu in GPUS}
            for allocation in book.entries():
                for part in allocation.placement.slices:
                    used[part.uuid] += part.memory_bytes
        assert used == {"GPU-0": 80 * GIB, "GPU-1": 80 * GIB}
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    with ledger.Ledger(str(tmp_path)) as book:
        assert len(book.reap()) == 20
    assert os.listdir(tmp_path / "containers") == []


def test_two_hundred_kills_at_random_moments(tmp_path: Path) -> None:
    """Whatever the child was doing - adding, arming, removing - the next one finds a ledger that adds up."""

    def churn() -> None:
        for number in range(1_000_000):
            name = f"c{number % 3}"
            add(tmp_path, entry(name))
            ledger.arm(str(tmp_path), name, myself())
            ledger.release(str(tmp_path), name)

    chance = random.Random(1)
    add(tmp_path, entry("mine"))
    seen = set()
    for _ in range(200):
        child = in_child(churn)
        time.sleep(0.002 + chance.random() * 0.006)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = frozenset(name.partition("-")[0] for name in os.listdir(tmp_path / "containers")) - {"mine"}
        seen |= {name[:4] for name in left}
        with ledger.Ledger(str(tmp_path)) as book:
            assert {dead.id for dead in book.reap()} <= {"c0", "c1", "c2"}
            assert [found.id for found in book.entries()] == ["mine"]
        assert os.listdir(tmp_path / "containers") == ["mine"]
    assert len(seen) > 2, "the kills did not fall into the changes: choose other moments"
