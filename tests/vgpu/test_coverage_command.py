"""`vgpu wrapper coverage`: its table, its JSON and its exit codes, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from libcuda_wrap.toolchain import Toolchain
from tests.harness import debian, drivers

ROOT = Path(__file__).parents[2]


def vgpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vgpu", "wrapper", "coverage", *arguments]
    environment = {**os.environ, "VGPU_CONFIG": "/nonexistent/etc/config.yaml"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment, check=False)


@pytest.fixture(scope="session")
def new_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A libcuda with a function that nobody knows."""
    folder = tmp_path_factory.mktemp("driver")
    source = folder / "driver.c"
    source.write_text("int cuInit(void);\nint cuInit(void) { return 0; }\nint cuMemAllocNew(void) { return 0; }\n")
    library = folder / "libcuda.so"
    subprocess.run([*Toolchain("gcc").command(), "-shared", "-fPIC", source, "-o", library], check=True, timeout=60)
    return library


@pytest.mark.parametrize(
    ("version", "code", "said"),
    [("999.10", 1, "is newer than vgpu knows: cuMemAllocNew"), ("535.261.03", 2, "no row for cuMemAllocNew")],
)
def test_an_unknown_function_warns_in_a_new_driver_and_fails_in_a_known_one(
    new_driver: Path, tmp_path: Path, version: str, code: int, said: str
) -> None:
    library = tmp_path / f"libcuda.so.{version}"
    shutil.copy(new_driver, library)
    done = vgpu(str(library))
    assert (done.returncode, said in done.stderr) == (code, True), done
    as_json = vgpu(str(library), "--json")
    found = json.loads(as_json.stdout)["libraries"][0]
    assert as_json.returncode == code and found["known"] is (code == 2) and found["version"] == version
    assert found["names"] == {
        "pass": [],
        "charge": [],
        "limit": [],
        "answer": ["cuInit"],
        "refuse": [],
        "unknown": ["cuMemAllocNew"],
    }


def test_the_simulated_driver_is_covered(needs_build: None) -> None:
    for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
        done = vgpu(f"build/sim/{name}")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[1].split()[-1] == "0"


@pytest.mark.parametrize("branch", (min(drivers.PACKAGES), max(drivers.PACKAGES)))
def test_nvidias_own_libraries_are_covered(branch: int) -> None:
    try:
        libraries = drivers.libraries(branch)
    except debian.NotOffered as missing:
        pytest.skip(str(missing))
    for library in libraries:
        done = vgpu(str(library), "--json")
        found = json.loads(done.stdout)["libraries"][0]
        assert (done.returncode, done.stderr, found["known"], found["names"]["unknown"]) == (0, "", True, [])


def _not_a_library(kind: str, path: Path, whole: Path) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("/dev/zero", "itself"):
        path.symlink_to(path.name if kind == "itself" else kind)
    else:
        data = whole.read_bytes()
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "noise": bytes(range(256)) * 64}[kind])


@pytest.mark.parametrize("kind", ["fifo", "folder", "/dev/zero", "itself", "empty", "cut", "noise"])
def test_what_is_no_library_is_said_in_one_line_and_soon(new_driver: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "libcuda.so.555.1"
    _not_a_library(kind, path, new_driver)
    done = vgpu(str(path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1), done
    assert "VGPU-HOST-007" in done.stderr and str(path) in done.stderr


def test_by_default_it_looks_at_this_hosts_driver() -> None:
    done = vgpu()
    assert done.returncode == 5 and "VGPU-" in done.stderr and "Traceback" not in done.stderr
    assert vgpu("/nonexistent").stderr.count("\n") == 1
