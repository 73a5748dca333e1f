"""A guest in other people's processes: it changes nothing, says nothing, ends nothing, and takes any argument."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from libcuda_wrap.gen import render, table
from libcuda_wrap.gen.table import Row
from libcuda_wrap.toolchain import PACKAGE
from tests.libcuda_wrap.wrapped import C_TESTS, GIB, NOT_INITIALIZED, NOT_SUPPORTED, OK, Box, part

LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")
OURS = {
    "cuda": [row for row in table.read(PACKAGE / "entry_points.yaml") if row.ours],
    "nvml": [row for row in table.read(PACKAGE / "nvml_entry_points.yaml") if row.ours],
}
INCLUDES = [f"-I{PACKAGE / 'include'}", f"-I{PACKAGE / 'generated'}"]
# what would end, speak for or change the process that we are guests of
FOREIGN = {
    "exit", "_exit", "_Exit", "quick_exit", "abort", "__assert_fail", "raise", "kill", "printf", "puts", "putchar",
    "fprintf", "vfprintf", "fwrite", "fputs", "perror", "stdout", "stderr", "__printf_chk", "__fprintf_chk", "syslog",
    "umask", "signal", "sigaction", "sigprocmask", "pthread_sigmask", "setenv", "putenv", "unsetenv", "clearenv",
    "chdir", "setlocale", "fork", "system", "popen", "execve",
}  # fmt: skip


@pytest.mark.parametrize("name", LIBRARIES)
def test_it_cannot_end_or_speak_for_the_program(plain_box: Box, name: str) -> None:
    """By what it imports: a call that is not linked is not made."""
    command = ["nm", "-D", "--undefined-only", plain_box.folder / "lib" / name]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    imported = {line.split()[-1].split("@")[0] for line in said.splitlines()}
    assert "dlsym" in imported and imported & FOREIGN == set()


@pytest.mark.parametrize("name", LIBRARIES)
def test_it_has_no_constructor_and_no_destructor(plain_box: Box, name: str) -> None:
    command = ["readelf", "-d", "-S", plain_box.folder / "lib" / name]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [
        word for word in ("INIT_ARRAY", "FINI_ARRAY", "(INIT)", "(FINI)", ".ctors", ".preinit") if word in said
    ] == []


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_program_that_only_loads_it_pays_nothing(plain_box: Box, name: str) -> None:
    """No file, no mapping of a file of ours, no thread; not even when it looks up every function."""
    plain_box.fresh(part(0, GIB))
    names = [row.name for rows in OURS.values() for row in rows]
    code = f"""
import ctypes, os
before = sorted(os.listdir("/proc/self/fd"))
library = ctypes.CDLL({name!r})
for symbol in {names!r}:
    getattr(library, symbol, None)
assert sorted(os.listdir("/proc/self/fd")) == before
assert os.listdir("/proc/self/task") == [str(os.getpid())]
maps = open("/proc/self/maps").read()
assert {name!r} in maps and "/usage" not in maps and "/quota" not in maps
"""
    done = plain_box.run([sys.executable, "-c", code])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="session")
def manners(tmp_path_factory: pytest.TempPathFactory, driver: Path) -> Path:
    program = tmp_path_factory.mktemp("manners") / "manners"
    command = ["gcc", "-O1", "-Wall", "-Werror", *INCLUDES, C_TESTS / "manners.c", f"-L{driver}", "-l:libcuda.so.1"]
    subprocess.run([*command, "-o", program], check=True, timeout=60)
    return program


def test_it_leaves_the_process_as_it_was(plain_box: Box, manners: Path, driver: Path) -> None:
    plain_box.fresh(part(0, GIB))
    bare = plain_box.run([str(manners)], LD_LIBRARY_PATH=str(driver))
    wrapped = plain_box.run([str(manners)])
    assert (wrapped.returncode, wrapped.stderr) == (OK, "")
    *changes, threads, descriptors = wrapped.stdout.split()
    assert (changes, threads) == (["0", "0", "0", "0"], "1")
    # it makes a context, which is measured: NVML stays open, and that is the simulation's state once more
    assert int(descriptors) == int(bare.stdout.split()[-1]) + 1


def _program(key: str, rows: list[Row], folder: Path, driver: Path) -> Path:
    """A C program that calls function number argv[2] with every argument 0, in the state argv[1]; prints its result."""
    lines = [f'#include "vgw_{key}.h"', f'#include "{key}_prototypes.h"', "#include <stdio.h>", "#include <stdlib.h>"]
    start = {
        "cuda": "CUcontext c; if (state > 0 && cuInit(0)) return 9; "
        "if (state > 1 && (cuDevicePrimaryCtxRetain(&c, 0) || cuCtxSetCurrent(c))) return 9;",
        "nvml": "nvmlDevice_t d; (void)d; if (state > 0 && nvmlInit_v2()) return 9;",
    }[key]
    lines += ["CUresult cuCtxSetCurrent(CUcontext);" if key == "cuda" else "nvmlReturn_t nvmlInit_v2(void);"]
    lines += ["int main(int n, char **v) {", "(void)n; int state = atoi(v[1]); long r = -1;", start]
    lines += ["switch (atoi(v[2])) {"]
    for number, row in enumerate(rows):
        zeros = ", ".join(f"({kind}){{0}}" for kind in row.types)
        lines.append(f"case {number}: r = {row.name}({zeros}); break;")
    lines += ["}", 'printf("%ld\\n", r); return 0; }']
    source = folder / f"null_{key}.c"
    source.write_text("\n".join(lines))
    library = {"cuda": "libcuda.so.1", "nvml": "libnvidia-ml.so.1"}[key]
    command = ["gcc", "-O1", "-w", *INCLUDES, source, f"-L{driver}", f"-l:{library}", "-o", source.with_suffix("")]
    subprocess.run(command, check=True, timeout=60)
    return source.with_suffix("")


STATES = {"before init": 0, "initialized": 1, "with a context": 2}


@pytest.mark.parametrize(
    ("key", "state"), [("cuda", state) for state in STATES] + [("nvml", "before init"), ("nvml", "initialized")]
)
def test_null_arguments_and_early_calls_are_answered_as_the_driver_does(
    plain_box: Box, driver: Path, tmp_path: Path, key: str, state: str
) -> None:
    """Each function of ours, each in a process of its own, with our library in front and without."""
    plain_box.fresh(part(0, GIB))
    program = _program(key, OURS[key], tmp_path, driver)
    differ = {}
    for number, row in enumerate(OURS[key]):
        call = [str(program), str(STATES[state]), str(number)]
        ours, bare = plain_box.run(call), plain_box.run(call, LD_LIBRARY_PATH=str(driver))
        assert (bare.returncode, bare.stderr) == (0, ""), (row.name, bare)  # else the comparison says nothing
        if (
            key == "cuda"
            and state != "before init"
            and str(NOT_SUPPORTED) in (bare.stdout.strip(), ours.stdout.strip())
        ):
            continue  # the simulated driver lacks it, or it is one that we refuse
        if (ours.returncode, ours.stdout, ours.stderr) != (0, bare.stdout, ""):
            differ[row.name] = (ours.returncode, ours.stdout, bare.stdout)
    assert differ == {}


def test_before_init_nothing_else_than_not_initialized(plain_box: Box, driver: Path, tmp_path: Path) -> None:
    plain_box.fresh(part(0, GIB))
    program = _program("cuda", OURS["cuda"], tmp_path, driver)
    answers = {
        row.name: int(plain_box.run([str(program), "0", str(number)]).stdout)
        for number, row in enumerate(OURS["cuda"])
        if row.kind in ("charge", "refuse")
    }
    assert {name: code for name, code in answers.items() if code not in (NOT_INITIALIZED, 1)} == {}
    assert len(render.prototypes_h(render.CUDA, OURS["cuda"]).splitlines()) > len(answers) > 40
