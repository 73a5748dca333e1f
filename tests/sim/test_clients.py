"""Real clients, as their authors ship them, on the simulated driver."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from libcuda_wrap.sim import create

GIB = 1 << 30
HOLDER = """
import sys, time
from cuda.bindings import driver as cuda
def ok(result):
    assert result[0] == cuda.CUresult.CUDA_SUCCESS, result
    return result[1] if len(result) == 2 else result[1:]
ok(cuda.cuInit(0))
context = ok(cuda.cuDevicePrimaryCtxRetain(0))
ok(cuda.cuCtxSetCurrent(context))
memory = ok(cuda.cuMemAlloc(256 << 20))
"""
WAITS = HOLDER + "print('ready', flush=True); sys.stdin.readline()\n"


def test_cuda_bindings(python: Callable[..., str]) -> None:
    pytest.importorskip("cuda.bindings")
    code = f"""{HOLDER}
assert ok(cuda.cuDeviceGetCount()) == 2 and ok(cuda.cuDeviceTotalMem(0)) == {GIB}
data, back = bytes(range(256)) * 4096, bytearray(1 << 20)
ok(cuda.cuMemcpyHtoD(memory, data, len(data)))
ok(cuda.cuMemcpyDtoH(back, memory, len(back)))
print(back == data, cuda.cuMemAlloc({GIB} - (256 << 20) + 1)[0].name)
rest = ok(cuda.cuMemAlloc({GIB} - (256 << 20)))
print(ok(cuda.cuMemGetInfo()), ok(cuda.cuGetErrorString(cuda.CUresult(2))).decode())
stream = ok(cuda.cuStreamCreate(0))
kernel = ok(cuda.cuModuleGetFunction(ok(cuda.cuModuleLoadData(b"image")), b"sleep_us_1000"))
ok(cuda.cuLaunchKernel(kernel, 1, 1, 1, 32, 1, 1, 0, stream, 0, 0))
ok(cuda.cuStreamSynchronize(stream))
"""
    assert python(code) == f"True CUDA_ERROR_OUT_OF_MEMORY\n(0, {GIB}) out of memory\n"


@pytest.fixture
def holder(environment: dict[str, str]) -> subprocess.Popen[str]:
    """A process that holds 256 MiB of GPU 0."""
    pytest.importorskip("cuda.bindings")
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    yield process  # type: ignore[misc]  # a fixture
    process.kill()
    process.wait()


def test_pynvml_sees_processes_and_memory(
    holder: subprocess.Popen[str], python: Callable[..., str], gpus: Path
) -> None:
    pytest.importorskip("pynvml")
    code = """
import pynvml as n
n.nvmlInit()
handle = n.nvmlDeviceGetHandleByIndex(0)
assert n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(handle))) == 0
assert n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId(n.nvmlDeviceGetPciInfo(handle).busId)) == 0
assert n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleBySerial(n.nvmlDeviceGetSerial(handle))) == 0
print([(p.pid, p.usedGpuMemory) for p in n.nvmlDeviceGetComputeRunningProcesses(handle)])
for version in (None, n.nvmlMemory_v2):
    memory = n.nvmlDeviceGetMemoryInfo(handle, version)
    print(memory.total, memory.used, memory.free)
print(n.nvmlDeviceGetCount(), n.nvmlDeviceGetMemoryInfo(n.nvmlDeviceGetHandleByIndex(1)).used)
"""
    memory = f"{GIB} {256 << 20} {GIB - (256 << 20)}\n"
    assert python(code) == f"[({holder.pid}, {256 << 20})]\n{memory}{memory}2 0\n"
    (process,) = create.read_state(gpus).gpus[0].processes
    assert (process.pid, process.memory_bytes, process.contexts) == (holder.pid, 256 << 20, 1)
    holder.kill()
    holder.wait()
    assert python(code) == f"[]\n{GIB} 0 {GIB}\n{GIB} 0 {GIB}\n2 0\n"
    assert create.read_state(gpus).gpus[0].used_bytes == 0


def test_nvitop_and_gpustat(holder: subprocess.Popen[str], environment: dict[str, str]) -> None:
    for module, arguments, wanted in (
        (
            "nvitop",
            ["--once", "--ascii"],
            ["256.0MiB / 1024MiB", "Simulated GPU", create.DRIVER_VERSION, str(holder.pid)],
        ),
        ("gpustat", ["--no-color", "--show-pid"], ["256 /  1024 MB", "Simulated GPU", f"/{holder.pid}("]),
    ):
        pytest.importorskip(module)
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert [text for text in wanted if text not in done.stdout] == [], done.stdout


def test_only_visible_gpus_are_there(python: Callable[..., str], gpus: Path) -> None:
    pytest.importorskip("cuda.bindings")
    code = """
from cuda.bindings import driver as cuda
print(cuda.cuInit(0)[0].name, cuda.cuDeviceGetCount()[1], cuda.cuDeviceGetUuid(0)[1].bytes.hex())
"""
    first, second = (create.gpu_uuid(index).removeprefix("GPU-").replace("-", "") for index in (0, 1))
    assert python(code).split() == ["CUDA_SUCCESS", "2", first]
    assert python(code, CUDA_VISIBLE_DEVICES="1,0").split() == ["CUDA_SUCCESS", "2", second]
    assert python(code, CUDA_VISIBLE_DEVICES=create.gpu_uuid(1)[:12]).split() == ["CUDA_SUCCESS", "1", second]
    assert python("from cuda.bindings import driver as c; print(c.cuInit(0)[0].name)", CUDA_VISIBLE_DEVICES="-1") == (
        "CUDA_ERROR_NO_DEVICE\n"
    )
    os.unlink(gpus / "gpu0")
    assert python(code).split() == ["CUDA_SUCCESS", "1", second]


def test_without_the_folder_there_is_no_driver(python: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings")
    code = """
import pynvml
from cuda.bindings import driver as cuda
print(cuda.cuInit(0)[0].name, cuda.cuDriverGetVersion()[1])
try:
    pynvml.nvmlInit()
except pynvml.NVMLError as error:
    print(type(error).__name__)
"""
    assert python(code, VGPU_SIM_DIR=str(tmp_path / "none")) == (
        "CUDA_ERROR_NO_DEVICE 13000\nNVMLError_DriverNotLoaded\n"
    )


def test_faults_on_demand(python: Callable[..., str], gpus: Path) -> None:
    pytest.importorskip("cuda.bindings")
    code = f"""{HOLDER}
import time
print([cuda.cuMemAlloc(1)[0].value for _ in range(4)])
before = time.monotonic()
cuda.cuMemGetInfo()
print(time.monotonic() - before >= 0.05)
"""
    assert python(code, VGPU_SIM_FAULT="cuMemAlloc=2@3,slow=cuMemGetInfo:50ms") == "[0, 2, 0, 0]\nTrue\n"
    create.set_fault(gpus, "cuMemGetInfo=999")
    assert python(f"{HOLDER}\nprint(cuda.cuMemGetInfo()[0].value)") == "999\n"
    create.set_fault(gpus, "")
    create.lose_gpu(gpus, 0)
    lost = """
import pynvml
from cuda.bindings import driver as cuda
cuda.cuInit(0)
print(cuda.cuDeviceGetCount()[0].name)
pynvml.nvmlInit()
try:
    pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
except pynvml.NVMLError as error:
    print(type(error).__name__)
"""
    assert python(lost) == "CUDA_ERROR_UNKNOWN\nNVMLError_GpuIsLost\n"
    assert python(f"{HOLDER}\nprint('back')") if not create.lose_gpu(gpus, 0, lost=False) else ""
