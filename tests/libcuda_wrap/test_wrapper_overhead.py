"""Memory that only the driver knows of: contexts and modules. Witness: the simulation itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from libcuda_wrap.sim import create
from tests.libcuda_wrap.wrapped import GIB, INVALID_VALUE, MIB, OK, OUT_OF_MEMORY, Box, part

CONTEXT = 40 * MIB


@pytest.fixture
def check(box: Box) -> Callable[[int, int], None]:
    """Holds that wrapper and driver agree on what is in use, and that it is within the quota."""

    def agreed(used: int, quota: int) -> None:
        witness = create.read_state(box.folder / "sim").gpus[0].used_bytes
        assert (box.used(), witness) == (used, used)
        assert witness <= quota

    return agreed


def test_contexts_are_charged_and_the_one_too_many_is_refused(box: Box, check: Callable[[int, int], None]) -> None:
    quota = 5 * CONTEXT
    box.fresh(part(0, quota), context_bytes=CONTEXT)
    client = box.client().ready()
    check(CONTEXT, quota)
    made = sum(client.ask("newctx 0")[0] == OK for _ in range(40))
    assert made == 4
    check(quota, quota)
    assert client.ask("destroyctx")[0] == OK  # the last
    check(quota - CONTEXT, quota)
    client.end()
    assert box.client().ready().ask("info")[0] == OK
    check(CONTEXT, quota)


@pytest.mark.parametrize("end", ["primary_release 0", "primary_reset 0"])
def test_the_primary_context_is_charged_once_and_given_back(
    box: Box, check: Callable[[int, int], None], end: str
) -> None:
    box.fresh(part(0, 3 * CONTEXT), context_bytes=CONTEXT)
    client = box.client().ready()
    for _ in range(3):
        assert client.ask(end)[0] == OK
        check(0, 3 * CONTEXT)
        assert client.ask("primary 0")[0] == OK
        check(CONTEXT, 3 * CONTEXT)
    assert client.ask("primary 0")[0] == OK
    check(CONTEXT, 3 * CONTEXT)


def test_a_context_larger_than_the_quota_is_undone(box: Box, check: Callable[[int, int], None]) -> None:
    box.fresh(part(0, CONTEXT - 1), context_bytes=CONTEXT)
    client = box.client()
    assert client.ask("init")[0] == OK
    assert client.ask("primary 0")[0] == client.ask("newctx 0")[0] == OUT_OF_MEMORY
    check(0, CONTEXT - 1)


@pytest.mark.parametrize("how", ["data", "data_ex", "fat", "file", "library", "library_file"])
def test_modules_are_charged_and_given_back(
    box: Box, check: Callable[[int, int], None], tmp_path: Path, how: str
) -> None:
    quota, size = 10 * MIB, 4 * MIB
    box.fresh(part(0, quota))
    client = box.client().ready()
    (tmp_path / "image").write_text(f"// vgpu-sim device_bytes={size}")
    load = f"load {how} {{}} {size} {tmp_path / 'image'}"
    assert client.ask(load.format(0))[0] == client.ask(load.format(1))[0] == OK
    check(2 * size, quota)
    assert client.ask(load.format(2))[0] == OUT_OF_MEMORY
    check(2 * size, quota)
    assert client.ask(f"unload {how} 0")[0] == OK
    check(size, quota)
    assert client.ask(load.format(2))[0] == OK
    client.kill()
    box.client().ready().ask("info")
    check(0, quota)


def test_the_end_of_a_context_gives_back_its_modules(box: Box, check: Callable[[int, int], None]) -> None:
    box.fresh(part(0, 100 * MIB), context_bytes=CONTEXT)
    client = box.client().ready()
    assert client.ask("newctx 0")[0] == client.ask(f"load data 0 {4 * MIB} -")[0] == OK
    check(2 * CONTEXT + 4 * MIB, 100 * MIB)
    assert client.ask("destroyctx")[0] == OK
    check(CONTEXT, 100 * MIB)


@pytest.mark.parametrize("handle", [1, 12345, 1 << 46])
def test_releasing_a_handle_that_is_none_is_an_error(box: Box, handle: int) -> None:
    box.fresh(part(0, MIB))
    client = box.client().ready()
    assert client.ask(f"set 0 {handle}")[0] == OK
    assert client.ask("free physical 0")[0] == INVALID_VALUE
    assert client.ask("info")[0] == OK


NVML_AFTER_CUDA = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
context = ctypes.c_void_p()
assert cuda.cuInit(0) == 0 and cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
nvml = ctypes.CDLL("libnvidia-ml.so.1")
device, memory = ctypes.c_void_p(), (ctypes.c_ulonglong * 3)()
assert nvml.nvmlInit_v2() == 0 and nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) == 0
assert nvml.nvmlDeviceGetMemoryInfo(device, memory) == 0
print(memory[0])
"""


def test_the_nvml_that_is_asked_is_not_the_one_that_the_program_then_finds(plain_box: Box) -> None:
    """A loader that has the driver's NVML already would hand it out under the name that both have."""
    plain_box.fresh(part(0, GIB))
    done = plain_box.run([sys.executable, "-c", NVML_AFTER_CUDA])
    assert (done.returncode, done.stdout.strip()) == (0, str(GIB)), done


def test_a_context_is_charged_where_one_other_process_has_one(box: Box, check: Callable[[int, int], None]) -> None:
    """The other one is in NVML's list before ours is, and is not ours."""
    box.fresh(part(0, 100 * CONTEXT), context_bytes=CONTEXT)
    client = box.client().ready()
    assert client.ask("newctx 0")[0] == OK
    box.client().ready()
    check(3 * CONTEXT, 100 * CONTEXT)
