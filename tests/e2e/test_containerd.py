"""A container that containerd starts by itself, through `ctr`, gets its slice too. On Debian 12's containerd 1.6."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.ctr import Ctr
from tests.harness.dockerd import Docker
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e


@pytest.fixture
def ctr(docker: Docker, docker_vgpu: Vgpu) -> Ctr:
    return Ctr(docker, docker_vgpu.runtime)


def test_annotations_give_a_slice(ctr: Ctr, docker_vgpu: Vgpu, c_tree: Path) -> None:
    done = ctr.run(c_tree, {"vgpu.memory": "8GiB", "vgpu.cores": "30"}, "/usr/bin/cuda_client", "fill")
    assert done.returncode == 0, done
    assert "8589934592" in done.stdout and "CUDA_ERROR_OUT_OF_MEMORY" in done.stdout
    assert docker_vgpu.containers() == []


def test_what_cannot_be_given_is_refused_with_the_reason(ctr: Ctr, docker_vgpu: Vgpu, c_tree: Path) -> None:
    done = ctr.run(c_tree, {"vgpu.memory": "100GiB"}, "true")
    assert done.returncode != 0
    assert "VGPU-PLC-001" in done.stderr and "CardInsufficientMemory" in done.stderr
    assert docker_vgpu.containers() == []


def test_who_asks_for_nothing_gets_nothing(ctr: Ctr, c_tree: Path) -> None:
    done = ctr.run(c_tree, {}, "/bin/busybox", "ls", "/usr/lib/vgpu")
    assert done.returncode != 0
    assert "No such file" in done.stderr
