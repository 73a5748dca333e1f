"""Docker and containerd of other releases: configured by our command, a slice, a refusal, and undone. Really run.

One release in `make test`; all of them, with every low-level runtime, in `make matrix`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import bundle, debian, dockerd, images, installed, matrix, suites
from tests.harness.ctr import Ctr
from tests.harness.dockerd import Docker
from tests.harness.installed import ROOT, Vgpu

pytestmark = pytest.mark.e2e
GIB = 1 << 30
# (suite of the engine, suite and name of the low-level runtime)
ALWAYS = [("trixie", "trixie", "runc")]
MATRIX = [
    ("bookworm", "bookworm", "runc"), ("bookworm", "bookworm", "crun"),
    ("trixie", "trixie", "crun"),
    ("forky", "forky", "runc"), ("forky", "forky", "crun"), ("forky", "experimental", "runc"),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """A daemon that does not know vgpu yet, and a vgpu that stands before a runtime of that release."""

    docker: Docker
    vgpu: Vgpu
    suite: str
    runtime: Path

    def configure(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vgpu", "configure", "docker", "--prefix", str(self.vgpu.prefix)]
        command += ["--config", str(self.docker.config), "-H", self.docker.host, *arguments]
        environment = {**os.environ, "VGPU_CONFIG": f"{self.vgpu.prefix}/etc/config.yaml"}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment, check=False
        )

    def record(self, record: matrix.Record, engine: str, program: str) -> None:
        version = suites.version(self.docker.engine.program(program))
        matrix.row(record, engine=f"{engine} {version}", runtime=self.runtime, suite=self.suite)

    def runtimes(self) -> set[str]:
        return set(json.loads(self.docker("info", "--format", "{{json .Runtimes}}", check=True).stdout))


def _choices() -> list[object]:
    marked = [pytest.param(choice, marks=pytest.mark.matrix, id="-".join(choice)) for choice in MATRIX]
    return [*(pytest.param(choice, id="-".join(choice)) for choice in ALWAYS), *marked]


@pytest.fixture(scope="module", params=_choices())
def place(request: pytest.FixtureRequest, e2e_folder: Path, needs_root: None, needs_build: None) -> Iterator[Place]:
    suite, lender, name = request.param
    folder = e2e_folder / f"{suite}-{lender}-{name}"
    folder.mkdir()
    try:
        engine, program = suites.engine(suite), suites.runtime(lender, name)
    except debian.NotOffered as missing:
        pytest.skip(str(missing))
    vgpu = installed.install(folder, bundle.fit(program, folder))
    with dockerd.running(folder / "docker", {}, engine) as docker:
        yield Place(docker, vgpu, suite, program)
    assert vgpu.containers() == []


@pytest.fixture(scope="module")
def image(place: Place, c_tree: Path) -> str:
    return images.load(place.docker, c_tree, "vgpu-test:c")


def test_docker_is_configured_gives_a_slice_refuses_and_is_undone(
    place: Place, image: str, record_property: matrix.Record
) -> None:
    docker = place.docker
    place.record(record_property, "docker", "dockerd")
    original, before = docker.config.read_bytes(), place.runtimes()
    made = place.configure("--reload")
    assert made.returncode == 0, made
    assert "dockerd has the runtime vgpu" in made.stdout
    run = ("run", "--rm", "--runtime=vgpu")
    slice_ = docker(*run, "--label=vgpu.memory=8GiB", "--label=vgpu.cores=30", image, "cuda_client", "fill")
    assert slice_.returncode == 0, slice_
    assert str(8 * GIB) in slice_.stdout and "CUDA_ERROR_OUT_OF_MEMORY" in slice_.stdout
    assert str(80 * GIB) not in slice_.stdout
    plain = docker(*run, image, "ls", "/usr/lib/vgpu")
    assert plain.returncode == 1 and "No such file" in plain.stderr, plain
    refused = docker(*run, "--label=vgpu.memory=100GiB", image, "true")
    assert refused.returncode == 125 and "VGPU-PLC-001" in refused.stderr, refused
    undone = place.configure("--undo", "--reload")
    assert undone.returncode == 0, undone
    assert docker.config.read_bytes() == original
    assert "vgpu" not in place.runtimes()
    assert before - place.runtimes() <= {"io.containerd.runc.v2", "io.containerd.runtime.v1.linux"}


def test_containerd_gives_a_slice_and_refuses(place: Place, c_tree: Path, record_property: matrix.Record) -> None:
    place.record(record_property, "containerd", "containerd")
    ctr = Ctr(place.docker, place.vgpu.runtime)
    done = ctr.run(c_tree, {"vgpu.memory": "8GiB", "vgpu.cores": "30"}, "/usr/bin/cuda_client", "fill")
    assert done.returncode == 0, done
    assert str(8 * GIB) in done.stdout and "CUDA_ERROR_OUT_OF_MEMORY" in done.stdout
    refused = ctr.run(c_tree, {"vgpu.memory": "100GiB"}, "true")
    assert refused.returncode != 0 and "VGPU-PLC-001" in refused.stderr, refused
    plain = ctr.run(c_tree, {}, "/bin/busybox", "ls", "/usr/lib/vgpu")
    assert plain.returncode != 0 and "No such file" in plain.stderr, plain
