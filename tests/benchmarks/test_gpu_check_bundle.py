"""What goes to a machine with a GPU: runs there with Python and glibc 2.17 alone, as any user, and leaves nothing."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

from benchmarks.gpu import bundle
from tests.libcuda_wrap.wrapped import MIB

NOBODY = 65534


def run(carried: Path, *arguments: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    command = ["/usr/bin/python3", "-I", "-S", "-B", str(carried), *arguments]  # no site-packages, nothing of ours
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run(
        command, cwd="/", env=environment, user=user, capture_output=True, text=True, timeout=100, check=False
    )


def test_any_user_runs_it_without_compiler_packages_or_root(carried: Path, needs_root: None) -> None:
    work = carried.parent / "work"
    work.mkdir()
    os.chown(work, NOBODY, NOBODY)
    options = ["--simulate", "--quota-mib", "256", "--work", str(work)]
    parts = [word for name in ("account", "calls", "smi") for word in ("--part", name)]
    done = run(carried, *options, *parts, user=NOBODY)
    assert (done.returncode, done.stderr) == (0, ""), done
    account, smi, calls = done.stdout.splitlines()
    assert account.startswith("account   held") and "the account says 256 MiB" in account
    assert smi.startswith("smi       not run") and calls.startswith("calls     held") and "getinfo" in calls
    assert list((carried.parent / "place").iterdir()) == []  # the box is gone


def test_a_folder_of_somebody_else_is_not_taken(carried: Path) -> None:
    box = carried.parent / "place/box"
    box.mkdir()
    try:
        done = run(carried, "--simulate", "--work", str(carried.parent / "mine"))
        assert done.returncode == 1 and done.stderr == (
            f"gpu_check: {box} exists and is not ours: remove it, or run outside a container with a slice\n"
        )
    finally:
        box.rmdir()


def test_without_a_driver_it_says_so(carried: Path) -> None:
    done = run(carried)
    assert done.returncode == 1 and done.stderr.startswith("gpu_check: no NVIDIA driver here"), done


def test_its_python_is_that_of_old_machines(carried: Path) -> None:
    """By the grammar; and nothing that a later standard library brought is imported."""
    sources = list(carried.rglob("*.py"))
    assert len(sources) > 15
    for source in sources:
        ast.parse(source.read_text(), feature_version=bundle.OLDEST)
    late = {"tomllib", "datetime.UTC", "StrEnum", "ExceptionGroup", "typing.Self", "file_digest"}
    assert {word for source in sources for word in late if word in source.read_text()} == set()
    ast.parse(bundle.MAIN, feature_version=(3, 4))  # so that an older one can say what is wrong


def test_its_libraries_and_programs_need_no_new_glibc(carried: Path) -> None:
    files = [path for path in (carried / "carried").rglob("*") if path.is_file() and path.name != "box"]
    assert {"libcuda.so.1", "libnvidia-ml.so.1", "measure", "load"} <= {path.name for path in files}
    for path in files:
        said = subprocess.run(["readelf", "-V", path], capture_output=True, text=True, check=True).stdout
        versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", said)}
        assert versions and max(versions) <= (2, 17), path
    assert sum(path.stat().st_size for path in files) < 4 * MIB
