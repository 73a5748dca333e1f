"""`vgpu set` on a container that runs, under real runc and crun: nothing is restarted, the next call sees it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness import bundle
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e
GIB = 1 << 30
SLICE = {"vgpu.memory": "8GiB", "vgpu.cores": "30"}


def wait_for_use(vgpu: Vgpu, used_bytes: int) -> None:
    until = time.monotonic() + 20
    found: Any = None
    while time.monotonic() < until:
        containers = json.loads(vgpu("ps", "--json").stdout)["containers"]
        found = [gpu["used_bytes"] for container in containers for gpu in container["gpus"]]
        if found == [used_bytes]:
            return
        time.sleep(0.1)
    raise AssertionError(f"{used_bytes} bytes in use expected, {found} found")


def test_a_running_container_gets_more_and_less(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    args = ["cuda_client", "hold", "100"]
    with bundle.container(vgpu.runtime, tmp_path / "b", c_tree, args, annotations=SLICE) as box:
        assert box.create().code == 0
        box.start()
        wait_for_use(vgpu, 4 * GIB)  # half of the slice
        vgpu("set", box.id[:40], "--memory", "12GiB", "--cores", "50")
        told = box.exec(["cuda_client", "info"]).stdout
        assert f"{12 * GIB} bytes of memory" in told and f"{8 * GIB} free" in told
        (given,) = vgpu.allocation(box.id)["placement"]["slices"]
        assert (given["memory_bytes"], given["cores_percent"]) == (12 * GIB, 50)
        assert box.exec(["cuda_client", "alloc", str(8 * GIB)]).returncode == 0

        refused = vgpu("set", box.id, "--memory", "2GiB", check=False)
        assert refused.returncode == 3 and "VGPU-SET-002" in refused.stderr and "4 GiB of GPU" in refused.stderr
        vgpu("set", box.id, "--memory", "2GiB", "--force")
        smaller = box.exec(["cuda_client", "alloc", "1"])
        assert smaller.returncode == 1 and "CUDA_ERROR_OUT_OF_MEMORY" in smaller.stdout

        refused = vgpu("set", box.id, "--memory", "81GiB", check=False)
        assert refused.returncode == 4 and "CardInsufficientMemory" in refused.stderr
        bundle.kill(box.pid)
    events = [entry["event"] for entry in vgpu.audit() if entry["id"] == box.id]
    assert events.count("resize") == 2
