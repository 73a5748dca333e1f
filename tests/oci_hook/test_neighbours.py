"""What containers on a GPU see of one another: names that follow the ledger, whoever dies, and files of their own."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from libcuda_wrap import bindings
from oci_hook import ledger, neighbours, quota_file, resize
from oci_hook.records import Allocation, Ask, Placement, Plan, Process, Request, Slice

GIB = 1 << 30


def give(state: Path, container: str, *slices: Slice, burst: str = "hard", priority: str = "normal") -> Allocation:
    me = ledger.process(os.getpid())
    assert me is not None
    asked = Request(asks=tuple(Ask(part.memory_bytes) for part in slices), burst=burst, priority=priority)
    placed = Placement("binpack", slices, ())
    allocation = Allocation(container, "", "", "creating", 0, me, None, asked, placed, (), True, "550.1")
    quota = quota_file.quota(container, slices, burst=burst, priority=priority)
    with ledger.Ledger(str(state)) as book:
        book.add(allocation, Plan((), ()), quota, quota_file.usage_header(), quota_file.USAGE_BYTES)
    return allocation


def on(index: int, cores: int) -> Slice:
    return Slice(index, f"GPU-{index}", GIB, cores)


def seen(state: Path, index: int) -> list[str]:
    """The names without the inode, checked against the containers' own files."""
    inodes = {path.stat().st_ino for path in state.glob("containers/*/box/share")}
    names = [path.name.rsplit(".", 1) for path in (state / f"gpus/GPU-{index}").iterdir() if path.stat().st_nlink > 1]
    assert all(int(inode) in inodes for _, inode in names)
    return sorted(name for name, _ in names)


def test_each_container_is_seen_on_its_gpus_and_nowhere_else(tmp_path: Path) -> None:
    give(tmp_path, "a", on(0, 30), burst="soft", priority="high")
    give(tmp_path, "b", on(1, 20), on(0, 40))
    give(tmp_path, "c", on(0, 0), burst="soft")  # without a share of its own it is not limited: nothing to borrow
    assert seen(tmp_path, 0) == ["0.0.1.0", "30.0.1.3", "40.1.2.0"]
    assert seen(tmp_path, 1) == ["20.0.2.0"]
    assert stat.S_IMODE((tmp_path / "gpus").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "gpus/GPU-0").stat().st_mode) == 0o755
    share = tmp_path / "containers/a/box/share"
    assert share.stat().st_size == neighbours.SHARE_BYTES == bindings.ffi().sizeof("struct vgw_share")
    used = neighbours.used_bytes(1)
    assert used == bindings.ffi().offsetof("struct vgw_share", "past", 1)
    assert used <= share.stat().st_blocks * 512 < used + 8192, "what can be touched is there, and no more"


def test_the_end_of_a_container_is_the_end_of_its_links(tmp_path: Path) -> None:
    give(tmp_path, "a", on(0, 30), on(1, 30))
    with ledger.Ledger(str(tmp_path)) as book:
        book.remove("a")
    left = list(tmp_path.glob("gpus/*/*"))
    assert [path.stat().st_nlink for path in left] == [2, 2]  # as many as GPUs: a reader passes over it
    give(tmp_path, "b", on(0, 40))
    assert [path.name.split(".")[0] for path in (tmp_path / "gpus/GPU-0").iterdir()] == ["40"]


def test_a_change_by_the_host_is_in_the_name(tmp_path: Path) -> None:
    before = give(tmp_path, "a", on(0, 30), on(1, 20))
    after = resize.changed(before, resize.Change(cores_percent=50, gpu=0, burst="soft"))
    with ledger.Ledger(str(tmp_path)) as book:
        resize.apply(book, before, after, None)
    assert (seen(tmp_path, 0), seen(tmp_path, 1)) == (["50.0.2.2"], ["20.1.2.2"])


def test_a_change_that_was_cut_off_is_finished_by_the_next_who_takes_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = give(tmp_path, "a", on(0, 30))
    after = resize.changed(before, resize.Change(cores_percent=50))
    with ledger.Ledger(str(tmp_path)) as book, monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(neighbours, "enter", die)
        resize.apply(book, before, after, None)
    assert seen(tmp_path, 0) == ["30.0.1.0"]
    with ledger.Ledger(str(tmp_path)):
        assert seen(tmp_path, 0) == ["50.0.1.0"]


def test_a_container_of_an_older_version_can_still_be_changed(tmp_path: Path) -> None:
    before = give(tmp_path, "a", on(0, 30))
    (tmp_path / "containers/a/box/share").unlink()
    after = resize.changed(before, resize.Change(cores_percent=50))
    with ledger.Ledger(str(tmp_path)) as book:
        resize.apply(book, before, after, None)
    found = ledger.read(str(tmp_path), "a")
    assert found and found.placement.slices[0].cores_percent == 50


def test_names_that_are_none_of_ours_do_no_harm(tmp_path: Path) -> None:
    give(tmp_path, "a", on(0, 30))
    for name in ("x", "1.2.x.4.5", "9" * 200):
        (tmp_path / "gpus/GPU-0" / name).write_bytes(b"")
    give(tmp_path, "b", on(0, 40))
    assert seen(tmp_path, 0) == ["30.0.1.0", "40.0.1.0"]


def test_nobody_stands_for_a_dead_start(tmp_path: Path) -> None:
    """Killed between link and ledger: its half-made folder goes with the next start, and its link with it."""
    with ledger.Ledger(str(tmp_path)):
        pass
    half = tmp_path / f"containers/.new-x-{Process(1, 1).pid}/box"
    half.mkdir(parents=True)
    (half / "share").write_bytes(bytes(neighbours.SHARE_BYTES))
    box = os.open(half, os.O_RDONLY)
    quota = quota_file.quota("x", [on(0, 30)], burst="hard", priority="normal")
    neighbours.enter(str(tmp_path), box, [on(0, 30)], quota)
    os.close(box)
    give(tmp_path, "b", on(0, 40))
    assert seen(tmp_path, 0) == ["40.0.1.0"]
