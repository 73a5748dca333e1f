"""NVML shows the slice to real clients: the vendor's own Python binding."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

from libcuda_wrap.sim import create
from tests.libcuda_wrap.wrapped import GIB, OK, Box, part

SCRIPT = """
import json, pynvml as n
n.nvmlInit()
out = []
for i in range(n.nvmlDeviceGetCount()):
    h = n.nvmlDeviceGetHandleByIndex(i)
    m, m2 = n.nvmlDeviceGetMemoryInfo(h), n.nvmlDeviceGetMemoryInfo(h, version=n.nvmlMemory_v2)
    uuid = n.nvmlDeviceGetUUID(h)
    out.append(dict(uuid=uuid, total=m.total, used=m.used, free=m.free, v2=[m2.total, m2.used, m2.free, m2.reserved],
        index=n.nvmlDeviceGetIndex(h),
        pids=[[p.pid, p.usedGpuMemory] for p in n.nvmlDeviceGetComputeRunningProcesses(h)],
        same=n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByUUID(uuid)),
        pci=n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId(n.nvmlDeviceGetPciInfo(h).busId))))
errors = {}
for name, call in {CALLS}.items():
    try:
        call()
    except n.NVMLError as err:
        errors[name] = err.value
print(json.dumps(dict(devices=out, errors=errors)))
"""


def ask(box: Box, **calls: str) -> Any:
    text = ", ".join(f"{name!r}: lambda: {call}" for name, call in calls.items())
    done = box.run([sys.executable, "-c", SCRIPT.replace("{CALLS}", f"{{{text}}}")])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_memory_and_order_are_the_slices(plain_box: Box) -> None:
    plain_box.fresh(part(2, 8 * GIB), part(0, 4 * GIB), gpus=3)
    client = plain_box.client()
    assert client.ask("init")[0] == client.ask("primary 0")[0] == OK
    assert client.ask(f"alloc linear 0 {GIB}")[0] == OK  # CUDA device 0 is the slice's second
    first, second = ask(plain_box)["devices"]
    assert (first["uuid"], second["uuid"]) == (create.gpu_uuid(2), create.gpu_uuid(0))
    assert (first["total"], first["used"], first["free"]) == (8 * GIB, 0, 8 * GIB)
    assert (second["total"], second["used"], second["free"]) == (4 * GIB, GIB, 3 * GIB)
    assert second["v2"] == [4 * GIB, GIB, 3 * GIB, 0]
    assert [(device["index"], device["same"], device["pci"]) for device in (first, second)] == [(0, 0, 0), (1, 1, 1)]
    assert (first["pids"], second["pids"]) == ([], [[client.process.pid, GIB]])


def test_other_gpus_are_not_there(plain_box: Box) -> None:
    plain_box.fresh(part(1, GIB), gpus=2)
    said = ask(
        plain_box,
        index="n.nvmlDeviceGetHandleByIndex(1)",
        uuid=f"n.nvmlDeviceGetHandleByUUID({create.gpu_uuid(0)!r})",
        unknown="n.nvmlDeviceGetHandleByUUID('GPU-nothing')",
        pci="n.nvmlDeviceGetHandleByPciBusId('00000000:01:00.0')",
    )
    assert len(said["devices"]) == 1
    assert said["errors"].keys() == {"index", "uuid", "unknown", "pci"}


def test_the_dead_are_not_shown(plain_box: Box) -> None:
    plain_box.fresh(part(0, GIB))
    client = plain_box.client().ready()
    assert client.ask("alloc linear 0 4096")[0] == OK
    client.kill()
    (device,) = ask(plain_box)["devices"]
    assert (device["used"], device["pids"]) == (0, [])


@pytest.mark.parametrize("name", ["quota", "usage"])
def test_without_its_files_it_shows_nothing(plain_box: Box, name: str) -> None:
    plain_box.fresh(part(0, GIB))
    os.unlink(plain_box.folder / name)
    done = plain_box.run([sys.executable, "-c", "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetCount())"])
    assert done.returncode != 0 and "NVMLError" in done.stderr
