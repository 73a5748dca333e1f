"""The inventory: scans of a real driver's files and of the simulated one, and what makes it stale."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from oci_hook import inventory, inventory_scan, mounts
from oci_hook.errors import HostError
from oci_hook.records import Gpu, Inventory, Policy
from oci_hook.values import replace
from tests.harness import stub_driver

GPUS = [Gpu(index, f"GPU-{index}", "Test", 80 << 30, f"0000:0{index}:00.0", index) for index in range(2)]


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    """With the two libraries of the wrapper and of the simulated driver in the prefix."""
    libraries = tmp_path / "prefix/lib/vgpu"
    for name, soname in (("cuda", "libcuda.so.1"), ("nvml", "libnvidia-ml.so.1")):
        stub_driver.library(libraries / "wrapper" / soname, soname, f"wrapper-{name}")
        file_name = soname.replace(".1", f".{stub_driver.VERSION}")
        stub_driver.library(libraries / "sim" / file_name, soname, f"driver-{name}", libraries=("m",))
    return Policy(
        runtime="/usr/bin/runc",
        prefix=str(tmp_path / "prefix"),
        state_dir=str(tmp_path / "state"),
        simulate_gpus=2,
    )


def refused(policy: Policy) -> HostError:
    with pytest.raises(HostError) as caught:
        inventory.load(policy)
    return caught.value


def test_a_simulated_host_is_found_and_read_back(policy: Policy) -> None:
    made = inventory_scan.simulated(policy, GPUS)
    inventory_scan.save(policy, made)
    assert inventory.load(policy) == made
    assert made.driver_version == stub_driver.VERSION
    assert [(library.role, library.capability) for library in made.libraries] == [
        ("cuda", "compute"),
        ("nvml", "utility"),
    ]
    assert "libm.so.6" in made.libraries[0].needed
    assert [device.gpu for device in made.devices] == [None, 0, 1]
    assert {device.kind for device in made.devices} == {"bind"}


def test_identity_is_what_the_mounts_compare(policy: Policy) -> None:
    made = inventory_scan.simulated(policy, GPUS)
    for library in (*made.libraries, *made.wrapper):
        assert library.identity == mounts.identity(os.stat(library.path))


@pytest.fixture
def saved(policy: Policy) -> Policy:
    inventory_scan.save(policy, inventory_scan.simulated(policy, GPUS))
    return policy


def test_none_is_said_to_be_none(policy: Policy) -> None:
    error = refused(policy)
    assert error.code == "VGPU-HOST-002" and "inventory --refresh" in error.remedy


def test_a_new_wrapper_makes_it_stale(saved: Policy) -> None:
    os.utime(f"{inventory.wrapper_folder(saved)}/libcuda.so.1", ns=(1, 1))
    assert refused(saved).code == "VGPU-HOST-002"


def test_another_number_of_simulated_gpus_makes_it_stale(saved: Policy) -> None:
    assert refused(replace(saved, simulate_gpus=3)).code == "VGPU-HOST-002"
    assert refused(replace(saved, simulate_gpus=0)).code == "VGPU-HOST-002"


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"schema": 1}', b'{"schema": 9}', b"\xff", b"null", b"[" * 100000]
)
def test_garbage_is_refused_by_name(saved: Policy, data: bytes) -> None:
    Path(inventory.path(saved)).write_bytes(data)
    error = refused(saved)
    assert error.code == "VGPU-HOST-002" and "inventory.json" in str(error)


def test_what_others_can_write_is_not_believed(saved: Policy) -> None:
    os.chmod(inventory.path(saved), 0o666)
    assert refused(saved).code == "VGPU-HOST-006"


def test_a_wrapper_that_is_none_is_refused(policy: Policy) -> None:
    path = f"{inventory.wrapper_folder(policy)}/libcuda.so.1"
    stub_driver.library(Path(path), "libother.so.1", "x")
    with pytest.raises(HostError, match=r"libother\.so\.1") as caught:
        inventory_scan.wrapper(policy)
    assert caught.value.code == "VGPU-DEP-005"
    os.unlink(path)
    with pytest.raises(HostError) as caught:
        inventory_scan.wrapper(policy)
    assert caught.value.code == "VGPU-DEP-005"


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "dev"
    folder.mkdir()
    for name in ("nvidiactl", "nvidia-uvm", "nvidia0", "nvidia1"):
        (folder / name).touch()
    yield str(folder)


def scan(policy: Policy, root: Path, dev: str) -> Inventory:
    if inventory.loaded_driver():
        pytest.skip("this machine has an NVIDIA driver loaded; the packages' version would not match it")
    return inventory_scan.real(replace(policy, simulate_gpus=0, driver_root=str(root)), GPUS, dev)


def test_nvidias_own_files_are_found_with_role_and_capability(policy: Policy, real_driver: Path, dev: str) -> None:
    made = scan(policy, real_driver, dev)
    found = {library.soname: library for library in made.libraries}
    assert made.driver_version.count(".") == 2 and not made.simulated
    assert (found["libcuda.so.1"].role, found["libcuda.so.1"].capability) == ("cuda", "compute")
    assert (found["libnvidia-ml.so.1"].role, found["libnvidia-ml.so.1"].capability) == ("nvml", "utility")
    assert found["libnvidia-ptxjitcompiler.so.1"].role == "plain"
    assert "GLIBC_2.2.5" in found["libcuda.so.1"].versions["libm.so.6"]
    for library in made.libraries:
        assert library.path.startswith(f"{real_driver}/") and not os.path.islink(library.path)
        assert library.path.endswith(made.driver_version)
    assert [os.path.basename(program) for program in made.programs] == ["nvidia-smi"]
    assert [device.target for device in made.devices] == [
        "/dev/nvidiactl",
        "/dev/nvidia-uvm",
        "/dev/nvidia0",
        "/dev/nvidia1",
    ]


def test_the_cache_of_the_driver_root_leads_to_an_unusual_folder(
    policy: Policy, real_driver: Path, dev: str, tmp_path: Path
) -> None:
    ldconfig = shutil.which("ldconfig", path="/usr/sbin:/sbin")
    if ldconfig is None:
        pytest.skip("no ldconfig on this machine")
    source = next(real_driver.rglob("libcuda.so.*.*"))
    root = tmp_path / "driver-root"
    (root / "opt/nv").mkdir(parents=True)
    (root / "etc").mkdir()
    shutil.copy2(source, root / "opt/nv")
    (root / "opt/nv/libcuda.so.1").symlink_to(source.name)
    subprocess.run([ldconfig, "-r", root, "-C", "/etc/ld.so.cache", "/opt/nv"], check=True, capture_output=True)
    assert [library.path for library in scan(policy, root, dev).libraries] == [str(root / "opt/nv" / source.name)]


def test_no_driver_is_said_to_be_none(policy: Policy, tmp_path: Path, dev: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(HostError) as caught:
        scan(policy, tmp_path / "empty", dev)
    assert caught.value.code == "VGPU-HOST-007" and "simulate" in caught.value.remedy


def test_the_numa_node_is_the_kernels(tmp_path: Path) -> None:
    for name, text in (("0000:07:00.0", "1\n"), ("0000:08:00.0", "-1\n"), ("0000:09:00.0", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "numa_node").write_text(text)
    asked = [f"00000000:0{number}:00.0" for number in (7, 8, 9, 6)]
    assert [inventory_scan._numa_node(bus, str(tmp_path)) for bus in asked] == [1, None, None, None]


class Nvml:
    """Three GPUs as NVML tells of them: 0 and 1 with two NVLinks, 2 across the sockets; 3 does not answer."""

    NVML_NVLINK_MAX_LINKS, NVML_FEATURE_ENABLED = 18, 1

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # NVML's name, as those below
        if index == 3:
            raise self.NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetTopologyCommonAncestor(self, one: int, other: int) -> int:
        return 50 if 2 in (one, other) else 10

    def nvmlDeviceGetNvLinkState(self, handle: int, number: int) -> int:
        if handle == 2 or number > 2:
            raise self.NVMLError("Not Supported")
        return int(number < 2)

    def nvmlDeviceGetNvLinkRemotePciInfo(self, handle: int, number: int) -> object:
        return type("Pci", (), {"busId": f"00000000:0{1 - handle}:00.0".encode()})


def test_links_are_nvlinks_where_there_are_some_and_a_lost_gpu_hides_no_other() -> None:
    nvml = Nvml()
    found = [Gpu(index, f"GPU-{index}", "A100", 1, f"00000000:0{index}:00.0", index) for index in range(3)]
    found.append(inventory_scan._nvml_gpu(nvml, 3))
    assert found[3].health == "NVML says: GPU is lost"
    assert inventory_scan._nvml_links(nvml, found[0], found) == {"GPU-1": "NV2", "GPU-2": "SYS"}
    assert inventory_scan._nvml_links(nvml, found[2], found) == {"GPU-0": "SYS", "GPU-1": "SYS"}
