"""vgpu configure docker beside a daemon that it must not break: flags, --validate, containers that need the runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oci_hook.errors import HostError
from tests.harness import debian, dockerd, images, suites
from vgpu import docker_process

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def daemon(needs_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dockerd.Docker]:
    """Docker 26.1, which has --validate. A flag contradicts what nobody has written yet."""
    try:
        engine = suites.engine("trixie")
    except debian.NotOffered as missing:
        pytest.skip(str(missing))
    folder = tmp_path_factory.mktemp("dockerd")
    with dockerd.running(folder, {}, engine, flags=("--default-runtime=runc",)) as made:
        yield made


def configure(prefix: Path, daemon: dockerd.Docker, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vgpu", "configure", "docker", "--prefix", str(prefix)]
    return subprocess.run(
        [*command, "--config", str(daemon.config), "-H", daemon.host, *arguments],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
        env={**os.environ, "VGPU_CONFIG": f"{prefix}/etc/config.yaml"},
    )  # fmt: skip


def test_a_flag_that_contradicts_the_file_is_told_and_nothing_is_written(prefix: Path, daemon: dockerd.Docker) -> None:
    before = daemon.config.read_bytes()
    for arguments in (("--set-default",), ("--set-default", "--dry-run")):
        done = configure(prefix, daemon, *arguments)
        assert done.returncode == 5, done
        assert done.stderr.startswith("vgpu: VGPU-CFG-006: dockerd is started with '--default-runtime runc'")
        assert f"(process {daemon.pid})" in done.stderr
        assert daemon.config.read_bytes() == before
        assert not daemon.config.with_name("daemon.json.vgpu-backup").exists()


@pytest.mark.seeds("VGPU-CFG-007")
def test_dockerd_is_asked_about_the_new_text_as_it_is_started(prefix: Path, daemon: dockerd.Docker) -> None:
    path, good = str(daemon.config), daemon.config.read_text()
    docker_process.require_valid(good, good, path)
    bad = json.dumps({**json.loads(good), "no-such-key": 1})
    with pytest.raises(HostError, match="no-such-key") as caught:
        docker_process.require_valid(bad, good, path)
    assert caught.value.code == "VGPU-CFG-007"
    docker_process.require_valid(bad, bad, path)  # it is refused already: not our change is at fault
    clash = json.dumps({**json.loads(good), "default-runtime": "runc"})
    with pytest.raises(HostError, match="default-runtime"):  # with the flags that this one was started with
        docker_process.require_valid(clash, good, path)


@pytest.mark.seeds("VGPU-CFG-008")
def test_undo_refuses_while_containers_need_the_runtime(prefix: Path, daemon: dockerd.Docker, c_tree: Path) -> None:
    image = images.load(daemon, c_tree, "vgpu-test:users")
    before = daemon.config.read_bytes()
    assert configure(prefix, daemon, "--reload").returncode == 0
    daemon("create", "--runtime=vgpu", "--name=needs-it", image, "true", check=True)
    daemon("create", "--name=does-not", image, "true", check=True)
    configured = daemon.config.read_bytes()
    refused = configure(prefix, daemon, "--undo", "--reload")
    assert refused.returncode == 5, refused
    assert refused.stderr.startswith("vgpu: VGPU-CFG-008: 1 container of Docker could not start")
    assert "needs-it" in refused.stderr and "does-not" not in refused.stderr and "--force" in refused.stderr
    assert daemon.config.read_bytes() == configured
    forced = configure(prefix, daemon, "--undo", "--reload", "--force")
    assert forced.returncode == 0, forced
    assert daemon.config.read_bytes() == before
    started = daemon("start", "needs-it")
    assert started.returncode == 1 and "vgpu" in started.stderr
    daemon("rm", "needs-it", "does-not", check=True)


def test_a_stopped_dockers_containers_are_found_in_its_files(prefix: Path, tmp_path: Path) -> None:
    config = tmp_path / "daemon.json"
    folder = tmp_path / "data/containers/0123"
    folder.mkdir(parents=True)
    (folder / "hostconfig.json").write_text('{"Runtime": "vgpu"}')
    (folder / "config.v2.json").write_text('{"Name": "/asleep"}')
    (tmp_path / "data/containers/broken").mkdir()
    (tmp_path / "data/containers/broken/hostconfig.json").write_text("{")
    config.write_text(json.dumps({"data-root": str(tmp_path / "data")}))
    command = [sys.executable, "-m", "vgpu", "configure", "docker", "--prefix", str(prefix), "--config", str(config)]
    command += ["-H", f"unix://{tmp_path}/none.sock"]
    run = lambda *more: subprocess.run(  # noqa: E731  # one line, used four times below
        [*command, *more], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert run().returncode == 0
    refused = run("--undo")
    assert (refused.returncode, "asleep" in refused.stderr) == (5, True), refused
    assert run("--undo", "--force").returncode == 0
    assert json.loads(config.read_text()) == {"data-root": str(tmp_path / "data")}
