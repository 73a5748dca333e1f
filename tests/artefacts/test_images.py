"""The container images: built without a network by a real Docker daemon, and run."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from artefacts import closure, context
from artefacts.archive import Artefact, read

from tests.harness import images, wheels
from tests.harness.dockerd import Docker
from tests.harness.installed import Vgpu

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
GIB = 1 << 30


@pytest.fixture(scope="module")
def base(docker: Docker, images_folder: Path) -> str:
    return images.load(docker, images.tree(images_folder, "python-base"), "vgpu-test:python-base")


@pytest.fixture(scope="module")
def client(docker: Docker, c_tree: Path) -> str:
    return images.load(docker, c_tree, "vgpu-test:client")


@pytest.fixture(scope="module")
def folder(made: wheels.Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the images are built from."""
    out = tmp_path_factory.mktemp("context")
    pip = wheels.house("pip", ["pip"])
    context.make(out, made.wheel, [*wheels.dependencies().iterdir(), *pip.iterdir()])
    return out


def build(docker: Docker, folder: Path, base: str, name: str) -> str:
    tag = f"vgpu-test:{name}"
    options = ["--network", "none", "--build-arg", f"BASE={base}", "--build-arg", "REVISION=abc", "-t", tag]
    done = docker("build", *options, "-f", str(folder / f"{name}.Dockerfile"), str(folder), timeout=250)
    assert done.returncode == 0, done
    return tag


def config(docker: Docker, tag: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("image", "inspect", tag, check=True).stdout)[0]["Config"]
    return found


def test_the_demo_shows_its_slice_as_nobody_with_nothing_to_write_to(docker: Docker, folder: Path, base: str) -> None:
    tag = build(docker, folder, base, "demo")
    assert config(docker, tag)["User"] == "65534:65534"
    safe = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    done = docker("run", "--rm", "--runtime=vgpu", "--label", "vgpu.memory=8GiB", *safe, tag)
    assert done.returncode == 0, done
    assert f"the device has {8 * GIB} bytes" in done.stdout
    assert f"{8 * GIB} bytes could be had; the next is CUDA_ERROR_OUT_OF_MEMORY" in done.stdout
    without = docker("run", "--rm", tag)
    assert without.returncode == 1 and "--runtime=vgpu" in without.stderr and "Traceback" not in without.stderr


def test_the_exporter_tells_of_a_slice(docker: Docker, docker_vgpu: Vgpu, folder: Path, base: str, client: str) -> None:
    tag = build(docker, folder, base, "exporter")
    labels = config(docker, tag)["Labels"]
    assert labels["org.opencontainers.image.revision"] == "abc"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    safe = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pid", "host"]
    mounts = ["-v", f"{docker_vgpu.prefix}:{docker_vgpu.prefix}:ro", "-v", f"{docker_vgpu.state}:{docker_vgpu.state}"]
    once = ["--textfile", "/tmp/metrics", "--config", f"{docker_vgpu.prefix}/etc/config.yaml"]
    show = ["--entrypoint", "sh", tag, "-c", f"python3 -m vgpu exporter {' '.join(once)} && cat /tmp/metrics"]
    ask = ["--runtime=vgpu", "--label", "vgpu.memory=8GiB", client, "cuda_client", "hold", "300"]
    holder = docker("run", "--detach", "--name", "holder", *ask, check=True).stdout.strip()
    try:
        done = docker("run", "--rm", *safe, "--tmpfs", "/tmp", *mounts, *show)
    finally:
        docker("rm", "--force", "holder")
    assert done.returncode == 0, done
    assert f'vgpu_memory_limit_bytes{{container="{holder}"' in done.stdout
    assert 'vgpu_scrape_errors_total{part="ledger"} 0.0' in done.stdout


@pytest.fixture
def node(images_folder: Path, tmp_path: Path) -> Path:
    """The root of a node: Python, containerd's configuration as an admin wrote it, and nothing of ours."""
    root = tmp_path / "node"
    subprocess.run(["cp", "-a", images.tree(images_folder, "python-base"), root], check=True)
    for name in ("opt", "var/lib", "etc/containerd"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "etc/containerd/config.toml").write_text("version = 2  # mine\n")
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in read(root).files.items() if not name.startswith(("proc/", "dev/"))}


def test_a_node_is_installed_twice_and_given_back(docker: Docker, folder: Path, base: str, node: Path) -> None:
    tag = build(docker, folder, base, "installer")
    before = tree(node)
    mounts = [f"-v{node}:/host", "-v/dev:/host/dev", "-v/proc:/host/proc"]
    run = ["run", "--rm", "--read-only", "--cap-drop", "ALL", "--cap-add", "SYS_CHROOT", *mounts, tag]
    more = ["--", "--runtime", "/usr/bin/true", "--simulate-gpus", "2", "--units", "none"]
    first = docker(*run, "install", *more)
    assert first.returncode == 0, first
    assert "restart containerd on this node" in first.stdout
    text = (node / "etc/containerd/config.toml").read_text()
    assert text.startswith("version = 2  # mine\n") and "/opt/vgpu/bin/vgpu-runtime" in text
    installed = tree(node)
    second = docker(*run, "install", *more)
    assert second.returncode == 0 and "restart" not in second.stdout, second
    assert tree(node).keys() == installed.keys()
    prefix = {name: data for name, data in installed.items() if name.startswith("opt/vgpu/")}
    assert [found.line() for found in closure.check(Artefact("node", prefix, {}), closure.rules())] == []
    gone = docker(*run, "uninstall", "--", "--units", "none")
    assert gone.returncode == 0, gone
    left = tree(node)
    assert {name: left[name] for name in before} == before
    new = [name for name in left if name not in before and "usr/lib/python3" not in name]  # where Python keeps its own
    assert [name for name in new if not name.startswith(("run/", "var/lib/vgpu"))] == []  # the log is the admin's


def test_a_node_that_cannot_be_installed_on_says_why(docker: Docker, folder: Path, base: str, node: Path) -> None:
    tag = build(docker, folder, base, "installer")
    nothing = docker("run", "--rm", tag, "install")
    assert nothing.returncode == 5 and "mount the node's root" in nothing.stderr
    (node / "usr/bin/python3").unlink()
    no_python = docker("run", "--rm", f"-v{node}:/host", tag, "install")
    assert no_python.returncode == 5 and "/usr/bin/python3" in no_python.stderr
    shutil.rmtree(node / "opt")
    (node / "opt").symlink_to("/tmp")
    astray = docker("run", "--rm", f"-v{node}:/host", tag, "install")
    assert astray.returncode == 5 and "leads over a link" in astray.stderr
    assert "Traceback" not in nothing.stderr + no_python.stderr + astray.stderr
