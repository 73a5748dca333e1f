"""The inventory out of NVIDIA's CDI spec, on NVIDIA's own libraries of driver 550."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import yaml

from oci_hook import inventory, inventory_scan
from oci_hook.errors import VgpuError
from oci_hook.records import DeviceFile, Gpu, Policy
from oci_hook.values import replace
from tests.harness import debian, drivers, stub_driver
from vgpu import inventory_cdi

GPUS = tuple(Gpu(index, f"GPU-{index}", "A100", 80 << 30, f"0000:0{index}:00.0", 1 - index) for index in range(2))


@pytest.fixture(scope="module")
def libraries() -> dict[str, Path]:
    """By the beginning of their names, "libcuda.so"."""
    try:
        found = drivers.libraries(550)
    except debian.NotOffered as missing:
        pytest.skip(str(missing))
    return {path.name.partition(".so")[0]: path for path in found}


@pytest.fixture
def policy(tmp_path: Path, libraries: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Policy:
    """With a wrapper in the prefix, and a spec as NVIDIA's tool writes it; the GPUs in another order than nodes."""
    for name, soname in (("cuda", "libcuda.so.1"), ("nvml", "libnvidia-ml.so.1")):
        stub_driver.library(tmp_path / "prefix/lib/vgpu/wrapper" / soname, soname, f"wrapper-{name}")
    for number, name in enumerate(("nvidia0", "nvidia1", "nvidiactl", "nvidia-modeset")):
        os.mknod(tmp_path / name, stat.S_IFCHR | 0o666, os.makedev(195, number))
    program = tmp_path / "nvidia-smi"
    program.touch()
    mounts = [*libraries.values(), program, Path("/lib/firmware/nvidia/gsp.bin")]
    spec = {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": [
            {"name": name, "containerEdits": {"deviceNodes": [_node(tmp_path, f"nvidia{number}") for number in nodes]}}
            for name, nodes in (("0", [1]), ("1", [0]), ("all", [0, 1]))
        ],
        "containerEdits": {
            "deviceNodes": [_node(tmp_path, name) for name in ("nvidiactl", "nvidia-modeset")],
            "mounts": [{"hostPath": str(path), "containerPath": f"/usr/lib/{path.name}"} for path in mounts],
        },
    }
    path = tmp_path / "nvidia.yaml"
    path.write_text(yaml.safe_dump(spec))
    version = libraries["libcuda"].name.removeprefix("libcuda.so.")
    monkeypatch.setattr(inventory, "loaded_driver", lambda: version)
    return Policy("/usr/bin/runc", str(tmp_path / "prefix"), str(tmp_path / "state"), driver_spec=str(path))


def _node(folder: Path, name: str) -> dict[str, str]:
    return {"path": f"/dev/{name}", "hostPath": str(folder / name)}


def test_libraries_programs_and_devices_are_the_specs(
    policy: Policy, libraries: dict[str, Path], tmp_path: Path
) -> None:
    found = inventory_cdi.real(policy, GPUS)
    assert {library.path: library.capability for library in found.libraries} == {
        str(libraries["libcuda"]): "compute", str(libraries["libnvidia-ml"]): "utility",
    }  # fmt: skip
    assert {library.role for library in found.libraries} == {"cuda", "nvml"}
    assert found.programs == (str(tmp_path / "nvidia-smi"),)
    assert {device.target: device.gpu for device in found.devices} == {
        "/dev/nvidiactl": None, "/dev/nvidia1": 0, "/dev/nvidia0": 1,
    }  # fmt: skip
    assert DeviceFile(str(tmp_path / "nvidia1"), "/dev/nvidia1", 0, "node") in found.devices


def test_it_is_stale_when_the_spec_was_written_anew(policy: Policy) -> None:
    inventory_scan.save(policy, inventory_cdi.real(policy, GPUS))
    assert inventory.load(policy).gpus == GPUS
    os.utime(policy.driver_spec, ns=(1, 1))
    with pytest.raises(VgpuError) as caught:
        inventory.load(policy)
    assert caught.value.code == "VGPU-HOST-002"


def test_a_spec_of_another_driver_is_refused(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "loaded_driver", lambda: "580.65.06")
    with pytest.raises(VgpuError) as caught:
        inventory_cdi.real(policy, GPUS)
    assert caught.value.code == "VGPU-HOST-007" and "driver 580.65.06 is loaded" in str(caught.value)
    assert f"nvidia-ctk cdi generate --output={policy.driver_spec}" in caught.value.remedy


def test_a_spec_without_a_driver_or_none_at_all_is_refused(policy: Policy) -> None:
    path = Path(policy.driver_spec)
    path.write_text(path.read_text().replace("libcuda.so.", "libother.so."))
    for changed in (policy, replace(policy, driver_spec="/no/spec.yaml")):
        with pytest.raises(VgpuError) as caught:
            inventory_cdi.real(changed, GPUS)
        assert caught.value.code == "VGPU-HOST-007" and changed.driver_spec in str(caught.value)
