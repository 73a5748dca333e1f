"""Threads on ledger, slot and table under the thread sanitizer; a whole program under valgrind.

Address and undefined-behaviour sanitizers: the fixture `box` runs whole test files under them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from libcuda_wrap.sim import build as sim_build
from libcuda_wrap.toolchain import PACKAGE
from oci_hook import neighbours
from tests.libcuda_wrap.wrapped import C_TESTS, GIB, INVALID_VALUE, OK, OUT_OF_MEMORY, Box, part


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
    done = raced("races", "ledger slot table region bucket neighbours past", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", ""), done


def test_shared_memory_adds_up_over_a_driver_that_agrees_to_everything(tmp_path: Path) -> None:
    """Also what the simulated driver refuses, as drivers should; and threads."""
    Box(tmp_path, "thread").slice(part(0, GIB))
    sources = "ledger slot table region bucket neighbours past charge pool vmm multicast"
    done = raced("agreeable", sources, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", ""), done


FAMILIES = ("linear", "managed", "pitch", "async", "pool", "physical", "array", "array3d", "mipmap")
IMAGES = ("data", "data_ex", "fat", "library")
COMMANDS = [
    "init", "primary 0", "info", "count", "total 0",
    *(f"alloc {family} {number} 100000" for number, family in enumerate(FAMILIES)),
    *(f"load {how} {20 + number} 4096" for number, how in enumerate(IMAGES)),
    "reserve 30 2097152", "alloc physical 31 2097152", "map 30 2097152 31", "free physical 31", "unmap 30 2097152",
    f"alloc linear 40 {4 * GIB}", "limit 2 1048576", "pool_trim 0", "sync",
    *(f"unload {how} {20 + number}" for number, how in enumerate(IMAGES)),
    *(f"free {family} {number}" for number, family in enumerate(FAMILIES)),
    "pool_destroy", "newctx 0", "destroyctx", "misuse", "info", "primary_release 0",
]  # fmt: skip


def test_valgrind_finds_nothing(tmp_path: Path) -> None:
    """Nothing that is not initialised is used, nothing beyond what was allocated, and nothing is lost.

    Without children: a forked one leaves its parent's table alone, on purpose. With a driver that reserves fewer
    addresses: valgrind has no room for 16 TiB, and looks for leaks in all of them.
    """
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind: apt-get install valgrind")
    sim_build.build(tmp_path / "sim", arena_bytes=GIB // 2)
    box = Box.make(tmp_path / "box", "", tmp_path / "sim")
    box.fresh(part(0, GIB, 30))
    options = ["-q", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect"]
    options.append(f"--suppressions={C_TESTS / 'valgrind.supp'}")
    done = subprocess.run(
        ["valgrind", *options, box.folder / "client"],
        input="".join(f"{command}\n" for command in COMMANDS),
        env=box.environment(), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    answers = [int(line.split()[0]) for line in done.stdout.splitlines()]
    assert (done.returncode, len(answers), done.stderr) == (0, len(COMMANDS), ""), done
    refused = {command: answer for command, answer in zip(COMMANDS, answers, strict=True) if answer != OK}
    assert refused == {
        "alloc physical 5 100000": INVALID_VALUE, "free physical 5": INVALID_VALUE,  # no multiple of 2 MiB
        f"alloc linear 40 {4 * GIB}": OUT_OF_MEMORY,
    }  # fmt: skip
