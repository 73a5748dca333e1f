"""NVML's processes and their use of the GPU: the container's own, and nothing of a neighbour on the same GPU."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from libcuda_wrap.sim import create
from tests.libcuda_wrap.wrapped import GIB, MIB, OK, Box, part

BUSY = """
import ctypes, sys
cuda, handle, function = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(), ctypes.c_void_p()
def ok(result):
    assert result == 0, result
ok(cuda.cuInit(0)); ok(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(handle), 0)); ok(cuda.cuCtxSetCurrent(handle))
memory, module = ctypes.c_uint64(), ctypes.c_void_p()
ok(cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(int(sys.argv[1]))))
ok(cuda.cuModuleLoadData(ctypes.byref(module), b"image"))
ok(cuda.cuModuleGetFunction(ctypes.byref(function), module, b"sleep_us_2000"))
print("ready", flush=True)
while True:
    for _ in range(2):
        ok(cuda.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, None, None))
    ok(cuda.cuCtxSynchronize())
"""
LOOK = """
import ctypes, json, time, pynvml as n
n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(0)
def processes(call):
    return sorted([p.pid, p.usedGpuMemory] for p in call(h))
def first(name, record):
    call, count, room = getattr(ctypes.CDLL("libnvidia-ml.so.1"), name), ctypes.c_uint(0), (record * 8)()
    sizes = [call(h, ctypes.byref(count), None), count.value]
    count.value = 8
    return sizes + [call(h, ctypes.byref(count), room), count.value, room[0].pid, room[0].usedGpuMemory]
class V1(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_uint), ("usedGpuMemory", ctypes.c_ulonglong)]
class V2(ctypes.Structure):
    _fields_ = [*V1._fields_, ("gpuInstanceId", ctypes.c_uint), ("computeInstanceId", ctypes.c_uint)]
n.nvmlDeviceGetUtilizationRates(h)
time.sleep(0.5)  # use is measured between two looks
samples = n.nvmlDeviceGetProcessUtilization(h, 0)
infos = n.nvmlDeviceGetProcessesUtilizationInfo(h, 0)
print(json.dumps(dict(
    compute=processes(n.nvmlDeviceGetComputeRunningProcesses),
    graphics=processes(n.nvmlDeviceGetGraphicsRunningProcesses),
    mps=processes(n.nvmlDeviceGetMPSComputeRunningProcesses),
    v1=first("nvmlDeviceGetComputeRunningProcesses", V1), v2=first("nvmlDeviceGetComputeRunningProcesses_v2", V2),
    v3=first("nvmlDeviceGetComputeRunningProcesses_v3", V2),
    samples=[[s.pid, s.smUtil] for s in samples], infos=[info.pid for info in infos],
    gpu=n.nvmlDeviceGetUtilizationRates(h).gpu)))
"""


@pytest.fixture
def busy(plain_box: Box, driver: Path) -> Iterator[Callable[[int, bool], int]]:
    """Starts a program that keeps GPU 0 busy, in this container or (a neighbour) on the bare driver; gives its pid."""
    started: list[subprocess.Popen[str]] = []

    def start(memory_bytes: int, neighbour: bool) -> int:
        environment = plain_box.environment()
        if neighbour:
            environment["LD_LIBRARY_PATH"] = str(driver)
        command = [sys.executable, "-c", BUSY, str(memory_bytes)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True))
        assert started[-1].stdout and started[-1].stdout.readline() == "ready\n"
        return started[-1].pid

    yield start
    for process in started:
        process.kill()
        process.communicate()


def look(box: Box, code: str, **environment: str) -> Any:
    done = box.run([sys.executable, "-c", code], **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_only_the_containers_processes_and_their_use_are_shown(
    plain_box: Box, busy: Callable[[int, bool], int]
) -> None:
    plain_box.fresh(part(0, GIB))
    own, neighbour = busy(64 * MIB, False), busy(96 * MIB, True)
    said = look(plain_box, LOOK)
    assert said["compute"] == [[own, 64 * MIB]]
    assert said["graphics"] == said["mps"] == []
    assert said["v1"] == said["v2"] == said["v3"] == [7, 1, 0, 1, own, 64 * MIB]  # 7: room for 1 is needed
    assert [pid for pid, _ in said["samples"]] == said["infos"] == [own]
    assert neighbour not in said["infos"]
    assert 10 < said["gpu"] < 90, said  # the neighbour has about as much again, so that the GPU is never idle


def test_a_container_that_does_nothing_sees_an_idle_gpu(plain_box: Box, busy: Callable[[int, bool], int]) -> None:
    plain_box.fresh(part(0, GIB))
    busy(MIB, True)
    code = """
import json, time, pynvml as n
n.nvmlInit()
h = n.nvmlDeviceGetHandleByIndex(0)
n.nvmlDeviceGetUtilizationRates(h)
time.sleep(0.3)
try:
    found = len(n.nvmlDeviceGetProcessUtilization(h, 0))
except n.NVMLError_NotFound:
    found = "none"
print(json.dumps([n.nvmlDeviceGetUtilizationRates(h).gpu, found, len(n.nvmlDeviceGetComputeRunningProcesses(h))]))
"""
    assert look(plain_box, code) == [0, "none", 0]


def test_lists_of_other_tenants_are_refused(plain_box: Box) -> None:
    plain_box.fresh(part(0, GIB))
    code = """
import ctypes, json, pynvml as n
n.nvmlInit()
h, ml, room = n.nvmlDeviceGetHandleByIndex(0), ctypes.CDLL("libnvidia-ml.so.1"), ctypes.create_string_buffer(4096)
names = ["RunningProcessDetailList", "AccountingPids", "AccountingStats", "AccountingStats_v2"]
print(json.dumps([getattr(ml, f"nvmlDeviceGet{name}")(h, room, room) for name in names]))
"""
    assert look(plain_box, code) == [3, 3, 3, 3]


def test_handles_by_serial_and_by_binary_uuid(plain_box: Box) -> None:
    plain_box.fresh(part(1, GIB), gpus=2)
    code = """
import json, pynvml as n
n.nvmlInit()
print(json.dumps(n.nvmlDeviceGetSerial(n.nvmlDeviceGetHandleByIndex(0))))
"""
    serial = look(plain_box, code)
    other = """
import json, sys, pynvml as n
n.nvmlInit()
print(json.dumps(n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleBySerial(SERIAL))))
"""
    assert look(plain_box, other.replace("SERIAL", repr(serial))) == 0
    plain_box.fresh(part(0, GIB), gpus=2)  # now that GPU belongs to somebody else
    done = plain_box.run([sys.executable, "-c", other.replace("SERIAL", repr(serial))])
    assert "NVMLError_NotFound" in done.stderr


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_cuda_and_nvml_number_the_gpus_alike_in_every_order(plain_box: Box, order: tuple[int, ...]) -> None:
    plain_box.fresh(*(part(index, (index + 1) * GIB) for index in order), gpus=3)
    client = plain_box.client()
    assert client.ask("init")[0] == OK
    devices = [client.words(f"get {ordinal}") for ordinal in range(3)]
    cuda = [uuid for _, _, uuid in devices]
    totals = [client.ask(f"total {device}")[1] for _, device, _ in devices]
    code = """
import json, pynvml as n
n.nvmlInit()
handles = [n.nvmlDeviceGetHandleByIndex(i) for i in range(n.nvmlDeviceGetCount())]
print(json.dumps([[n.nvmlDeviceGetUUID(h), n.nvmlDeviceGetMemoryInfo(h).total] for h in handles]))
"""
    nvml = look(plain_box, code)
    assert nvml == [[create.gpu_uuid(index), (index + 1) * GIB] for index in order]
    assert cuda == [uuid.removeprefix("GPU-").replace("-", "") for uuid, _ in nvml]
    assert totals == [total for _, total in nvml]


@pytest.mark.parametrize(("visible", "seen"), [("0", [0]), ("1", [2]), ("1,0", [2, 0]), ("", [])])
def test_the_programs_own_choice_counts_within_the_slice(plain_box: Box, visible: str, seen: list[int]) -> None:
    """GPUs 0 and 2 are the container's, and only they are visible in it; 1 is a neighbour's."""
    plain_box.fresh(part(0, GIB), part(2, 2 * GIB), gpus=3)
    (plain_box.folder / "sim/gpu1").unlink()
    client = plain_box.client(CUDA_VISIBLE_DEVICES=visible)
    result = client.ask("init")[0]
    assert (result == OK) == bool(seen)
    found = [client.words(f"get {ordinal}")[2] for ordinal in range(len(seen))]
    assert found == [create.gpu_uuid(index).removeprefix("GPU-").replace("-", "") for index in seen]
    uuid = plain_box.client(CUDA_VISIBLE_DEVICES=create.gpu_uuid(2))
    assert uuid.ask("init")[0] == OK and uuid.ask("total 0")[1] == 2 * GIB


@pytest.mark.parametrize(
    ("module", "arguments", "wanted"),
    [
        ("nvitop", ["--once", "--ascii"], ["64.00MiB / 1024MiB", "64.0MiB / 1024MiB", "64MiB / 1024MiB"]),
        ("gpustat", ["--no-color", "--show-pid"], ["64 /  1024 MB"]),
    ],
)
def test_peoples_tools_show_the_slice(plain_box: Box, module: str, arguments: list[str], wanted: list[str]) -> None:
    pytest.importorskip(module)
    plain_box.fresh(part(0, GIB), gpus=2)
    client = plain_box.client().ready()
    assert client.ask(f"alloc linear 0 {64 * MIB}")[0] == OK
    done = plain_box.run([sys.executable, "-m", module, *arguments])
    assert done.returncode == 0, done.stderr
    assert any(text in done.stdout for text in wanted), done.stdout
    assert str(client.process.pid) in done.stdout and "1024" in done.stdout and "81920" not in done.stdout
