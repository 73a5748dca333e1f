"""vgpu doctor container on dockerd: by name, with what `docker exec` brings in."""

from __future__ import annotations

import json
import time
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
