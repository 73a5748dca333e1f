"""vgpu doctor on dockerd: a container by name, with what `docker exec` brings in; an archive without secrets."""

from __future__ import annotations

import json
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness.dockerd import Docker
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e


def examined(vgpu: Vgpu, code: int) -> dict[str, Any]:
    done = vgpu("doctor", "container", "job", "--json", check=False)
    assert done.returncode == code, done
    facts: dict[str, Any] = json.loads(done.stdout)["facts"]
    return facts


def test_a_name_is_enough_and_an_exec_past_the_wrapper_is_named(
    docker: Docker, docker_vgpu: Vgpu, c_image: str
) -> None:
    hold = ("cuda_client", "hold", "300")
    run = ("run", "--detach", "--rm", "--runtime=vgpu", "--name=job", "--label=vgpu.memory=8GiB", c_image, *hold)
    docker(*run, check=True)
    try:
        wait_for(docker_vgpu, 1)
        facts = examined(docker_vgpu, 0)
        assert (facts["in_force"], len(facts["processes"])) == ("yes", 1)
        past = "mkdir /tmp/x && ln -s /usr/lib/vgpu/libvgpu-driver.so /tmp/x/libcuda.so.1"
        script = f"{past} && LD_LIBRARY_PATH=/tmp/x exec cuda_client hold 300"
        docker("exec", "--detach", "job", "sh", "-c", script, check=True)
        wait_for(docker_vgpu, 2)
        facts = examined(docker_vgpu, 2)
        assert facts["in_force"] == "no"
        assert sorted(process["wrapped"] for process in facts["processes"]) == [False, True]
    finally:
        docker("rm", "--force", "job", check=True)


def wait_for(vgpu: Vgpu, count: int) -> None:
    """Until the driver knows of that many processes of the container."""
    until = time.monotonic() + 60
    while sum(bool(one["gpus"]) for one in json.loads(doctor(vgpu))["facts"]["processes"]) < count:
        assert time.monotonic() < until
        time.sleep(0.1)


def doctor(vgpu: Vgpu) -> str:
    return vgpu("doctor", "container", "job", "--json", check=False).stdout


def test_what_a_user_gave_a_container_is_not_in_the_archive(
    docker: Docker, docker_vgpu: Vgpu, c_image: str, tmp_path: Path
) -> None:
    secret = "hunter2-hunter2"
    words = (f"--env=PASSWORD={secret}", f"--label=team={secret}", f"--env=VGPU_CORES={secret}")
    run = ("run", "--detach", "--rm", "--runtime=vgpu", "--name=job", "--label=vgpu.memory=8GiB", *words[:2])
    docker(*run, c_image, "sleep", "300", check=True)
    try:
        refused = docker("run", "--rm", "--runtime=vgpu", "--env=VGPU_MEMORY=1GiB", *words[1:], c_image, "true")
        assert refused.returncode == 125 and secret in refused.stderr, refused
        file = tmp_path / "support.tar.gz"
        docker_vgpu("doctor", "bundle", "--offline", "--yes", "--output", str(file))
    finally:
        docker("rm", "--force", "job", check=True)
    with tarfile.open(file) as archive:
        found = {entry.name: archive.extractfile(entry) for entry in archive}
        texts = {name: stream.read().decode() for name, stream in found.items() if stream}
    assert [name for name, text in texts.items() if secret in text] == []
    assert any(name.startswith("vgpu-support/containers/") for name in texts)
    assert "VGPU-REQ-002" in texts["vgpu-support/failures.jsonl"]
