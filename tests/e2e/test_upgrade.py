"""Upgrade, roll back and uninstall under containers that run and allocate, with real runc."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import bundle, installed, leftovers, releases, work
from tests.harness.dockerd import Docker
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e


@pytest.fixture
def vgpu(tmp_path: Path, needs_root: None, needs_build: None) -> Iterator[Vgpu]:
    """An installation of its own: it is going to be changed."""
    made = installed.install(tmp_path, bundle.low_level("runc", tmp_path))
    yield made
    assert leftovers.mounts(made.state, tmp_path) == []
    assert leftovers.processes(made.state, tmp_path) == []


class Tenant:
    """A container that allocates all the time."""

    def __init__(self, box: bundle.Container) -> None:
        self.box = box
        assert box.create().code == 0
        box.start()
        self.goes_on()

    def goes_on(self) -> None:
        work.goes_on(self.box.output)

    def version(self, vgpu: Vgpu) -> str:
        """The version that is in force in it: where the wrapper is mounted from."""
        plan = json.loads((vgpu.state / "containers" / self.box.id / "plan.json").read_text())
        (source,) = {mount["source"] for mount in plan["mounts"] if mount["target"] == "libcuda.so.1"}
        mounted = Path(source).stat()
        (inside,) = [path.stat() for path in Path(f"/proc/{self.box.pid}/root/usr/lib").glob("*/libcuda.so.1")]
        assert (inside.st_dev, inside.st_ino) == (mounted.st_dev, mounted.st_ino)
        return str(source).removeprefix(f"{vgpu.prefix}/versions/").partition("-")[0]

    def end(self) -> None:
        (self.box.folder / "rootfs/stop").touch()
        bundle.kill(self.box.pid)
        self.box.delete()


@contextmanager
def tenant(vgpu: Vgpu, folder: Path, tree: Path) -> Iterator[Tenant]:
    with bundle.container(vgpu.runtime, folder, tree, ["sh", "-c", work.SCRIPT], annotations=work.SLICE) as box:
        yield Tenant(box)


def test_nothing_breaks_under_containers_that_run(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    first = (vgpu.prefix / "current").resolve()
    release = releases.later(first, tmp_path / "release", "0.2.0")
    with tenant(vgpu, tmp_path / "a", c_tree) as old:
        vgpu("upgrade", "--from", str(release))
        old.goes_on()
        with tenant(vgpu, tmp_path / "b", c_tree) as new:
            assert (old.version(vgpu), new.version(vgpu)) == ("0.1.0", "0.2.0")
            rows = json.loads(vgpu("versions", "--json").stdout)["versions"]
            assert [row["containers"] for row in rows] == [[old.box.id], [new.box.id]]
            vgpu("set", old.box.id, "--memory", "7GiB")  # the new version's command manages the old one's container
            vgpu("rollback")
            old.goes_on()
            new.goes_on()
            assert {gpu["used_bytes"] >= 3 * work.GIB for gpu in gpus(vgpu)} == {True}
            new.end()
        assert vgpu.containers() == [old.box.id]  # its own version's hook took the slice back
        with tenant(vgpu, tmp_path / "c", c_tree) as third:
            assert third.version(vgpu) == "0.1.0"
            refused = vgpu("uninstall", check=False)
            assert refused.returncode == 5 and "2 containers that vgpu-runtime started" in refused.stderr
            vgpu("uninstall", "--force")
            assert [path.name for path in vgpu.prefix.glob("versions/*")] == [first.name]
            old.goes_on()
            third.goes_on()
            third.end()
        old.end()
    assert vgpu.containers() == []
    vgpu("uninstall", "--purge")
    assert not vgpu.prefix.exists() and not vgpu.state.exists() and not vgpu.log.exists()


def gpus(vgpu: Vgpu) -> list[dict[str, int]]:
    """Of every container, as `vgpu ps` shows them."""
    return [gpu for one in json.loads(vgpu("ps", "--json").stdout)["containers"] for gpu in one["gpus"]]


def test_a_container_without_a_slice_needs_the_launcher_too(docker: Docker, docker_vgpu: Vgpu, c_image: str) -> None:
    """Docker ends it by calling the launcher: an uninstall that took that away would leave it running for ever."""
    container = docker("run", "--detach", "--runtime=vgpu", c_image, "sleep", "100", check=True).stdout.strip()
    try:
        refused = docker_vgpu("uninstall", "--dry-run", check=False)
        assert refused.returncode == 5 and f"{container[:12]} (without a slice)" in refused.stderr
    finally:
        docker("rm", "--force", container, check=True)
    assert docker_vgpu("uninstall", "--dry-run", check=False).returncode == 2
