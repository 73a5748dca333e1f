"""What a container's author may write wrongly: one line, a stable code, no trace. On Docker and on plain bundles."""

from __future__ import annotations

from pathlib import Path

import docker as docker_api
import docker.errors as docker_errors
import pytest

from tests.harness import bundle, images
from tests.harness.dockerd import Docker
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e
GIB = 1 << 30
BAD = [
    ("vgpu.memory", "-1", "VGPU-REQ-001"),
    ("vgpu.memory", "4", "VGPU-REQ-001"),
    ("vgpu.memory", "4GB", "VGPU-REQ-001"),
    ("vgpu.memory", "1e999", "VGPU-REQ-001"),
    ("vgpu.memory", "", "VGPU-REQ-001"),
    ("vgpu.memory", "0x10GiB", "VGPU-REQ-001"),
    ("vgpu.memory", "$(id)", "VGPU-REQ-001"),
    ("vgpu.memory", "８GiB", "VGPU-REQ-005"),
    ("vgpu.memory", '8GiB\n"}],"x":{"', "VGPU-REQ-005"),
    ("vgpu.memory", "8GiB\0", "VGPU-REQ-005"),
    ("vgpu.memory", "8" * (1 << 20), "VGPU-REQ-005"),
    ("vgpu.memroy", "8GiB", "VGPU-REQ-003"),
    ("vgpu.cores", "101", "VGPU-REQ-002"),
]
IDS = [f"{name}={value[:12]!r}" for name, value, _ in BAD]


@pytest.mark.parametrize(("name", "value", "code"), BAD, ids=IDS)
def test_docker_refuses_a_bad_label(
    docker: Docker, docker_vgpu: Vgpu, c_image: str, name: str, value: str, code: str
) -> None:
    labels = {"vgpu.memory": "1GiB", name: value} if name == "vgpu.cores" else {name: value}
    if any(char in value for char in "\0\n") or len(value) > 100_000:
        told = refused_by_the_api(docker, c_image, labels)  # a command line cannot carry it
    else:
        options = [f"--label={label}={text}" for label, text in labels.items()]
        done = docker("run", "--rm", "--runtime=vgpu", *options, c_image, "true")
        assert done.returncode == 125, done
        told = done.stderr
    ours = [line for line in told.splitlines() if "vgpu: " in line]
    assert len(ours) == 1, told
    assert ours[0].count("vgpu: ") == 1
    assert code in ours[0]
    assert name in ours[0]
    assert len(ours[0]) < 1000
    if code == "VGPU-REQ-003":
        assert "vgpu.memory" in ours[0]
    assert docker_vgpu.containers() == []
    assert docker("ps", "--all", "--quiet").stdout == ""


def refused_by_the_api(docker: Docker, image: str, labels: dict[str, str]) -> str:
    client = docker_api.DockerClient(base_url=docker.host)
    container = client.containers.create(image, ["true"], runtime="vgpu", labels=labels)
    try:
        with pytest.raises(docker_errors.APIError) as caught:
            container.start()
        return str(caught.value.explanation)
    finally:
        container.remove(force=True)
        client.close()


@pytest.mark.parametrize(("name", "value", "code"), BAD, ids=IDS)
def test_a_bundle_with_a_bad_annotation_is_refused(
    vgpu: Vgpu, c_tree: Path, tmp_path: Path, name: str, value: str, code: str
) -> None:
    asked = {"vgpu.memory": "1GiB", name: value} if name == "vgpu.cores" else {name: value}
    with bundle.container(vgpu.runtime, tmp_path / "b", c_tree, ["true"], annotations=asked) as box:
        result = box.create()
    assert result.code == 3, result
    assert [line for line in result.output.splitlines() if code in line and line.startswith("vgpu: ")], result
    assert len(result.output.splitlines()) == 1, result
    assert code in box_log(result)
    assert vgpu.containers() == []


def box_log(result: bundle.Result) -> str:
    return "\n".join(line for line in result.refusal.splitlines() if line.startswith("{"))


@pytest.fixture(scope="module")
def greedy_image(docker: Docker, c_tree: Path) -> str:
    """An image that asks for more than the admin allows, in both ways that an image can."""
    return images.load(docker, c_tree, "vgpu-test:greedy", ["LABEL vgpu.memory=64GiB", "ENV VGPU_MEMORY=64GiB"])


def test_the_admins_cap_holds_against_an_image(docker: Docker, docker_vgpu: Vgpu, greedy_image: str) -> None:
    with docker_vgpu.configured("max: {memory: 16GiB}"):
        done = docker("run", "--rm", "--runtime=vgpu", greedy_image, "cuda_client", "info")
        name = docker("run", "--detach", "--runtime=vgpu", greedy_image, "sleep", "60", check=True).stdout.strip()
        allocation = docker_vgpu.allocation(name)
        docker("rm", "--force", name, check=True)
    assert done.returncode == 0, done
    assert str(16 * GIB) in done.stdout
    assert str(64 * GIB) not in done.stdout
    assert "64" in " ".join(allocation["clamped"]) and "16" in " ".join(allocation["clamped"])


def test_the_users_label_is_stronger_than_the_images_environment(
    docker: Docker, c_tree: Path, docker_vgpu: Vgpu
) -> None:
    image = images.load(docker, c_tree, "vgpu-test:env", ["ENV VGPU_MEMORY=64GiB"])
    done = docker("run", "--rm", "--runtime=vgpu", "--label=vgpu.memory=2GiB", image, "cuda_client", "info")
    assert done.returncode == 0, done
    assert str(2 * GIB) in done.stdout
