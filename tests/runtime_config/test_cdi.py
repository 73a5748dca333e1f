"""CDI specs: ours against a schema of the specification, anybody's read, and what is wrong with them told."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from oci_hook.errors import VgpuError
from oci_hook.records import DeviceFile, Gpu, Inventory
from runtime_config import cdi, cdi_check
from runtime_config.cdi_check import Finding

SCHEMA = json.loads((Path(__file__).parent / "cdi_schema.json").read_text())
GPUS = tuple(Gpu(i, f"GPU-{i}", "A100", 80 << 30, f"0000:0{i}:00.0", i) for i in range(2))
NODES = (
    DeviceFile("/dev/nvidiactl", "/dev/nvidiactl", None, "node"),
    DeviceFile("/dev/nvidia0", "/dev/nvidia0", 0, "node"),
    DeviceFile("/dev/nvidia1", "/dev/nvidia1", 1, "node"),
)
NVIDIA = """\
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: {dev}/nvidia0
containerEdits:
  mounts:
  - hostPath: {lib}/libcuda.so.550.54.14
    containerPath: /usr/lib/libcuda.so.550.54.14
    options: [ro, bind]
"""


def host(*devices: DeviceFile) -> Inventory:
    return Inventory("550.54.14", False, "key", GPUS, (), (), devices)


def ours(*devices: DeviceFile) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(cdi.generate(host(*devices), "/usr/bin/python3", "/opt/vgpu"))
    return spec


def only(path: Path, text: str) -> list[cdi.Spec | VgpuError]:
    path.write_text(text)
    return list(cdi.folder_specs([str(path.parent)]))


def test_ours_is_what_the_specification_says() -> None:
    spec = ours(*NODES)
    jsonschema.validate(spec, SCHEMA)
    assert [device["name"] for device in spec["devices"]] == ["0", "GPU-0", "1", "GPU-1", "all"]
    paths = {one["name"]: [node["path"] for node in one["containerEdits"]["deviceNodes"]] for one in spec["devices"]}
    assert paths["1"] == ["/dev/nvidia1"] and paths["all"] == ["/dev/nvidia0", "/dev/nvidia1"]
    assert [node["path"] for node in spec["containerEdits"]["deviceNodes"]] == ["/dev/nvidiactl"]


def test_whoever_gets_a_device_gets_our_hooks_with_an_environment_of_their_own() -> None:
    hooks = ours(*NODES)["containerEdits"]["hooks"]
    assert [(hook["hookName"], hook["args"][5]) for hook in hooks] == [
        ("createRuntime", "direct"), ("poststop", "poststop"),
    ]  # fmt: skip
    for hook in hooks:
        assert hook["env"] == ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"]  # else the image's may be used
        assert hook["args"][:4] == ["/usr/bin/python3", "-I", "-S", "-E"] and hook["timeout"] > 0


def test_the_schema_refuses_what_the_specification_forbids() -> None:
    for change in ({"devices": []}, {"kind": "vgpu"}, {"cdiVersion": "2"}, {"futureField": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**ours(*NODES), **change}, SCHEMA)
    empty = ours(*NODES)
    empty["devices"][0]["containerEdits"] = {}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(empty, SCHEMA)


def test_a_host_without_gpus_has_no_spec() -> None:
    with pytest.raises(VgpuError) as caught:
        ours(NODES[0])
    assert caught.value.code == "VGPU-HOST-007"


@pytest.mark.parametrize(
    ("version", "device", "edits"),
    [
        ("0.3.0", "gpu0", {"deviceNodes": [{"path": "/dev/nvidia0"}]}),
        ("0.4.0", "gpu0", {"mounts": [{"hostPath": "/a", "containerPath": "/a", "type": "bind"}]}),
        ("0.5.0", "0", {"deviceNodes": [{"path": "/dev/nvidia0"}]}),
        ("0.5.0", "gpu0", {"deviceNodes": [{"path": "/dev/nvidia0", "hostPath": "/x"}]}),
        ("0.7.0", "gpu0", {"additionalGids": [44]}),
        ("1.1.0", "gpu0", {"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}),
    ],
)
def test_the_version_is_the_lowest_that_has_it_all(version: str, device: str, edits: dict[str, Any]) -> None:
    spec = {"kind": "vgpu.dev/gpu", "devices": [{"name": device, "containerEdits": edits}]}
    assert cdi.least_version(spec) == version


def test_annotations_and_dots_in_a_class_need_0_6() -> None:
    device = {"name": "a", "containerEdits": {"env": ["A=1"]}}
    assert cdi.least_version({"kind": "v.dev/gpu.mig", "devices": [device]}) == "0.6.0"
    assert cdi.least_version({"kind": "v.dev/gpu", "devices": [device], "annotations": {"a": "b"}}) == "0.6.0"
    assert cdi.least_version({"kind": "v.dev/gpu", "devices": [{**device, "annotations": {"a": "b"}}]}) == "0.6.0"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "devices: [", '{"kind": 3, "cdiVersion": "0.5.0", "devices": []}', "&a [*a]", "kind: a/b\n" * 2,
     '{"kind": "a/b", "cdiVersion": "9.0.0", "devices": []}', '{"kind": "a", "cdiVersion": "0.5.0", "devices": []}',
     '{"kind": "a/b", "cdiVersion": "0.5.0", "devices": [{"name": 1, "containerEdits": {}}]}',
     '{"kind": "a/b", "cdiVersion": "0.5.0", "devices": [{"name": "x", "containerEdits": {"deviceNodes": [{}]}}]}',
     '{"kind": "a/b", "cdiVersion": "0.5.0", "devices": [{"name": "x", "containerEdits": {"hooks": [{"path": 7}]}}]}',
     '{"kind": "a/b", "cdiVersion": "0.5.0", "devices": "no", "containerEdits": 3}', "- " * 2000],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_what_is_no_spec_is_refused_with_its_name(tmp_path: Path, text: str, ending: str) -> None:
    [found] = only(tmp_path / f"broken.{ending}", text)
    assert isinstance(found, VgpuError) and found.code == "VGPU-CFG-001"
    assert str(found).startswith(f"{tmp_path}/broken.{ending}: not a CDI spec: ")
    [finding] = cdi_check.check([found], None, "")
    assert finding.path == f"{tmp_path}/broken.{ending}" and finding.remedy


def test_files_with_other_endings_and_folders_that_are_missing_are_no_specs(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no spec")
    assert list(cdi.folder_specs([str(tmp_path), str(tmp_path / "missing")])) == []


@pytest.fixture
def nvidia(tmp_path: Path) -> Path:
    """NVIDIA's spec of driver 550.54.14, whose files are all there."""
    os.mknod(tmp_path / "nvidia0", stat.S_IFCHR | 0o666, os.makedev(195, 0))
    (tmp_path / "libcuda.so.550.54.14").touch()
    (tmp_path / "specs").mkdir()
    path = tmp_path / "specs/nvidia.yaml"
    path.write_text(NVIDIA.format(dev=tmp_path, lib=tmp_path))
    return path


def check(path: Path, driver: str = "550.54.14") -> list[Finding]:
    return cdi_check.check(list(cdi.folder_specs([str(path.parent)])), None, driver)


def test_a_spec_that_fits_the_host_has_no_finding(nvidia: Path) -> None:
    assert check(nvidia) == []


def test_a_driver_that_was_upgraded_is_told_with_the_command_that_mends_it(nvidia: Path) -> None:
    [finding] = check(nvidia, driver="580.65.06")
    assert "driver 550.54.14" in finding.what and "580.65.06 is loaded" in finding.what
    assert finding.remedy == f"nvidia-ctk cdi generate --output={nvidia}"
    (nvidia.parents[1] / "libcuda.so.550.54.14").unlink()
    whats = [one.what for one in check(nvidia, driver="580.65.06")]
    assert len(whats) == 2 and "libcuda.so.550.54.14 is no longer there" in whats[0]


def test_a_device_that_is_gone_or_another_is_told(nvidia: Path) -> None:
    node = nvidia.parents[1] / "nvidia0"
    fixed = nvidia.read_text().replace(f"path: {node}", f"path: {node}\n      major: 195\n      minor: 7")
    nvidia.write_text(fixed)
    assert [one.what for one in check(nvidia)] == [f"the device {node} has the number 195:0, and the spec says 195:7"]
    node.unlink()
    assert [one.what for one in check(nvidia)] == [f"the device {node} is no longer there"]
    node.touch()
    assert [one.what for one in check(nvidia)] == [f"{node} is not a device"]


def test_one_device_in_two_specs_of_a_folder_is_told(nvidia: Path) -> None:
    other = nvidia.with_name("second.yaml")
    other.write_text(nvidia.read_text())
    [finding] = check(nvidia)
    assert finding.path == str(other) and "nvidia.com/gpu=0 is in" in finding.what


def test_ours_is_stale_when_the_host_has_other_gpus_or_the_hook_is_gone(tmp_path: Path) -> None:
    files = [DeviceFile(str(tmp_path / name), f"/dev/{name}", gpu, "bind") for name, gpu in (("ctl", None), ("g0", 0))]
    for file in files:
        Path(file.source).touch()
    (tmp_path / "lib/vgpu/python").mkdir(parents=True)
    (tmp_path / "lib/vgpu/python/vgpu_hook.py").touch()
    (tmp_path / "specs").mkdir()
    path = tmp_path / "specs/vgpu.json"
    text = cdi.generate(host(*files), "/usr/bin/python3", str(tmp_path))
    found = only(path, text)
    assert cdi_check.check(found, text, "") == []
    [stale] = cdi_check.check(found, text.replace("g0", "g1"), "", "/opt/vgpu/bin/vgpu cdi generate")
    assert "names other devices or hooks" in stale.what
    assert stale.remedy == f"/opt/vgpu/bin/vgpu cdi generate --output {path}"
    (tmp_path / "lib/vgpu/python/vgpu_hook.py").unlink()
    [gone] = cdi_check.check(found, text, "")
    assert "vgpu_hook.py is not there" in gone.what


def test_yaml_and_json_are_read_alike(tmp_path: Path) -> None:
    text = cdi.generate(host(*NODES), "/usr/bin/python3", "/opt/vgpu")
    [one] = only(tmp_path / "a.json", text)
    (tmp_path / "a.json").unlink()
    [other] = only(tmp_path / "a.yaml", yaml.safe_dump(json.loads(text)))
    assert isinstance(one, cdi.Spec) and isinstance(other, cdi.Spec)
    assert (one.kind, one.devices, one.common) == (other.kind, other.devices, other.common)
