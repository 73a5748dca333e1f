"""What a refused start leaves behind: it can be read when the container is gone, and where nobody was shown a word."""

from __future__ import annotations

import fcntl
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness import bundle, images, installed, leftovers
from tests.harness.dockerd import Docker
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e
SLICE = {"vgpu.memory": "8GiB"}


def told(vgpu: Vgpu, *arguments: str) -> dict[str, Any]:
    done = vgpu("doctor", "--last-failure", *arguments, "--json", check=False)
    assert done.returncode == 2, done
    facts: dict[str, Any] = json.loads(done.stdout)["facts"]
    return facts


def test_docker_has_removed_the_container(docker: Docker, docker_vgpu: Vgpu, images_folder: Path) -> None:
    image = images.load(docker, images.tree(images_folder, "no-libpthread"), "vgpu-test:no-libpthread")
    run = ("run", "--rm", "--runtime=vgpu", image, "true")
    by_shim = docker(*run[:3], "--name=first", "--label=vgpu.memory=4", *run[3:])
    by_hook = docker(*run[:3], "--name=second", "--label=vgpu.memory=8GiB", *run[3:])
    assert (by_shim.returncode, by_hook.returncode) == (125, 125)
    assert docker("ps", "--all", "--quiet").stdout == ""
    found = told(docker_vgpu)
    assert (found["code"], found["name"], found["engine"], found["image"]) == (
        "VGPU-DEP-001",
        "second",
        "Docker",
        image,
    )
    assert "libpthread.so.0" in found["message"] and found["message"] in by_hook.stderr
    first = told(docker_vgpu, "first")
    assert (first["code"], first["part"], len(first["id"])) == ("VGPU-REQ-001", "shim", 64)
    assert first["message"] in by_shim.stderr


def test_runc_and_crun_which_hides_what_a_hook_says(
    vgpu: Vgpu, images_folder: Path, c_tree: Path, tmp_path: Path
) -> None:
    tree = images.tree(images_folder, "musl")
    with bundle.container(vgpu.runtime, tmp_path / "b", tree, ["busybox", "true"], annotations=SLICE) as box:
        assert box.create().code != 0
    found = told(vgpu, box.id)
    assert (found["code"], found["part"]) == ("VGPU-DEP-003", "hook")
    assert found["remedy"] and "musl" in found["message"]


@pytest.mark.seeds("VGPU-OCI-005")
def test_a_hook_that_was_killed_is_told_as_that(low_level: Path, c_tree: Path, tmp_path: Path) -> None:
    """SIGKILL while it waits for the ledger's lock, which the test holds; the next start, as the remedy says, works."""
    runtime = tmp_path / "runtime"
    wait = f"touch {tmp_path}/reached; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"
    runtime.write_text(f'#!/bin/sh\nfor a; do [ "$a" != create ] || {{ {wait}; }}; done\nexec {low_level} "$@"\n')
    runtime.chmod(0o755)
    vgpu = installed.install(tmp_path, runtime)
    with bundle.container(vgpu.runtime, tmp_path / "b", c_tree, ["true"], annotations=SLICE) as box:
        start = box.spawn_create()
        wait_for(tmp_path / "reached")
        with (vgpu.state / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (tmp_path / "go").touch()
            wait_for(vgpu.state / f"containers/{box.id}/hook.begun")
            kill_hooks(vgpu, start)
        assert start.returncode != 0
        found = told(vgpu)
        assert (found["code"], found["id"], found["part"]) == ("VGPU-OCI-005", box.id, "hook")
    with bundle.container(vgpu.runtime, tmp_path / "b", c_tree, ["true"], annotations=SLICE) as again:
        assert again.run().code == 0
    assert vgpu.containers() == []  # the second start has cleared the first away, and kept what is known of it
    assert told(vgpu, box.id[:12])["code"] == "VGPU-OCI-005"


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.01)


def kill_hooks(vgpu: Vgpu, start: subprocess.Popen[bytes]) -> None:
    """The hook that waits, vgpu-hook, and the one that it starts instead; not the runtime, which ends by itself."""
    until = time.monotonic() + 60
    while start.poll() is None:
        assert time.monotonic() < until
        for command, pid in leftovers.processes(vgpu.prefix):
            if "vgpu_hook.py" in command or "vgpu_shim.py" in command:
                bundle.kill(pid)
        time.sleep(0.02)
