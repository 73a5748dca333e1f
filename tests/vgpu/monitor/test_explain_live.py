"""What explain says of real programs under real limiters on the simulated GPU, watched by a real monitor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.libcuda_wrap.wrapped import GIB, Box, part
from tests.vgpu.monitor.host import Host

pytestmark = pytest.mark.timeout(400)  # the first test builds wrapper and driver
Begin = Callable[[Box, str, int, str, int], None]


@pytest.fixture
def pair(simulated: Host, built_box: Box, driver: Path, tmp_path: Path) -> Iterator[list[Box]]:
    """Two boxes on the host's GPU."""
    (tmp_path / "neighbour").mkdir()
    boxes = [built_box, Box.make(tmp_path / "neighbour", "", driver)]
    for box in boxes:
        for name in ("sim", "gpus"):
            shutil.rmtree(box.folder / name, ignore_errors=True)
            (box.folder / name).unlink(missing_ok=True)
            (box.folder / name).symlink_to(simulated.state / name)
    yield boxes
    for name in ("sim", "gpus"):
        (built_box.folder / name).unlink()


@pytest.fixture
def begin(simulated: Host) -> Iterator[Begin]:
    """begin(box, name, cores, kind, us): a container of that name, whose one program is c/share.c."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces")
    running: list[subprocess.Popen[str]] = []

    def start(box: Box, name: str, cores: int, kind: str, us: int) -> None:
        (simulated.state / "gpus").mkdir(exist_ok=True)
        box.slice(part(0, 8 * GIB, cores))
        inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = [*inside, str(box.folder / "load"), kind, str(us)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=box.environment())
        running.append(process)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        place = simulated.box(simulated.give_out(name, init=process.pid, cores=cores))
        shutil.rmtree(place)
        place.symlink_to(box.folder)

    yield start
    for process in running:
        process.kill()
        process.communicate(timeout=20)


def explained(host: Host, name: str) -> dict[str, Any]:
    assert host.vgpu("monitor", "--interval", "0.4", "--history", "1MiB", "--rounds", "16").returncode == 0
    (found,) = json.loads(host.vgpu("explain", name, "--json").stdout)["reports"]
    return dict(found)


def test_who_computes_all_the_time_limits_itself(simulated: Host, pair: list[Box], begin: Begin) -> None:
    begin(pair[0], "job", 100, "flood", 2000)
    found = explained(simulated, "job")
    assert found["verdict"] == "own"
    assert found["seconds"]["own"] > 0.8 * found["watched_s"]


def test_who_waits_for_its_share_is_limited_by_its_quota(simulated: Host, pair: list[Box], begin: Begin) -> None:
    """Beside a neighbour that is at work, and is not to blame."""
    begin(pair[1], "beside", 30, "flood", 2000)
    begin(pair[0], "job", 30, "flood", 2000)
    found = explained(simulated, "job")
    assert found["verdict"] == "quota"
    assert found["seconds"]["quota"] > 3 * found["seconds"]["neighbours"]
    assert 0.2 < found["seconds"]["own"] / found["watched_s"] < 0.4


def test_who_stands_in_a_neighbours_way_is_named(simulated: Host, pair: list[Box], begin: Begin) -> None:
    """Neither has a limit; both want all of the GPU, and each has half."""
    begin(pair[1], "hog", 100, "flood", 2000)
    begin(pair[0], "job", 100, "sync", 20000)
    found = explained(simulated, "job")
    assert found["verdict"] == "neighbours"
    assert "hog" in json.dumps(found)
    assert found["seconds"]["neighbours"] == pytest.approx(0.5 * found["watched_s"], rel=0.3)
    assert found["seconds"]["quota"] == 0
