"""NVIDIA's own libraries behind the wrapper, as far as they answer without a GPU: loading, look-ups, their own errors.

From Debian's non-free archive, kept below build/. What they do with a GPU is `make gpu-check`'s business.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from libcuda_wrap import build
from libcuda_wrap.toolchain import Toolchain
from oci_hook import quota_file
from tests.harness import debian, drivers
from tests.libcuda_wrap.wrapped import GIB, NO_DEVICE, NOT_READY, part

PROC_ADDRESS_V2 = 525  # the first of our branches that has cuGetProcAddress_v2
NVML_NOT_LOADED = 9
ASK = """
import ctypes, json, sys
from ctypes import byref, c_char_p, c_int, c_uint, c_uint64, c_void_p

class Where(ctypes.Structure):
    _fields_ = [("file", c_char_p), ("base", c_void_p), ("name", c_char_p), ("at", c_void_p)]

def where(address):
    found = Where()
    ctypes.CDLL(None).dladdr(c_void_p(address), byref(found))
    return (found.file or b"").decode().rpartition("/")[2]

def function(name):
    return where(ctypes.cast(getattr(cuda, name), c_void_p).value)

def asked(name):
    at = c_void_p()
    return where(at.value) if cuda.cuGetProcAddress(name, byref(at), 11030, c_uint64(0)) == 0 and at.value else None

cuda, nvml, version = ctypes.CDLL("libcuda.so.1"), ctypes.CDLL("libnvidia-ml.so.1"), c_int()
nvml.nvmlErrorString.restype = c_char_p
print(json.dumps({
    "init": cuda.cuInit(0), "alloc": cuda.cuMemAlloc_v2(byref(c_uint64()), ctypes.c_size_t(1)),
    "version": [cuda.cuDriverGetVersion(byref(version)), version.value],
    "ours": function("cuMemAlloc_v2"), "theirs": function("cuMemcpyDtoH_v2"),
    "asked": [asked(b"cuMemAlloc"), asked(b"cuMemcpyDtoH")],
    "nvml": nvml.nvmlInit_v2(), "said": nvml.nvmlErrorString(9).decode(),
}))
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    for library in (build.CUDA, build.NVML):
        build.wrapper(library, folder / "lib", Toolchain(), str(folder))
    return folder


@pytest.fixture(params=drivers.PACKAGES)
def real(request: pytest.FixtureRequest, box: Path) -> tuple[int, Path, Path]:
    """A branch and its libraries, which are in the box."""
    try:
        cuda, nvml = drivers.libraries(request.param)
    except debian.NotOffered as missing:
        pytest.skip(str(missing))
    shutil.copy(cuda, box / build.CUDA.driver)
    shutil.copy(nvml, box / build.NVML.driver)
    (box / "quota").write_bytes(quota_file.quota("c0ffee", [part(0, GIB)], burst="hard", priority="normal"))
    (box / "usage").write_bytes(quota_file.usage_header().ljust(quota_file.USAGE_BYTES, b"\0"))
    return request.param, cuda, nvml


def ask(*folders: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", ASK], env={"LD_LIBRARY_PATH": ":".join(map(str, folders))}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_it_loads_and_answers_as_it_does_alone(real: tuple[int, Path, Path], box: Path, tmp_path: Path) -> None:
    branch, cuda, nvml = real
    for library, name in ((cuda, "libcuda.so.1"), (nvml, "libnvidia-ml.so.1")):
        (tmp_path / name).symlink_to(library)
    alone, behind = ask(tmp_path), ask(box / "lib")
    assert (alone["init"], alone["nvml"]) == (NO_DEVICE, NVML_NOT_LOADED)
    assert alone["version"][0] == 0 and alone["version"][1] >= 11040  # type: ignore[index]
    for key in ("init", "alloc", "version", "nvml", "said"):
        assert behind[key] == alone[key], key
    assert (behind["ours"], behind["theirs"]) == ("libcuda.so.1", build.CUDA.driver)
    if branch >= PROC_ADDRESS_V2 or behind["asked"] != [None, None]:
        assert behind["asked"] == ["libcuda.so.1", build.CUDA.driver]


def test_it_fails_closed_without_a_quota(real: tuple[int, Path, Path], box: Path) -> None:
    (box / "quota").unlink()
    found = ask(box / "lib")
    assert found["init"] == NOT_READY and found["alloc"] != 0


def test_its_library_is_what_the_wrapper_counts_on(real: tuple[int, Path, Path]) -> None:
    """It brings no path to its helpers. It needs an older glibc than we may: we are never why an image is too old. And
    libcuda's own calls do not come back to us.
    """
    _, cuda, nvml = real
    for library, soname in ((cuda, "libcuda.so.1"), (nvml, "libnvidia-ml.so.1")):
        said = subprocess.run(["readelf", "-dV", library], capture_output=True, text=True, check=True).stdout
        assert soname != "libcuda.so.1" or "(SYMBOLIC)" in said
        assert f"[{soname}]" in said and "RUNPATH" not in said and "RPATH" not in said
        needed = set(re.findall(r"\(NEEDED\)\s+Shared library: \[(.*?)\]", said))
        glibc = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"}
        assert needed and needed <= glibc, library
        versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", said)}
        assert versions and max(versions) <= (2, 17)
