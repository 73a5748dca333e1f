"""Threads on ledger, slot and table under the thread sanitizer; a whole program under valgrind.

Address and undefined-behaviour sanitizers: the fixture `box` runs whole test files under them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from libcuda_wrap.toolchain import PACKAGE
from oci_hook import neighbours
from tests.libcuda_wrap.wrapped import C_TESTS, GIB, Box, part


def raced(program: str, sources: str, box: Path) -> subprocess.CompletedProcess[str]:
    """Builds a C test with these sources of the wrapper, for the thread sanitizer, and runs it."""
    command = ["gcc", "-g", "-O1", "-std=gnu11", "-D_GNU_SOURCE", "-fsanitize=thread", "-pthread"]
    command += [str(PACKAGE / "src" / f"{name}.c") for name in sources.split()]
    command += [str(C_TESTS / f"{program}.c"), *(f"-I{PACKAGE / name}" for name in ("src", "include", "generated"))]
    subprocess.run([*command, f'-DVGW_BOX="{box}"', "-o", box / program], check=True, timeout=100)
    # setarch: the sanitizer of gcc 12 does not know where newer kernels put libraries
    return subprocess.run(
        ["setarch", "-R", box / program],
        env={**os.environ, "TSAN_OPTIONS": "exitcode=66"}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def test_no_data_race_between_threads(tmp_path: Path) -> None:
    """Without a driver, real or simulated: the sanitizer leaves no room for the addresses that one reserves."""
    box = Box(tmp_path, "thread")
    box.slice(part(0, 3 * 4096, 30), burst="soft")
    neighbour = tmp_path / "neighbour"
    neighbour.write_bytes(bytes(neighbours.SHARE_BYTES))  # idle: it lends all of its share
    (tmp_path / "gpu0/40.0.1.0.1").hardlink_to(neighbour)
    done = raced("races", "ledger slot table region bucket neighbours", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", ""), done


def test_shared_memory_adds_up_over_a_driver_that_agrees_to_everything(tmp_path: Path) -> None:
    """Also what the simulated driver refuses, as drivers should; and threads."""
    Box(tmp_path, "thread").slice(part(0, GIB))
    sources = "ledger slot table region bucket neighbours charge pool vmm multicast"
    done = raced("agreeable", sources, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", ""), done


def test_valgrind_finds_nothing(plain_box: Box) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind: apt-get install valgrind")
    plain_box.fresh(part(0, GIB))
    commands = ["init", "primary 0", "info", "alloc linear 0 4096", "alloc pitch 1 100", "free linear 0", "misuse"]
    options = ["-q", "--error-exitcode=9", "--undef-value-errors=yes", "--leak-check=no"]
    done = subprocess.run(
        ["valgrind", *options, plain_box.folder / "client"],
        input="".join(f"{command}\n" for command in commands),
        env=plain_box.environment(), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, len(commands), ""), done
