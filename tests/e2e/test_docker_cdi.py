"""Docker gives slices by CDI: no runtime of ours, a device of vgpu.dev/gpu and a label or an annotation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import bundle, debian, dockerd, images, installed, matrix, suites
from tests.harness.dockerd import Docker
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e
GIB = 1 << 30
DEVICE = "--device=vgpu.dev/gpu=all"


@dataclass(frozen=True, slots=True)
class Place:
    """A daemon that has our devices and not our runtime, and the installation behind them."""

    docker: Docker
    vgpu: Vgpu
    suite: str


@pytest.fixture(scope="module", params=["trixie", pytest.param("forky", marks=pytest.mark.matrix)])
def place(request: pytest.FixtureRequest, e2e_folder: Path, needs_root: None, needs_build: None) -> Iterator[Place]:
    """Docker 26.1, where CDI has to be switched on, and 28.5, where it is on."""
    folder = e2e_folder / f"cdi-{request.param}"
    folder.mkdir()
    try:
        engine, program = suites.engine(request.param), suites.runtime(request.param, "runc")
    except debian.NotOffered as missing:
        pytest.skip(str(missing))
    vgpu = installed.install(folder, bundle.fit(program, folder))
    vgpu("cdi", "generate", "--output", str(folder / "cdi/vgpu.json"))
    specs, features = [str(folder / "cdi")], {"cdi": True} if request.param == "trixie" else {}
    with dockerd.running(folder / "docker", {}, engine, cdi_spec_dirs=specs, features=features) as docker:
        yield Place(docker, vgpu, request.param)
    assert vgpu.containers() == []


@pytest.fixture(scope="module")
def image(place: Place, c_tree: Path) -> str:
    return images.load(place.docker, c_tree, "vgpu-test:c")


@pytest.fixture
def combination(place: Place, record_property: matrix.Record) -> None:
    """For the matrix: what this was tried with."""
    version = suites.version(place.docker.engine.program("dockerd"))
    runtime = suites.runtime(place.suite, "runc")
    matrix.row(record_property, engine=f"docker {version}, devices by CDI", runtime=runtime, suite=place.suite)


@pytest.mark.parametrize(
    "asked", ["--label=vgpu.memory=8GiB", "--annotation=vgpu.memory=8GiB", "--env=VGPU_MEMORY=8GiB"]
)
def test_a_device_and_a_request_give_a_slice(place: Place, image: str, asked: str, combination: None) -> None:
    done = place.docker("run", "--rm", DEVICE, asked, image, "sh", "-c", "ls /dev/vgpu-sim; cuda_client fill")
    assert done.returncode == 0, done
    assert done.stdout.startswith("ctl\ngpu0\n1 GPU:")
    assert f"took {8 * GIB} bytes" in done.stdout and "CUDA_ERROR_OUT_OF_MEMORY" in done.stdout


def test_a_device_without_a_request_does_not_start(place: Place, image: str) -> None:
    done = place.docker("run", "--rm", DEVICE, image, "true")
    assert done.returncode == 125, done
    assert "VGPU-REQ-007" in done.stderr and "vgpu.memory=8GiB" in done.stderr


def test_restarted_it_has_its_slice_again(place: Place, image: str) -> None:
    docker = place.docker
    docker("run", "--detach", "--name=again", DEVICE, "--label=vgpu.memory=8GiB", image, "sleep", "600", check=True)
    docker("restart", "--time=0", "again", check=True)
    assert place.vgpu.given_out() == {0: 8 * GIB}
    assert f"took {8 * GIB} bytes" in docker("exec", "again", "cuda_client", "fill").stdout
    docker("rm", "--force", "again", check=True)
    assert place.vgpu.containers() == []
