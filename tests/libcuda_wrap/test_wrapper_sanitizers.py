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


def test_no_data_race_between_threads(tmp_path: Path) -> None:
    """Without a driver, real or simulated: the sanitizer leaves no room for the addresses that one reserves."""
    box = Box(tmp_path, "thread")
    box.slice(part(0, 3 * 4096, 30), burst="soft")
    neighbour = tmp_path / "neighbour"
    neighbour.write_bytes(bytes(neighbours.SHARE_BYTES))  # idle: it lends all of its share
    (tmp_path / "gpu0/40.0.1.0.1").hardlink_to(neighbour)
    sources = [
        PACKAGE / "src" / f"{name}.c" for name in ("ledger", "slot", "table", "region", "bucket", "neighbours", "past")
    ]
    command = ["gcc", "-g", "-O1", "-std=gnu11", "-D_GNU_SOURCE", "-fsanitize=thread", "-pthread", *sources]
    command += [C_TESTS / "races.c", f"-I{PACKAGE / 'src'}", f"-I{PACKAGE / 'include'}", f'-DVGW_BOX="{tmp_path}"']
    subprocess.run([*command, "-o", tmp_path / "races"], check=True, timeout=100)
    # setarch: the sanitizer of gcc 12 does not know where newer kernels put libraries
    done = subprocess.run(
        ["setarch", "-R", tmp_path / "races"],
        env={**os.environ, "TSAN_OPTIONS": "exitcode=66"}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
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
