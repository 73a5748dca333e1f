"""Memory that the driver takes when a function is first used: charged soon after. Witness: the simulation itself."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from libcuda_wrap.sim import create
from tests.libcuda_wrap.wrapped import GIB, MIB, OUT_OF_MEMORY, Box, Client, part

LOOK_S = 0.12  # looks are 100 ms apart, by a clock that is good to 4 ms
CODE = 3 * MIB  # of each function


def taken(box: Box) -> int:
    """What the simulated GPU itself says is in use, bytes."""
    return create.read_state(box.folder / "sim").gpus[0].used_bytes


def settled(box: Box, client: Client, ask: str = "sync") -> int:
    """What is charged once two looks were due, and that it is what is in use."""
    for _ in range(2):
        time.sleep(LOOK_S)
        client.ok(ask)
    assert box.used() == taken(box)
    return box.used()


@pytest.fixture
def start(box: Box) -> Callable[[], Client]:
    return lambda: box.client("kernels").ready()


Start = Callable[[], Client]


@pytest.mark.parametrize(
    ("how", "use"),
    [
        ("module", "function 1 0 one"),
        ("library", "kernel 1 0 one;launch 1"),
        ("library", "kernel 1 0 one;launch_cooperative 1"),
        ("library", "kernel 1 0 one;kernel_function 2 1"),
        ("library", "kernel 1 0 one;func_load 1"),
        ("library", "kernel 1 0 one;g_capture 2 1 1;g_make 3 2 0;g_launch 3"),
    ],
)
def test_code_that_is_loaded_late_is_charged(box: Box, start: Start, how: str, use: str) -> None:
    box.fresh(part(0, GIB))
    client = start()
    client.ok(f"{how} 0 {MIB} {CODE}")
    assert settled(box, client) == MIB
    client.ok(*use.split(";"))
    assert taken(box) == MIB + CODE
    assert settled(box, client) == MIB + CODE
    client.ok("unload_library 0" if how == "library" else "unload 0")
    assert settled(box, client) == 0


@pytest.mark.parametrize("call", ["launch 1", "alloc 9 0", "sync", "function 3 0 one"])
def test_any_call_is_a_look_when_one_is_due(box: Box, start: Start, call: str) -> None:
    """Two functions in a row: the second's look is not due yet, and no launch of a new one follows."""
    box.fresh(part(0, GIB))
    client = start()
    client.ok(f"module 0 0 {CODE}", "function 1 0 one", "launch 1")
    settled(box, client)
    client.ok("function 4 0 two", "function 5 0 three")
    assert taken(box) == 3 * CODE
    time.sleep(LOOK_S)
    client.ask(call)
    assert box.used() == taken(box)


def test_what_does_not_fit_is_charged_all_the_same_and_nothing_else_fits(box: Box, start: Start) -> None:
    box.fresh(part(0, 4 * MIB))
    client = start()
    client.ok(f"module 0 0 {CODE}", "function 1 0 one", "function 2 0 two")
    assert settled(box, client) == 2 * CODE
    assert client.ask("alloc 8 1")[0] == OUT_OF_MEMORY
    client.ok("unload 0", f"alloc 8 {4 * MIB}")  # the room is there at once, before any look is due
    assert box.used() == 4 * MIB == taken(box)


def test_a_module_fits_where_another_ones_code_was(box: Box, start: Start) -> None:
    box.fresh(part(0, 4 * MIB))
    client = start()
    client.ok(f"module 0 0 {CODE}", "function 1 0 one")
    assert settled(box, client) == CODE
    client.ok("unload 0", f"module 0 {4 * MIB} 0")
    assert settled(box, client) == 4 * MIB


def test_the_end_of_a_context_gives_its_late_code_back(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB), context_bytes=MIB)
    client = start()
    client.ok("newctx 10 0", f"module 0 0 {CODE}", "function 1 0 one")
    assert settled(box, client) == 2 * MIB + CODE
    client.ok("destroyctx 10", "primary 0")
    assert settled(box, client) == MIB


def test_a_function_of_several_contexts_is_new_in_each(box: Box, start: Start) -> None:
    """On two GPUs; the code of the second is loaded by the launch there, which is not the function's first."""
    box.fresh(part(0, GIB), part(1, GIB))
    client = start()
    client.ok("newctx 10 0", "newctx 11 1", f"module 0 0 {CODE}", "setctx 10", f"module 1 0 {CODE}")
    client.ok("function 2 1 one", "launch 2")
    settled(box, client)
    client.ok("setctx 11", "function 3 0 one", "launch 3")
    time.sleep(LOOK_S)
    client.ok("sync")
    assert [box.used(gpu) for gpu in (0, 1)] == [CODE, CODE]


def test_a_killed_process_gives_its_late_code_back(box: Box, start: Start) -> None:
    box.fresh(part(0, GIB))
    client = start()
    client.ok(f"module 0 0 {CODE}", "function 1 0 one")
    assert settled(box, client) == CODE
    client.kill()
    other = start()
    other.ok("alloc 0 1")
    assert box.used() == 1 == taken(box)


def test_nvml_is_asked_seldom_and_not_at_all_when_nothing_is_new(box: Box, start: Start) -> None:
    """By making its answer slow: who waited is who asked."""
    box.fresh(part(0, GIB))
    client = start()
    client.ok("module 0 0 1024", "function 1 0 one", "launch 1")
    settled(box, client)
    settled(box, client)  # looks go on until two in a row find nothing new
    create.set_fault(box.folder / "sim", "slow=nvmlDeviceGetComputeRunningProcesses_v3:300ms")

    def took_s(*commands: str) -> float:
        began = time.monotonic()
        client.ok(*commands)
        return time.monotonic() - began

    time.sleep(LOOK_S)
    assert took_s("launch 1", "sync", "alloc 9 1", "function 1 0 one") < 0.3
    fresh = [command for number in range(20) for command in (f"function 2 0 name{number}", "launch 2")]
    assert 0.3 <= took_s(*fresh) < 0.9
    create.set_fault(box.folder / "sim", "")
    settled(box, client)
    assert box.used() == 21 * 1024 + 1
