"""The clients of gpu_check, each a process of its own: `python programs.py NAME`. They know nothing of a slice.

Each prints one JSON object of what it saw while it holds all that it could get, waits for a line, gives everything
back, and prints another. Only the standard library, and the one package that a client is about.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint, c_ulonglong, c_ushort, c_void_p
from typing import Any

MIB = 1 << 20
STEPS = (64 * MIB, 2 * MIB)  # 2 MiB: in smaller pieces no GPU gives memory to a process
OUT_OF_MEMORY = 2
NOT_RUN = 77  # exit code of a client whose package is here, but not for a GPU


def not_run(why: str) -> None:
    print(why, file=sys.stderr)
    sys.exit(NOT_RUN)


def take_all(allocate: Callable[[int], Any]) -> tuple[list[Any], int]:
    """Allocates until there is no more. allocate: returns None when refused. What it got, and its bytes."""
    kept: list[Any] = []
    taken = 0
    for step in STEPS:
        while (found := allocate(step)) is not None:
            kept.append(found)
            taken += step
    return kept, taken


def held(seen: dict[str, Any]) -> None:
    """Shows what was seen, and waits until the other side has looked at the GPU."""
    print(json.dumps(seen), flush=True)
    sys.stdin.readline()


# --- the driver's own interface ---------------------------------------------------------------------------------------


class Location(ctypes.Structure):
    _fields_ = [("type", c_int), ("id", c_int)]


class AllocationProp(ctypes.Structure):
    _fields_ = [
        ("type", c_int),
        ("handles", c_int),
        ("location", Location),
        ("win32", c_void_p),
        ("flags", c_ulonglong),
    ]


class PoolProps(ctypes.Structure):
    _fields_ = [
        ("type", c_int), ("handles", c_int), ("location", Location), ("win32", c_void_p), ("max_size", c_size_t),
        ("usage", c_ushort), ("reserved", ctypes.c_ubyte * 54),
    ]  # fmt: skip


class ArrayDescriptor(ctypes.Structure):
    _fields_ = [("width", c_size_t), ("height", c_size_t), ("format", c_int), ("channels", c_uint)]


PINNED, ON_DEVICE, FLOAT = 1, 1, 0x20


def settled(info: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    """Free and total once the code that was loaded so far is charged: that is looked for every tenth of a second."""
    for _ in range(4):
        time.sleep(0.12)
        seen = info()
    return seen


class Driver:
    """libcuda.so.1, as the loader finds it, with the primary context of its first GPU."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.context, self.pool, self.device = c_void_p(), c_void_p(), c_int()
        self.call("cuInit", c_uint(0))
        self.call("cuDeviceGet", byref(self.device), c_int(0))
        self.call("cuDevicePrimaryCtxRetain", byref(self.context), self.device)
        self.call("cuCtxSetCurrent", self.context)
        self.refused: set[int] = set()

    def call(self, name: str, *arguments: Any) -> None:
        result = getattr(self.library, name)(*arguments)
        if result != 0:
            raise SystemExit(f"{name}: error {result}")

    def wanted(self, name: str, *arguments: Any) -> bool:
        """As `call`; False where the driver refuses, and what it said is kept."""
        result = getattr(self.library, name)(*arguments)
        if result != 0:
            self.refused.add(result)
        return bool(result == 0)

    def info(self) -> tuple[int, int]:
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value, total.value

    def linear(self, size: int) -> Callable[[], None] | None:
        at = c_ulonglong()
        done = self.wanted("cuMemAlloc_v2", byref(at), c_size_t(size))
        return (lambda: self.call("cuMemFree_v2", at)) if done else None

    def managed(self, size: int) -> Callable[[], None] | None:
        at = c_ulonglong()
        done = self.wanted("cuMemAllocManaged", byref(at), c_size_t(size), c_uint(1))
        return (lambda: self.call("cuMemFree_v2", at)) if done else None

    def pitch(self, size: int) -> Callable[[], None] | None:
        at, row, rows = c_ulonglong(), c_size_t(), size // MIB
        done = self.wanted("cuMemAllocPitch_v2", byref(at), byref(row), c_size_t(MIB), c_size_t(rows), c_uint(4))
        return (lambda: self.call("cuMemFree_v2", at)) if done else None

    def asynchronous(self, size: int) -> Callable[[], None] | None:
        at = c_ulonglong()
        done = self.wanted("cuMemAllocAsync", byref(at), c_size_t(size), c_void_p())
        return (lambda: self.call("cuMemFreeAsync", at, c_void_p())) if done else None

    def from_pool(self, size: int) -> Callable[[], None] | None:
        if not self.pool:
            props = PoolProps(type=PINNED, location=Location(ON_DEVICE, self.device.value))
            self.call("cuMemPoolCreate", byref(self.pool), byref(props))
        at = c_ulonglong()
        done = self.wanted("cuMemAllocFromPoolAsync", byref(at), c_size_t(size), self.pool, c_void_p())
        return (lambda: self.call("cuMemFreeAsync", at, c_void_p())) if done else None

    def array(self, size: int) -> Callable[[], None] | None:
        at = c_void_p()
        shape = ArrayDescriptor(1024, size // 4096, FLOAT, 1)
        done = self.wanted("cuArrayCreate_v2", byref(at), byref(shape))
        return (lambda: self.call("cuArrayDestroy", at)) if done else None

    def physical(self, size: int) -> Callable[[], None] | None:
        at = c_ulonglong()
        prop = AllocationProp(type=PINNED, location=Location(ON_DEVICE, self.device.value))
        done = self.wanted("cuMemCreate", byref(at), c_size_t(size), byref(prop), c_ulonglong(0))
        return (lambda: self.call("cuMemRelease", at)) if done else None

    def give_back_pools(self) -> None:
        self.call("cuCtxSynchronize")
        default = c_void_p()
        self.call("cuDeviceGetDefaultMemPool", byref(default), self.device)
        self.call("cuMemPoolTrimTo", default, c_size_t(0))
        if self.pool:
            self.call("cuMemPoolDestroy", self.pool)


FAMILIES = ("linear", "managed", "pitch", "asynchronous", "from_pool", "array", "physical")
POOLED = ("asynchronous", "from_pool")


def family(name: str) -> None:
    driver = Driver()
    free, total = settled(driver.info)
    kept, taken = take_all(getattr(driver, name))
    held({"total": total, "free": free, "taken": taken, "refused": sorted(driver.refused)})
    for release in kept:
        release()
    if name in POOLED:
        driver.give_back_pools()
    print(json.dumps({"free_after": driver.info()[0]}), flush=True)


DESCRIPTOR, SHARED, HANDLE_TYPES_OF_POOLS = 1, 64 * MIB, 119  # CU_MEM_HANDLE_TYPE_…, bytes, CU_DEVICE_ATTRIBUTE_…


def shared_pool() -> None:
    """A pool that another process imports: what that is charged for it, by its own figures."""
    driver = Driver()
    types, fd, pool, at, name = c_int(), c_int(), c_void_p(), c_ulonglong(), ctypes.create_string_buffer(64)
    driver.call("cuDeviceGetAttribute", byref(types), c_int(HANDLE_TYPES_OF_POOLS), c_int(0))
    if not types.value & DESCRIPTOR:
        not_run("this GPU's pools are not shared by descriptor")
    props = PoolProps(type=PINNED, handles=DESCRIPTOR, location=Location(ON_DEVICE, 0))
    driver.call("cuMemPoolCreate", byref(pool), byref(props))
    driver.call("cuMemAllocFromPoolAsync", byref(at), c_size_t(SHARED), pool, c_void_p())
    driver.call("cuMemPoolExportToShareableHandle", byref(fd), pool, c_int(DESCRIPTOR), c_ulonglong(0))
    driver.call("cuMemPoolExportPointer", name, at)
    command = [sys.executable, __file__, "imported_pool", str(fd.value), name.raw.hex()]
    free, total = driver.info()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, pass_fds=[fd.value]) as importer:
        assert importer.stdout
        held({"total": total, "free": free, **json.loads(importer.stdout.readline())})
        importer.communicate("\n")
    print(json.dumps({"free_after": driver.info()[0]}), flush=True)


def imported_pool() -> None:
    driver, pool, at = Driver(), c_void_p(), c_ulonglong()
    fd, name = c_void_p(int(sys.argv[2])), ctypes.create_string_buffer(bytes.fromhex(sys.argv[3]))
    before, flags = driver.info()[0], c_ulonglong(0)
    done = driver.wanted("cuMemPoolImportFromShareableHandle", byref(pool), fd, c_int(DESCRIPTOR), flags)
    done = done and driver.wanted("cuMemPoolImportPointer", byref(at), pool, name)
    held({"imported": done, "errors": sorted(driver.refused), "taken": before - driver.info()[0]})


# --- packages ---------------------------------------------------------------------------------------------------------


def torch_with_cuda() -> Any:
    """A build for another device is not run; one that cannot start on this GPU is a failure, which is shown."""
    import torch

    if not torch.version.cuda:
        not_run(f"torch {torch.__version__} is not built for CUDA")
    torch.cuda.init()
    return torch


def torch_client() -> None:
    torch = torch_with_cuda()
    device = torch.device("cuda:0")
    torch.manual_seed(1)
    left, right = torch.rand(512, 512), torch.rand(512, 512)
    error = float((left.to(device) @ right.to(device)).cpu().sub(left @ right).abs().max())
    torch.cuda.empty_cache()
    free, total = settled(lambda: torch.cuda.mem_get_info(device))

    def allocate(size: int) -> Any:
        try:
            return torch.empty(size, dtype=torch.uint8, device=device)
        except RuntimeError as refused:  # torch.cuda.OutOfMemoryError, which old versions lack
            if "out of memory" not in str(refused):
                raise
            return None

    kept, taken = take_all(allocate)
    reserved = torch.cuda.memory_reserved(device)
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    held({"total": total, "free": free, "taken": taken, "reserved": reserved, "matmul_error": error, **versions})
    kept.clear()
    torch.cuda.empty_cache()
    print(json.dumps({"free_after": torch.cuda.mem_get_info(device)[0]}), flush=True)


def cupy_client() -> None:
    import cupy
    import numpy

    left, right = (numpy.random.default_rng(seed).random((512, 512), numpy.float32) for seed in (1, 2))
    error = float(numpy.abs(cupy.asnumpy(cupy.asarray(left) @ cupy.asarray(right)) - left @ right).max())
    cupy.get_default_memory_pool().free_all_blocks()
    free, total = settled(cupy.cuda.runtime.memGetInfo)

    def allocate(size: int) -> Any:
        try:
            return cupy.empty(size, cupy.uint8)
        except cupy.cuda.memory.OutOfMemoryError:
            return None

    kept, taken = take_all(allocate)
    held({"total": total, "free": free, "taken": taken, "matmul_error": error, "cupy": cupy.__version__})
    kept.clear()
    cupy.get_default_memory_pool().free_all_blocks()
    print(json.dumps({"free_after": cupy.cuda.runtime.memGetInfo()[0]}), flush=True)


def jax_client() -> None:
    """With XLA_PYTHON_CLIENT_ALLOCATOR=platform: each array is an allocation of the driver's."""
    import jax
    import numpy

    plugins = [name for name in ("jax_cuda13_plugin", "jax_cuda12_plugin") if importlib.util.find_spec(name)]
    if jax.default_backend() != "gpu":
        if not plugins:
            not_run(f"jax {jax.__version__} has no plugin for CUDA")
        raise SystemExit(f"jax runs on {jax.default_backend()}, not on the GPU")
    left, right = (numpy.random.default_rng(seed).random((512, 512), numpy.float32) for seed in (1, 2))
    product = jax.numpy.matmul(left, right, precision="highest")
    error = float(numpy.abs(numpy.asarray(product) - left @ right).max())

    def allocate(size: int) -> Any:
        try:
            return jax.device_put(numpy.zeros(size, numpy.uint8)).block_until_ready()
        except Exception as refused:  # jaxlib's own class, whose place differs between versions
            if "RESOURCE_EXHAUSTED" not in str(refused):
                raise
            return None

    driver = Driver()  # for the questions only: jax has none of its own
    free, total = settled(driver.info)
    kept, taken = take_all(allocate)
    held({"total": total, "free": free, "taken": taken, "matmul_error": error, "jax": jax.__version__})
    for each in kept:
        each.delete()
    print(json.dumps({"free_after": driver.info()[0]}), flush=True)


def torch_speed() -> None:
    """Microseconds of a kernel in a loop of tiny ones, and of a large matmul; by CUDA events, best of five."""
    torch = torch_with_cuda()
    small = torch.zeros(1, device="cuda")
    large = torch.rand(4096, 4096, device="cuda", dtype=torch.float16)

    def best_us(work: Callable[[], Any], count: int) -> float:
        found: list[float] = []
        for _ in range(6):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            for _ in range(count):
                work()
            end.record()
            torch.cuda.synchronize()
            found.append(begin.elapsed_time(end) * 1000 / count)
        return min(found[1:])

    launch = best_us(lambda: small.add_(1), 5000)
    matmul = best_us(lambda: large @ large, 100)
    began = time.perf_counter()
    for _ in range(200):  # not from torch's own cache: each is an allocation and a free of the driver's
        torch.empty(2 * MIB, dtype=torch.uint8, device="cuda")
        torch.cuda.empty_cache()
    allocation = (time.perf_counter() - began) / 200 * 1e6
    print(json.dumps({"launch_bound_us": launch, "compute_bound_us": matmul, "allocation_us": allocation}), flush=True)


CLIENTS = {
    "torch": torch_client,
    "cupy": cupy_client,
    "jax": jax_client,
    "torch_speed": torch_speed,
    "shared_pool": shared_pool,
    "imported_pool": imported_pool,
}

if __name__ == "__main__":
    if sys.argv[1] in FAMILIES:
        family(sys.argv[1])
    else:
        CLIENTS[sys.argv[1]]()
