"""Our hook where no shim was: a bundle as an engine makes it from our CDI spec, on real device nodes, runc and crun."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oci_hook import inventory, inventory_scan, policy
from oci_hook.records import DeviceFile, Inventory
from oci_hook.values import replace
from runtime_config import cdi
from tests.harness import bundle, cdi_engine, leftovers, stub_driver
from tests.harness.bundle import Container
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e

NVIDIA = 195  # the driver's major number; without the driver nobody can open such a node, and nobody has to
MINORS = {"nvidia0": 0, "nvidia1": 1, "nvidiactl": 255}
ASKED = {"vgpu.memory": "8GiB"}


@pytest.fixture
def host(stub_vgpu: Vgpu, tmp_path: Path) -> Iterator[Inventory]:
    """The inventory of a host whose two GPUs have device nodes."""
    for name, minor in MINORS.items():
        os.mknod(tmp_path / name, stat.S_IFCHR | 0o666, os.makedev(NVIDIA, minor))
    settings = policy.load(str(stub_vgpu.prefix / "etc/policy.json"))
    gpus: dict[str, int | None] = {"nvidiactl": None, "nvidia0": 0, "nvidia1": 1}
    nodes = tuple(DeviceFile(str(tmp_path / name), f"/dev/{name}", gpu, "node") for name, gpu in gpus.items())
    found = replace(inventory.load(settings), devices=nodes)
    inventory_scan.save(settings, found)
    yield found
    assert stub_vgpu.containers() == []
    assert leftovers.mounts(tmp_path, stub_vgpu.state) == []
    stub_driver.scan(stub_vgpu)


def made_by_an_engine(
    box: Container, host: Inventory, vgpu: Vgpu, device: str, *, bound: bool = False, renamed: str = ""
) -> None:
    """Puts into config.json what a CDI engine does. bound: nodes as bind mounts, as in a user namespace; renamed: the
    name in the container of the second GPU's node."""
    nodes = cdi_engine.give(box, cdi.generate(host, "/usr/bin/python3", str(vgpu.prefix)), device)
    config = json.loads(box.config.read_text())
    config["linux"]["devices"] = []
    for node in nodes:
        path, host_path = node["path"], node["hostPath"]
        if renamed and path == "/dev/nvidia1":
            path = renamed
        if bound:
            mount = {"destination": path, "type": "none", "source": host_path, "options": ["bind", "rw"]}
            config["mounts"].append(mount)
            continue
        number: dict[str, Any] = {"type": "c", "major": NVIDIA, "minor": MINORS[os.path.basename(host_path)]}
        config["linux"]["devices"].append({"path": path, **number, "fileMode": 0o666, "uid": 0, "gid": 0})
        config["linux"]["resources"]["devices"].append({"allow": True, **number, "access": "rw"})
    box.config.write_text(json.dumps(config))


@pytest.mark.parametrize(("bound", "renamed"), [(False, ""), (True, ""), (False, "/dev/other"), (True, "/srv/gpu")])
def test_the_nodes_of_other_gpus_are_gone(
    low_level: Path, stub_vgpu: Vgpu, host: Inventory, plain_tree: Path, tmp_path: Path, bound: bool, renamed: str
) -> None:
    look = ["sh", "-c", "ls -d /dev/nvidia* /dev/other /srv/gpu /usr/lib/vgpu/quota 2>/dev/null; true"]
    with bundle.container(low_level, tmp_path / "b", plain_tree, look, annotations=ASKED) as box:
        made_by_an_engine(box, host, stub_vgpu, "all", bound=bound, renamed=renamed)
        result = box.run()
    assert result.code == 0, result
    assert result.output.split() == ["/dev/nvidia0", "/dev/nvidiactl", "/usr/lib/vgpu/quota"]


def test_named_twice_it_is_one_slice(
    low_level: Path, stub_vgpu: Vgpu, host: Inventory, plain_tree: Path, tmp_path: Path
) -> None:
    with bundle.container(low_level, tmp_path / "b", plain_tree, ["true"], annotations=ASKED) as box:
        made_by_an_engine(box, host, stub_vgpu, "1")
        config = json.loads(box.config.read_text())
        config["hooks"] = {stage: 2 * hooks for stage, hooks in config["hooks"].items()}
        box.config.write_text(json.dumps(config))
        result = box.run()
    assert result.code == 0, result
    assert [entry["event"] for entry in stub_vgpu.audit() if entry["id"] == box.id] == ["allocate", "arm", "release"]


def test_without_the_node_that_every_gpu_needs_it_does_not_start(
    low_level: Path, stub_vgpu: Vgpu, host: Inventory, plain_tree: Path, tmp_path: Path
) -> None:
    with bundle.container(low_level, tmp_path / "b", plain_tree, ["true"], annotations=ASKED) as box:
        made_by_an_engine(box, host, stub_vgpu, "all")
        config = json.loads(box.config.read_text())
        config["linux"]["devices"] = [one for one in config["linux"]["devices"] if one["path"] != "/dev/nvidiactl"]
        box.config.write_text(json.dumps(config))
        result = box.create()
    assert result.code != 0
    assert stub_vgpu.failures()[-1]["code"] == "VGPU-PLC-006"
    assert "/dev/nvidiactl" in stub_vgpu.failures()[-1]["message"]


def test_the_id_of_a_container_that_lives_is_refused(
    low_level: Path, stub_vgpu: Vgpu, host: Inventory, plain_tree: Path, tmp_path: Path
) -> None:
    """Called by somebody else than the runtime, with a living container's id: nothing of that one's slice changes."""
    with bundle.container(low_level, tmp_path / "b", plain_tree, ["sleep", "60"], annotations=ASKED) as box:
        made_by_an_engine(box, host, stub_vgpu, "0")
        assert box.create().code == 0
        before = stub_vgpu.allocation(box.id)
        command = cdi.hook_command("direct", "/usr/bin/python3", str(stub_vgpu.prefix))
        state = {"id": box.id, "pid": os.getpid(), "status": "creating", "bundle": str(box.folder)}
        done = subprocess.run(command, input=json.dumps(state), capture_output=True, text=True, check=False)
        assert done.returncode == 5 and "VGPU-OCI-004" in done.stderr
        assert stub_vgpu.allocation(box.id) == before


def test_a_node_behind_a_link_of_the_image_is_not_taken_for_gone(
    low_level: Path, stub_vgpu: Vgpu, host: Inventory, plain_tree: Path, tmp_path: Path
) -> None:
    with bundle.container(low_level, tmp_path / "b", plain_tree, ["true"], annotations=ASKED) as box:
        (box.folder / "rootfs/srv").mkdir(exist_ok=True)
        (box.folder / "rootfs/srv/gpu").symlink_to("kept")
        made_by_an_engine(box, host, stub_vgpu, "all", renamed="/srv/gpu")
        result = box.create()
    assert result.code != 0  # a runtime that follows the link is refused by us, another refuses it itself
    assert stub_vgpu.containers() == []


def test_with_the_hooks_script_gone_nothing_starts(
    low_level: Path, stub_vgpu: Vgpu, host: Inventory, plain_tree: Path, tmp_path: Path
) -> None:
    with bundle.container(low_level, tmp_path / "b", plain_tree, ["true"], annotations=ASKED) as box:
        made_by_an_engine(box, host, stub_vgpu, "all")
        box.config.write_text(box.config.read_text().replace("vgpu_hook.py", "removed.py"))
        result = box.create()
    assert result.code != 0
    assert stub_vgpu.containers() == []
