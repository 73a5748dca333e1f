"""Idle time borrowed in real containers, and what they see of one another; under real runc and crun."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from libcuda_wrap.sim import create
from libcuda_wrap.toolchain import PACKAGE, ROOT, Toolchain
from tests.harness import bundle
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e
OURS = {"vgpu.memory": "1GiB", "vgpu.devices": "0"}


@pytest.fixture
def tree(c_tree: Path) -> Path:
    """With tests/libcuda_wrap/c/share.c in it, for an old glibc."""
    program = c_tree / "usr/bin/load"
    if not program.exists():
        driver = ROOT / f"build/sim/libcuda.so.{create.DRIVER_VERSION}"
        flags = [f"-I{PACKAGE / 'include'}", f"-I{PACKAGE / 'generated'}", str(driver), "-ldl"]
        Toolchain().program([ROOT / "tests/libcuda_wrap/c/share.c"], program, flags=flags)
    return c_tree


def busy_percent(vgpu: Vgpu, low: float, high: float) -> float:
    """Of GPU 0, over a second; within the bounds in one of five, if it can be."""
    got = 0.0
    for _ in range(5):
        before, start = create.read_state(vgpu.state / "sim").gpus[0].busy_ns, time.monotonic_ns()
        time.sleep(1)
        got = 100 * (create.read_state(vgpu.state / "sim").gpus[0].busy_ns - before) / (time.monotonic_ns() - start)
        if low <= got <= high:
            break
    return got


def test_a_soft_container_uses_what_another_leaves_until_it_is_told_not_to(
    vgpu: Vgpu, tree: Path, tmp_path: Path
) -> None:
    soft = {**OURS, "vgpu.cores": "30", "vgpu.burst": "soft"}
    idle = {**OURS, "vgpu.cores": "60"}
    with (
        bundle.container(vgpu.runtime, tmp_path / "a", tree, ["load", "flood", "2000"], annotations=soft) as box,
        bundle.container(vgpu.runtime, tmp_path / "b", tree, ["cuda_client", "hold", "100"], annotations=idle) as other,
    ):
        for one in (box, other):
            assert one.create().code == 0
            one.start()
        assert busy_percent(vgpu, 85, 101) > 85
        vgpu("set", box.id, "--burst", "hard")
        assert 27 < busy_percent(vgpu, 27, 32) < 33
        vgpu("set", box.id, "--burst", "soft")
        assert busy_percent(vgpu, 85, 101) > 85
        script = (
            "cd /usr/lib/vgpu/gpu0; ls | wc -l; echo x > new && echo made; echo x >> ../share && echo own; "
            "for name in *; do echo x > $name && echo written; rm $name && echo gone;"
            " ln $name /tmp/x && echo linked; done; echo done"
        )
        seen = other.exec(["busybox", "sh", "-c", script]).stdout.split()
        assert seen == ["2", "own", "done"]
        for one in (box, other):
            bundle.kill(one.pid)
    assert not list((vgpu.state / "containers").iterdir())
