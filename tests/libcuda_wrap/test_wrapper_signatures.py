"""cuGetProcAddress never hands out a function with another signature: every name, version and kind of stream.

The oracle is the toolkit's cudaTypedefs.h: it says which signature a name has from which CUDA version on. The compiler
compares those with the prototypes of what was found.
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from libcuda_wrap.gen import table
from libcuda_wrap.toolchain import PACKAGE
from tests.libcuda_wrap.wrapped import GIB, Box, part

ROWS = table.read(PACKAGE / "entry_points.yaml")
OURS, DRIVERS = "libcuda.so.1", "libvgpu-driver.so"
OF_CUDAGL = {"cuGLCtxCreate", "cuGLCtxCreate_v2"}  # cudaGL.h has them, with the signature of cuCtxCreate
LEGACY, PER_THREAD = 0, 2
HOW = {"v1": "cuGetProcAddress", "v2": "cuGetProcAddress_v2", "nested": "the look-up, looked up"}


@pytest.fixture(scope="session")
def typedefs(include: Path) -> dict[str, dict[bool, dict[int, str]]]:
    """name -> per-thread? -> first CUDA version -> the typedef of its signature."""
    found: dict[str, dict[bool, dict[int, str]]] = defaultdict(lambda: {False: {}, True: {}})
    text = (include / "cudaTypedefs.h").read_text()
    for typedef, name, version, suffix in re.findall(r"\*(PFN_(cu\w+?)_v(\d+)(_ptds|_ptsz)?)\)", text):
        found[name][bool(suffix)][int(version)] = typedef
    return found


def expected(kinds: dict[bool, dict[int, str]], version: int, per_thread: bool) -> str | None:
    """The typedef that a request for this version must get."""
    for kind in (True, False) if per_thread else (False,):
        since = max((first for first in kinds[kind] if first <= version), default=None)
        if since is not None:
            return kinds[kind][since]
    return None


def mismatches(include: Path, pairs: set[tuple[str, str]]) -> list[str]:
    """Of (typedef, symbol) those whose types are not compatible, as the C compiler sees it."""
    lines = ["#include <cuda.h>", "#include <cudaTypedefs.h>"]
    for typedef, symbol in sorted(pairs):
        same = f"__builtin_types_compatible_p({typedef}, __typeof__(&{symbol}))"
        lines.append(f'_Static_assert({same}, "{typedef} {symbol}");')
    command = ["gcc", "-fsyntax-only", "-D__CUDA_API_VERSION_INTERNAL", f"-I{include}", "-x", "c", "-"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False)
    failed = re.findall(r'static assertion failed: "(.*)"', done.stderr)
    assert bool(failed) == bool(done.returncode), done.stderr
    return failed


@pytest.mark.parametrize("how", HOW)
def test_what_is_found_has_the_signature_that_was_asked_for(
    plain_box: Box, include: Path, typedefs: dict[str, dict[bool, dict[int, str]]], how: str
) -> None:
    plain_box.fresh(part(0, GIB))
    versions = sorted({version for kinds in typedefs.values() for kind in kinds.values() for version in kind})
    plain_box.of_cuda(versions[-1])
    client = plain_box.client().ready()
    ours = {row.name for row in ROWS if row.ours} - OF_CUDAGL
    pairs: set[tuple[str, str]] = set()
    found = 0
    for name, kinds in sorted(typedefs.items()):
        for version in versions:
            for flags in (LEGACY, PER_THREAD):
                _, library, symbol = client.words(f"find {how} {name} {version} {flags}")
                wanted = expected(kinds, version, flags == PER_THREAD)
                assert (library == "-") == (wanted is None), (name, version, flags, library, symbol)
                if wanted is None:
                    continue
                found += 1
                assert (library, symbol in ours) in ((OURS, True), (DRIVERS, False)), (name, version, flags, symbol)
                if library == OURS:  # of the simulated driver several names are one function; ours never are
                    pairs.add((wanted, symbol))
    assert found > 15_000 and {symbol for _, symbol in pairs} == ours
    assert mismatches(include, pairs) == []


def test_the_comparison_sees_a_wrong_signature(include: Path) -> None:
    wrong = {("PFN_cuMemAlloc_v2000", "cuMemAlloc_v2"), ("PFN_cuMemAlloc_v3020", "cuMemAlloc_v2")}
    assert mismatches(include, wrong) == ["PFN_cuMemAlloc_v2000 cuMemAlloc_v2"]
