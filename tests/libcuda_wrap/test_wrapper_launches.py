"""Launches of kinds that are rare: by several GPUs together, by kernels, and in children. Witness: the simulation."""

from __future__ import annotations

import time

import pytest

from libcuda_wrap.sim import create
from tests.libcuda_wrap.wrapped import GIB, MIB, NOT_INITIALIZED, NOT_SUPPORTED, OK, Box, Client, part

KERNEL_NS = 10_000_000
DEVICE_LAUNCH = 2  # CUDA_GRAPH_INSTANTIATE_FLAG_DEVICE_LAUNCH


def busy_ns(box: Box, gpu: int) -> int:
    """By the simulated GPU's own count."""
    return create.read_state(box.folder / "sim").gpus[gpu].busy_ns


def on_two(box: Box) -> Client:
    """A client with function and stream on GPU 0 (registers 30 and 20) and on GPU 1 (31 and 21)."""
    client = box.client("kernels")
    client.ok("init")
    for gpu in (0, 1):
        client.ok(f"newctx {10 + gpu} {gpu}", f"stream {20 + gpu}", f"module {40 + gpu} 0 {MIB}")
        client.ok(f"function {30 + gpu} {40 + gpu} sleep_us_{KERNEL_NS // 1000}")
    return client


@pytest.mark.parametrize("shares", [(30, 60), (100, 40)])
def test_kernels_of_one_launch_on_two_gpus_keep_to_both_shares(plain_box: Box, shares: tuple[int, int]) -> None:
    plain_box.fresh(*(part(gpu, GIB, share) for gpu, share in enumerate(shares)))
    client = on_two(plain_box)
    client.ok(*["launch_on_two 30 20"] * 5, "stream_wait 20", "stream_wait 21")
    before, began = [busy_ns(plain_box, gpu) for gpu in (0, 1)], time.monotonic_ns()
    client.ok(*["launch_on_two 30 20"] * 25, "stream_wait 20", "stream_wait 21")
    took = time.monotonic_ns() - began
    for gpu in (0, 1):
        assert busy_ns(plain_box, gpu) - before[gpu] == 25 * KERNEL_NS
    assert 25 * KERNEL_NS / took <= min(shares) / 100 + 0.05
    client.ok("setctx 10", "launch 30 20", "setctx 11", "launch 31 21", "sync")  # what is measured by then is told
    for gpu, share in enumerate(shares):
        told = plain_box.usage().gpus[gpu]
        assert told.busy_ns == pytest.approx(30 * KERNEL_NS if share < 100 else 0, rel=0.1)


def test_without_a_share_they_are_let_through(box: Box) -> None:
    box.fresh(part(0, GIB), part(1, GIB))
    client = on_two(box)
    client.ok("launch_on_two 30 20", "stream_wait 20", "stream_wait 21")
    assert [busy_ns(box, gpu) for gpu in (0, 1)] == [KERNEL_NS, KERNEL_NS]
    time.sleep(0.12)  # a look at what was loaded is due
    client.ok("sync")
    assert [box.used(gpu) for gpu in (0, 1)] == [MIB, MIB]
    assert client.ask("launch_on_two 30 40")[0] != OK  # modules are no streams
    assert box.usage().gpus[0].launches == 0


def test_a_launch_in_another_contexts_stream_is_the_streams_gpus(plain_box: Box) -> None:
    """A library's kernel is of no context: the stream says where it runs, not what is current."""
    plain_box.fresh(part(0, GIB), part(1, GIB, 40))
    client = plain_box.client("kernels")
    client.ok("init", "newctx 10 0", "newctx 11 1", "stream 21", "setctx 10", "library 40 0 0")
    client.ok(f"kernel 30 40 sleep_us_{KERNEL_NS // 1000}", *["launch 30 21"] * 5, "stream_wait 21")
    before, began = busy_ns(plain_box, 1), time.monotonic_ns()
    client.ok(*["launch 30 21"] * 25, "stream_wait 21")
    took = time.monotonic_ns() - began
    assert busy_ns(plain_box, 1) - before == 25 * KERNEL_NS
    assert 25 * KERNEL_NS / took <= 0.45


@pytest.mark.parametrize("how", ["g_make", "g_make_params"])
def test_a_graph_that_kernels_may_launch_needs_a_container_without_share(box: Box, how: str) -> None:
    box.fresh(part(0, GIB, 50))
    client = box.client("kernels").ready()
    client.ok("module 1 0 0", "function 2 1 one", "g_capture 3 2 2", "g_make 4 3 0", "g_upload 4", "g_launch 4")
    assert client.ask(f"{how} 5 3 {DEVICE_LAUNCH}")[0] == NOT_SUPPORTED
    assert box.usage().gpus[0].denied["refused"] == 1
    box.set_cores(100)
    client.ok(f"{how} 5 3 {DEVICE_LAUNCH}", "g_upload 5", "g_launch 5", "sync", "g_end 5", "g_end 4")


def test_a_child_with_its_parents_handles_gets_the_drivers_answer_and_charges_nothing(box: Box) -> None:
    """CUDA is unusable in a child: each call there says so, with a share as without."""
    for share in (100, 50):
        box.fresh(part(0, GIB, share), context_bytes=MIB)
        client = box.client("kernels").ready()
        client.ok(
            f"module 1 {MIB} {MIB}", "function 2 1 one", "alloc 3 4096", "stream 9", "g_capture 4 2 1", "g_make 5 4 0"
        )
        client.ok("launch 2 9", "green 6 0 8", f"tile_pool 7 {2 * MIB} 0", "tile_array 8 256 256 64 0")
        client.ok("sync")
        time.sleep(0.12)
        client.ok("sync")
        used = box.used()
        answers = client.words("child")
        assert set(answers) == {str(NOT_INITIALIZED)}
        assert len(answers) > 20
        assert (box.used(), len(box.usage().processes)) == (used, 1)
        client.ok("launch 2 9", "free 3", "unload 1", "sync")
        client.end()


def test_what_was_launched_in_a_stream_that_ends_is_measured(plain_box: Box) -> None:
    """The second launch of each round is in a batch that is still open when its stream goes: it takes thirteen times as
    long as was learned, and nobody could measure it afterwards."""
    plain_box.fresh(part(0, 100 * MIB, 90))
    client = plain_box.client("kernels")
    client.ok("init", "primary 0", "module 2 0 0", "function 3 2 kernel")
    client.ok(*["launch_and_end 3 1"] * 20, *["launch_and_end 3 2"] * 80)
    client.ok("sync", "launch 3", "sync", "launch 3", "sync")
    assert plain_box.usage().gpus[0].busy_ns == pytest.approx(busy_ns(plain_box, 0), rel=0.2)
