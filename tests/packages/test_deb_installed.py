"""The .deb in a whole Debian, without a network: installed, used, upgraded under a container, removed, purged."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.harness import bundle, debian, debroot, images
from tests.harness.debroot import Root
from tests.packages.conftest import Made

# making a Debian takes minutes: `make packages-test`
SUITES = [debroot.MACHINE, *(["bookworm", "trixie"] if os.environ.get("VGPU_LONG_TESTS") else [])]
SLICE = {"vgpu.memory": "8GiB"}
VGPU = "/opt/vgpu/bin/vgpu"
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def prepared(root: Root, made: Made) -> str:
    """The packages and a container's bundle are put into the root; the container's id."""
    for package in (made.deb, made.later):
        shutil.copy2(package, root.path / "tmp" / package.name)
    tree = images.tree(root.path / "tmp/trees", "c")
    args = ["cuda_client", "hold", "600"]
    box = bundle.make(Path("unused"), root.path / "tmp/bundles", tree, args, annotations=SLICE)
    box.folder.rename(root.path / "tmp/bundle")
    return box.id


def started(root: Root, container: str) -> None:
    """As an engine would start it, by the path that an engine's configuration names."""
    # its output goes to a file: it would hold a pipe for as long as it lives
    run = f"{VGPU}-runtime --root /run/runc run --detach --bundle /tmp/bundle {container} >/tmp/output 2>&1"
    if root("sh", "-c", run, check=False).returncode:
        raise AssertionError((root.path / "tmp/output").read_text())
    until = time.monotonic() + 30
    while used(root) != [4 << 30]:  # half of its slice
        assert time.monotonic() < until, used(root)
        time.sleep(0.2)


def used(root: Root) -> list[int]:
    containers = json.loads(root(VGPU, "ps", "--json").stdout)["containers"]
    return [gpu["used_bytes"] for one in containers for gpu in one["gpus"]]


def runtime(root: Root, *words: str) -> str:
    return root(f"{VGPU}-runtime", "--root", "/run/runc", *words, check=False).stdout


@pytest.mark.parametrize("suite", SUITES)
def test_from_installed_to_purged(suite: str, made: Made, tmp_path: Path, needs_root: None) -> None:
    try:
        debroot.base(suite)
    except debian.NotOffered as missing:
        pytest.skip(str(missing))
    (tmp_path / "root").mkdir()
    with debroot.opened(suite, tmp_path / "root") as root:
        container = prepared(root, made)
        before = root.paths()
        try:
            installed_and_set_up(root, made)
            upgraded_under(root, made, container)
            removed(root, container, before)
        finally:
            root("runc", "--root", "/run/runc", "delete", "--force", container, check=False)
        root("dpkg", "--purge", "vgpu")
        assert root.paths() == before


def installed_and_set_up(root: Root, made: Made) -> None:
    root("dpkg", "--install", f"/tmp/{made.deb.name}")
    assert root("vgpu", "version").stdout == "0.1.0\n"
    assert root("readlink", "/etc/vgpu/config.yaml").stdout == "/opt/vgpu/etc/config.yaml\n"
    config = root.path / "opt/vgpu/etc/config.yaml"
    config.write_text(config.read_text() + "\nsimulate: {gpus: 1, memory: 80GiB}\n")
    root("vgpu", "config", "apply")
    assert "80 GiB" in root("vgpu", "inventory", "--refresh").stdout


def upgraded_under(root: Root, made: Made, container: str) -> None:
    started(root, container)
    root("dpkg", "--install", f"/tmp/{made.later.name}")
    assert root("vgpu", "version").stdout == "0.2.0\n"
    assert used(root) == [4 << 30]
    assert "CUDA_ERROR_OUT_OF_MEMORY" in runtime(root, "exec", container, "cuda_client", "alloc", str(5 << 30))
    rows = {row["release"]: row for row in json.loads(root(VGPU, "versions", "--json").stdout)["versions"]}
    assert rows["0.1.0"]["containers"] == [container] and rows["0.2.0"]["current"]


def removed(root: Root, container: str, before: Collection[str]) -> None:
    """Not while the container runs. What the admin made stays for the purge. before: all paths of the root."""
    refused = root("dpkg", "--remove", "vgpu", check=False)
    assert refused.returncode != 0 and "VGPU-INST-003" in refused.stderr, refused
    assert used(root) == [4 << 30] and root("vgpu", "version").stdout == "0.2.0\n"
    runtime(root, "delete", "--force", container)
    assert used(root) == []
    root("dpkg-trigger", "--no-await", "--by-package=vgpu", "/usr/bin/python3")
    root("dpkg", "--triggers-only", "--pending")  # another python3, say: the same one, so the same version
    assert root("vgpu", "version").stdout == "0.2.0\n"

    root("dpkg", "--remove", "vgpu")
    left = root.paths().keys() - set(before)
    log = "var/lib/vgpu"
    admins = {"etc/vgpu", "etc/vgpu/config.yaml", "opt/vgpu", "opt/vgpu/etc", "opt/vgpu/etc/config.yaml"}
    assert {name for name in left if not name.startswith(log)} == admins
