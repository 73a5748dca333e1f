"""A GPU that fails takes no new container, without anybody having said so."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from libcuda_wrap.sim import create
from oci_hook import standing
from tests.vgpu.monitor.host import ROOT, Host

BUILT = ROOT / "build"


@pytest.fixture
def gpus(host: Host) -> Path:
    """The folder of the host's two simulated GPUs."""
    host.simulate(BUILT / "sim")
    (host.prefix / "lib/vgpu/wrapper").symlink_to(BUILT / "wrapper")
    assert host.vgpu("inventory", "--refresh").returncode == 0
    return host.state / "sim"


# a process looks at one folder of simulated GPUs for all its life
WATCHER = """
import json, sys
from oci_hook import policy
from vgpu.monitor import sick
from vgpu.monitor.collect import Collector
settings = policy.load(sys.argv[1])
collector = Collector(settings)
for line in sys.stdin:
    sample = collector.sample()
    said = sick.leave_out(settings, collector.failures())
    print(json.dumps({"gpus": [gpu.index for gpu in sample.gpus], "said": said}), flush=True)
"""


class Watcher:
    """What the monitor does, one look at a time, in a process of its own."""

    def __init__(self, host: Host) -> None:
        command = [sys.executable, "-c", WATCHER, f"{host.prefix}/etc/policy.json"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.gpus: list[int] = []

    def look(self) -> list[str]:
        """What was said about GPUs that failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("look\n")
        self.process.stdin.flush()
        seen = json.loads(self.process.stdout.readline())
        self.gpus = seen["gpus"]
        said: list[str] = seen["said"]
        return said


@pytest.fixture
def watcher(host: Host, gpus: Path) -> Iterator[Watcher]:
    """Looks at the GPUs for the first time when it is asked to."""
    watcher = Watcher(host)
    with watcher.process:
        yield watcher
        assert watcher.process.stdin is not None
        watcher.process.stdin.close()


def test_a_critical_error_is_remembered_until_the_gpu_is_uncordoned(host: Host, gpus: Path, watcher: Watcher) -> None:
    assert watcher.look() == []
    create.raise_xid(gpus, 1, 79)
    [line] = watcher.look()
    assert line.startswith(f"GPU 1 ({create.gpu_uuid(1)}) takes no new container: XID 79; ")
    assert watcher.look() == []
    [(uuid, why)] = standing.load(host.policy).sick.items()
    assert uuid == create.gpu_uuid(1)
    assert why.startswith("XID 79, 20")
    create.raise_xid(gpus, 1, 48)
    assert watcher.look() == [], "it is said once"
    assert host.vgpu("uncordon", "1").returncode == 0
    assert standing.load(host.policy).sick == {}
    assert watcher.look() == []


def test_what_a_program_did_wrong_is_no_failure_of_the_gpu(gpus: Path, watcher: Watcher) -> None:
    watcher.look()
    for xid in (13, 31, 43, 45):
        create.raise_xid(gpus, 0, xid)
        assert watcher.look() == []
    create.raise_xid(gpus, 0, 48)
    assert len(watcher.look()) == 1


def test_which_errors_count_is_the_admins_word(host: Host, gpus: Path) -> None:
    config = Path(host.config)
    config.write_text(config.read_text() + "\nsick_xids: [13]\n")
    assert host.vgpu("config", "apply").returncode == 0
    watcher = Watcher(host)
    with watcher.process:
        watcher.look()
        create.raise_xid(gpus, 0, 79)
        assert watcher.look() == []
        create.raise_xid(gpus, 0, 13)
        assert len(watcher.look()) == 1
        watcher.process.kill()


def test_a_gpu_that_is_lost_is_left_out_and_the_other_is_still_seen(gpus: Path, watcher: Watcher) -> None:
    create.lose_gpu(gpus, 0)
    [line] = watcher.look()
    assert watcher.gpus == [1]
    assert line.startswith(f"GPU 0 ({create.gpu_uuid(0)}) takes no new container: it is lost")


def test_the_service_does_it_by_itself(host: Host, gpus: Path) -> None:
    until = time.monotonic() + 60
    with host.running("monitor", "--interval", "0.1", "--history", "1MiB") as monitor:
        while not standing.load(host.policy).sick and time.monotonic() < until:
            assert monitor.poll() is None
            create.raise_xid(gpus, 0, 48)  # again and again: the service may not listen yet
            time.sleep(0.1)
    assert "XID 48" in standing.load(host.policy).sick[create.gpu_uuid(0)]
