"""What shows and explains, with a real container: its processes are found by the runtime's control group."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.harness import bundle
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e
GIB = 1 << 30


def test_both_accounts_of_a_real_container_agree(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    asked = {"vgpu.memory": "8GiB", "vgpu.cores": "30"}
    args = ["cuda_client", "hold", "300"]
    with bundle.container(vgpu.runtime, tmp_path / "b", c_tree, args, annotations=asked) as box:
        assert box.create().code == 0
        box.start()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            shown = json.loads(vgpu("top", "--json", "--interval", "0.1").stdout)
            (found,) = shown["slices"]
            if found["used_bytes"]:
                break
        assert (found["used_bytes"], found["driver_bytes"], found["processes"]) == (4 * GIB, 4 * GIB, 1)
        assert (found["cores_percent"], shown["simulated"], shown["troubles"]) == (30, True, [])
        done = vgpu("monitor", "--interval", "0.1", "--history", "1MiB", "--rounds", "4")
        assert done.stderr == ""  # nothing is held against it
        (report,) = json.loads(vgpu("explain", box.id, "--json").stdout)["reports"]
        assert (report["verdict"], report["intervals"]) == ("host", 3)  # it holds memory and computes nothing
        file = tmp_path / "vgpu.prom"
        vgpu("exporter", "--textfile", str(file))
        assert f'container="{box.id}"' in file.read_text()
        bundle.kill(box.pid)
