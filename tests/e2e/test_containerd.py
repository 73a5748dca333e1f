"""A container that containerd starts by itself, through `ctr`, gets its slice too. On Debian 12's containerd 1.6."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.harness.dockerd import Docker
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e


class Ctr:
    """`ctr` on the containerd that the private dockerd has started, in a namespace of its own."""

    def __init__(self, docker: Docker, vgpu: Vgpu, root: Path) -> None:
        self.docker = docker
        self.vgpu = vgpu
        self.root = root

    def __call__(self, *args: str) -> subprocess.CompletedProcess[str]:
        address = self.docker.sockets / "exec/containerd/containerd.sock"
        command = [str(self.docker.engine.program("ctr")), "--address", str(address), "--namespace", "vgpu-test"]
        return subprocess.run(
            [*command, *args],
            env=self.docker.engine.environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def run(self, annotations: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
        asked = [word for name, value in annotations.items() for word in ("--annotation", f"{name}={value}")]
        handler = ["--runtime", "io.containerd.runc.v2", "--runc-binary", str(self.vgpu.runtime)]
        return self("run", "--rm", *handler, *asked, "--rootfs", str(self.root), uuid.uuid4().hex, *words)


@pytest.fixture
def ctr(docker: Docker, docker_vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> Ctr:
    root = tmp_path / "root"
    shutil.copytree(c_tree, root, symlinks=True)
    return Ctr(docker, docker_vgpu, root)


def test_annotations_give_a_slice(ctr: Ctr) -> None:
    done = ctr.run({"vgpu.memory": "8GiB", "vgpu.cores": "30"}, "/usr/bin/cuda_client", "fill")
    assert done.returncode == 0, done
    assert "8589934592" in done.stdout and "CUDA_ERROR_OUT_OF_MEMORY" in done.stdout
    assert ctr.vgpu.containers() == []


def test_what_cannot_be_given_is_refused_with_the_reason(ctr: Ctr) -> None:
    done = ctr.run({"vgpu.memory": "100GiB"}, "true")
    assert done.returncode != 0
    assert "VGPU-PLC-001" in done.stderr and "CardInsufficientMemory" in done.stderr
    assert ctr.vgpu.containers() == []


def test_who_asks_for_nothing_gets_nothing(ctr: Ctr) -> None:
    done = ctr.run({}, "/bin/busybox", "ls", "/usr/lib/vgpu")
    assert done.returncode != 0
    assert "No such file" in done.stderr
