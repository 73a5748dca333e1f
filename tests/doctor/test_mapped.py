"""Reading what a process has mapped: nothing of it is believed, nothing of it can keep us."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import stub_driver
from vgpu.doctor.container import judge, worker
from vgpu.doctor.container.mapped import CUDA, Library, Process, Reader, from_json


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mapped") / "renamed.bin"
    stub_driver.library(path, CUDA, "driver")
    return path


def test_a_renamed_driver_is_known_by_what_it_says_of_itself(driver: Path) -> None:
    with holding(driver) as pid:
        found = Reader().process(pid)
    assert found is not None and found.trouble == ""
    (library,) = found.libraries
    status = driver.stat()
    assert (library.soname, library.path, library.wraps) == (CUDA, str(driver), False)
    assert library.identity == (status.st_dev, status.st_ino)
    assert from_json(json.loads(json.dumps(found.as_json()))) == found


class holding:
    """A process that has `library` loaded."""

    def __init__(self, library: Path) -> None:
        code = f"import ctypes, time; ctypes.CDLL({str(library)!r}); print('loaded', flush=True); time.sleep(300)"
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)

    def __enter__(self) -> int:
        assert self.process.stdout and self.process.stdout.readline() == b"loaded\n"
        return self.process.pid

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_deleted_driver_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "gone.so"
    stub_driver.library(path, CUDA, "driver")
    with holding(path) as pid:
        path.unlink()
        path.write_text("something else by now")
        found = Reader().process(pid)
    assert found is not None and [library.soname for library in found.libraries] == [CUDA]


def fake(proc: Path, pid: int, maps: str) -> Path:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "comm").write_text("fake\n")
    (folder / "status").write_text("NSpid:\t5\t1\n")
    (folder / "maps").write_text(maps)
    return folder


def test_without_map_files_the_path_is_walked_and_no_link_is_followed(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc/<pid>/root, where the kernel lets nobody open map_files."""
    deny_map_files(monkeypatch)
    root, status = tmp_path / "root", driver.stat()
    (root / "lib").mkdir(parents=True)
    os.link(driver, root / "lib/driver.so")
    (root / "link").symlink_to(driver.parent)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x} {status.st_ino}"
    folder = fake(tmp_path / "proc", 7, f"1000-2000 r-xp 00000000 {place} /lib/driver.so\n")
    (folder / "root").symlink_to(root)
    found = Reader(str(tmp_path / "proc")).process(7)
    assert found is not None and [library.soname for library in found.libraries] == [CUDA]
    for path in (f"/link/{driver.name}", "/lib/gone.so", "/lib"):
        (folder / "maps").write_text(f"1000-2000 r-xp 00000000 {place} {path}\n")
        found = Reader(str(tmp_path / "proc")).process(7)
        assert found is not None and found.libraries == () and found.trouble, path


def deny_map_files(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def without(path: str, flags: int, *rest: int, **more: int | None) -> int:
        if "/map_files/" in str(path):
            raise PermissionError(1, "Operation not permitted")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", without)


LINES = [
    "", "\n\n", "garbage", "zz-yy r-xp 0 0:0 1 /x", "1000-2000 r-xp 00000000 00:00 0 [vdso]",
    "1000-2000 ---p 00000000 fe:00 99 /x\n" * 1000, "\x00\x1b[31m", "ffffffffffffffffffff-0 r-xp 0 0:0 0",
]  # fmt: skip


@pytest.mark.parametrize("maps", LINES, ids=repr)
def test_maps_that_no_kernel_writes_are_no_bug(tmp_path: Path, maps: str) -> None:
    fake(tmp_path / "proc", 7, maps)
    found = Reader(str(tmp_path / "proc")).process(7)
    assert found is None or found.libraries == ()


def test_a_device_is_never_opened_for_reading(tmp_path: Path) -> None:
    with open("/dev/zero", "r+b") as zero, mmap.mmap(zero.fileno(), 4096, mmap.MAP_SHARED, mmap.PROT_READ):
        found = Reader().process(os.getpid())
    assert found is not None and found.trouble == ""


def test_a_process_whose_files_hang_keeps_nobody(tmp_path: Path) -> None:
    """As one that has mapped files of a FUSE file system of its own: here its comm is a FIFO that nobody writes."""
    fake(tmp_path / "proc", 5, "")
    fake(tmp_path / "proc", 6, "")
    fake(tmp_path / "proc", 7, "")
    (tmp_path / "proc/6/comm").unlink()
    os.mkfifo(tmp_path / "proc/6/comm")
    begun = time.monotonic()
    found = list(worker.look([5, 6, 7, 8], str(tmp_path / "proc"), deadline_s=0.5))
    assert time.monotonic() - begun < 30
    assert [(one.pid, bool(one.trouble)) for one in found] == [(5, False), (6, True), (7, False)]
    assert "within 0.5 s" in found[1].trouble


EXPECTED = judge.Expected({"cuda": (1, 10)}, {"cuda": (1, 20)}, {"quota": (1, 30), "usage": (1, 31)}, {"cuda": "new"})
WRAPPER = Library("/w", (1, 10), CUDA, "old", True)
DRIVER = Library("/d", (1, 20), CUDA, "d", False)
OTHER = Library("/o", (1, 99), CUDA, "d", False)
BOX = ((1, 30), (1, 31))


@pytest.mark.parametrize(
    ("process", "codes"),
    [
        (Process(1, libraries=(WRAPPER, DRIVER), shared=BOX), []),
        (Process(1, libraries=(WRAPPER, DRIVER), shared=BOX[:1]), ["VGPU-CTR-002"]),
        (Process(1, libraries=(DRIVER,)), ["VGPU-CTR-001"]),
        (Process(1, libraries=(WRAPPER, DRIVER, OTHER), shared=BOX), ["VGPU-CTR-001"]),
        (Process(1, libraries=(Library("/w", (1, 11), CUDA, "old", True), DRIVER)), ["VGPU-CTR-002", "VGPU-CTR-001"]),
        (Process(1), ["VGPU-CTR-001"]),  # the driver says that it uses the GPU, and it has nothing mapped
    ],
    ids=["held", "another account", "past", "a second driver", "a wrapper of its own", "no libcuda"],
)  # fmt: skip
def test_what_a_process_that_uses_the_gpu_has_mapped(process: Process, codes: list[str]) -> None:
    found = list(judge.process(process, EXPECTED, [0]))
    assert [one.code for one in found] == codes  # type: ignore[union-attr]
    verdict = judge.verdict(found, [process], armed=True)  # type: ignore[arg-type]
    assert verdict == ("no" if codes else "yes")


def test_an_older_build_is_told_and_no_finding() -> None:
    (seen,) = judge.builds([Process(1, libraries=(WRAPPER,)), Process(2, libraries=(WRAPPER,))], EXPECTED)
    assert seen.text.startswith("2 processes have the wrapper mapped")
    assert "the installed one is new" in seen.text


def test_a_process_that_cannot_be_seen_makes_the_verdict_unknown() -> None:
    blind = Process(1, trouble="x")
    assert judge.verdict([], [blind], armed=True) == "unknown"
    assert judge.verdict([], [Process(2)], armed=False) == "not used yet"
