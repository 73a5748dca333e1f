"""NVIDIA's driver as its files are: modules, libraries, nodes, modes; each fault is named, and mended by its remedy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prepared import BUS, DRIVER, LIBRARIES, Installation, Tree, fault, look, mended

from libcuda_wrap.sim import create
from oci_hook import inventory_scan, policy, quota_file
from oci_hook.records import Gpu, Policy
from oci_hook.values import replace
from tests.harness import stub_driver
from vgpu.doctor import host as checks
from vgpu.doctor.finding import UNSEEN
from vgpu.doctor.host.machine import Host

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.mark.seeds("VGPU-DRV-001")
def test_a_module_that_is_not_loaded(tree: Tree) -> None:
    for name in ("sys/module/nvidia/version", "proc/driver/nvidia/version"):
        (tree.root / name).unlink()
    one = fault(tree.host, "versions", "VGPU-DRV-001", "kernel module nvidia", DRIVER)
    assert one.remedy == "modprobe nvidia"
    tree.load(DRIVER)  # what modprobe brings about
    mended(tree.host, "versions", "VGPU-DRV-001")


@pytest.mark.seeds("VGPU-DRV-001")
def test_no_driver_at_all(tree: Tree) -> None:
    for path in (tree.root / LIBRARIES).iterdir():
        path.unlink()
    for name in ("sys/module/nvidia/version", "proc/driver/nvidia/version"):
        (tree.root / name).unlink()
    assert "apt-get install nvidia-driver" in fault(tree.host, "versions", "VGPU-DRV-001", "no libcuda.so").remedy


@pytest.mark.seeds("VGPU-DRV-002")
def test_libraries_that_were_upgraded_under_the_old_module(tree: Tree) -> None:
    tree.load("535.183.01")
    one = fault(tree.host, "versions", "VGPU-DRV-002", "535.183.01", DRIVER)
    assert one.remedy == "reboot"
    tree.load(DRIVER)  # the module that the reboot loads
    mended(tree.host, "versions", "VGPU-DRV-002")


def test_a_library_of_the_modules_version_beside_an_older_one_is_enough(tree: Tree) -> None:
    tree.write(f"{LIBRARIES}/libcuda.so.470.1.2", "")
    mended(tree.host, "versions", "VGPU-DRV-002")


def test_the_version_is_also_read_where_only_proc_has_it(tree: Tree) -> None:
    (tree.root / "sys/module/nvidia/version").unlink()
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  560.35.03  Release Build\n"
    tree.write("proc/driver/nvidia/version", line)
    fault(tree.host, "versions", "VGPU-DRV-002", "560.35.03")


@pytest.mark.seeds("VGPU-DRV-003")
@pytest.mark.parametrize("name", ["libnvidia-ml", "libnvidia-ptxjitcompiler"])
def test_a_set_that_is_not_complete(tree: Tree, name: str) -> None:
    library = tree.root / LIBRARIES / f"{name}.so.{DRIVER}"
    library.rename(library.with_name(f"{name}.so.535.1.2"))
    one = fault(tree.host, "versions", "VGPU-DRV-003", f"{name}.so.{DRIVER}", "535.1.2")
    assert f"{name}" in one.remedy
    library.touch()  # what the package brings
    mended(tree.host, "versions", "VGPU-DRV-003")


@pytest.mark.seeds("VGPU-DRV-004")
def test_uvm_that_is_not_loaded(tree: Tree) -> None:
    (tree.root / "sys/module/nvidia_uvm/refcnt").unlink()
    (tree.root / "sys/module/nvidia_uvm").rmdir()
    assert "modprobe nvidia-uvm" in fault(tree.host, "nvidia-uvm", "VGPU-DRV-004", "nvidia_uvm").remedy
    tree.write("sys/module/nvidia_uvm/refcnt", "0\n")
    mended(tree.host, "nvidia-uvm", "VGPU-DRV-004")


@pytest.mark.seeds("VGPU-DRV-005")
@pytest.mark.parametrize(
    ("name", "remedy"),
    [("nvidia0", "nvidia-modprobe -c 0"), ("nvidia-uvm", "nvidia-modprobe -u -c 0"), ("nvidiactl", "nvidia-smi")],
)
def test_a_node_that_is_missing(tree: Tree, name: str, remedy: str) -> None:
    status = (tree.root / "dev" / name).stat()
    (tree.root / "dev" / name).unlink()
    assert fault(tree.host, "devices", "VGPU-DRV-005", f"/dev/{name}").remedy == remedy
    tree.node(name, os.major(status.st_rdev), os.minor(status.st_rdev))  # what nvidia-modprobe makes
    mended(tree.host, "devices", "VGPU-DRV-005")


def test_every_gpu_of_the_driver_needs_its_node(tree: Tree) -> None:
    tree.write(BUS.replace("01:00", "81:00"), "Model: \t\t Stub\nDevice Minor: \t 7\n")
    fault(tree.host, "devices", "VGPU-DRV-005", "/dev/nvidia7")


@pytest.mark.seeds("VGPU-DRV-006")
def test_nodes_that_containers_cannot_use(tree: Tree) -> None:
    tree.node("nvidia0", 195, 0, mode=0o660)
    one = fault(tree.host, "devices", "VGPU-DRV-006", "/dev/nvidia0", "0660")
    tree.follow(one.remedy)
    mended(tree.host, "devices", "VGPU-DRV-006")
    tree.node("nvidia-uvm", 509, 0)
    fault(tree.host, "devices", "VGPU-DRV-006", "major number is 509", "511")
    path = tree.root / "dev/nvidiactl"
    path.unlink()
    path.write_text("")
    told = [one.evidence for one in look(tree.host, "devices").findings]
    assert "it is no character device" in told


@pytest.fixture
def real(here: Installation, tmp_path: Path) -> tuple[Policy, Path]:
    """A driver of marked libraries in a root of its own, as inventory_scan finds NVIDIA's; written as the inventory."""
    driver = tmp_path / "driver"
    stub_driver.library(driver / LIBRARIES / f"libcuda.so.{DRIVER}", "libcuda.so.1", "cuda", libraries=("m",))
    stub_driver.library(driver / LIBRARIES / f"libnvidia-ml.so.{DRIVER}", "libnvidia-ml.so.1", "nvml")
    settings = policy.load(str(here.vgpu.prefix / "etc/policy.json"))
    return replace(settings, driver_root=str(driver), simulate_gpus=0, state_dir=str(tmp_path / "state")), driver


def host_of(settings: Policy, folder: Path) -> Host:
    """The host whose policy in force is `settings`."""
    from runtime_config import policy_file

    folder.mkdir(exist_ok=True)
    (folder / "policy.json").write_text(policy_file.compiled_text(settings).decode())
    return Host(config=str(folder / "config.yaml"), docker="unix:///nowhere", ask=False)


def scan(settings: Policy) -> None:
    gpus = [Gpu(0, "GPU-0", "Stub", 80 << 30, "0000:01:00.0", 0)]
    inventory_scan.save(settings, inventory_scan.real(settings, gpus))


@pytest.mark.seeds("VGPU-DEP-005")
def test_a_driver_file_that_was_replaced(real: tuple[Policy, Path], tmp_path: Path) -> None:
    settings, driver = real
    scan(settings)
    host = host_of(settings, tmp_path / "etc")
    mended(host, "files", "VGPU-DEP-005")
    library = driver / LIBRARIES / f"libcuda.so.{DRIVER}"
    stub_driver.library(library, "libcuda.so.1", "another", libraries=("m",))
    one = fault(host, "files", "VGPU-DEP-005", str(library), "another file")
    assert one.remedy == "vgpu inventory --refresh"
    scan(settings)  # what that does on a host with this driver
    mended(host, "files", "VGPU-DEP-005")
    library.unlink()
    fault(host, "files", "VGPU-DEP-005", str(library), "cannot be found")


@pytest.mark.seeds("VGPU-HOST-006")
def test_a_driver_file_that_others_can_write(real: tuple[Policy, Path], here: Installation, tmp_path: Path) -> None:
    settings, driver = real
    library = driver / LIBRARIES / f"libcuda.so.{DRIVER}"
    library.chmod(0o777)
    scan(settings)
    host = host_of(settings, tmp_path / "etc")
    here.follow(fault(host, "files", "VGPU-HOST-006", str(library), "0777").remedy)
    mended(host, "files", "VGPU-HOST-006")


@pytest.mark.seeds("VGPU-DRV-007")
def test_a_driver_library_whose_own_need_is_not_met(real: tuple[Policy, Path], tmp_path: Path) -> None:
    settings, driver = real
    nowhere = tmp_path / "stub/libnobody-ships.so.3"
    stub_driver.library(nowhere, "libnobody-ships.so.3", "stub")
    library = driver / LIBRARIES / f"libnvidia-ml.so.{DRIVER}"
    stub_driver.library(library, "libnvidia-ml.so.1", "nvml", needed=nowhere)
    scan(settings)
    host = host_of(settings, tmp_path / "etc")
    one = fault(host, "closure", "VGPU-DRV-007", "'libnobody-ships.so.3'", "libnvidia-ml.so.1", "on the host")
    assert one.remedy
    stub_driver.library(library, "libnvidia-ml.so.1", "nvml")  # the package that fits
    scan(settings)
    mended(host, "closure", "VGPU-DRV-007")


@pytest.mark.seeds("VGPU-DRV-008")
def test_a_gpu_that_fell_off_the_bus(here: Installation) -> None:
    folder = here.vgpu.state / "sim"
    create.lose_gpu(folder, 1)
    try:
        here.vgpu("inventory", "--refresh")
        one = fault(here.host, "inventory", "VGPU-DRV-008", "GPU 1", "lost")
        here.follow(one.remedy.partition(";")[0])  # the cordon: no container gets it meanwhile
        assert (
            "fell off the bus"
            in here.vgpu("inventory", "--json").stdout + (here.vgpu.log / "standing.json").read_text()
        )
    finally:
        create.lose_gpu(folder, 1, lost=False)
        here.vgpu("uncordon", "1")
        here.vgpu("inventory", "--refresh")
    mended(here.host, "inventory", "VGPU-DRV-008")


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    command = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run([*command, "-o", out, HERE / "c/nvml_modes.c"], check=True, timeout=60)
    return out


def modes(here: Installation, nvml: Path, setting: str) -> list[dict[str, str]]:
    """The findings of a doctor whose NVML answers with `setting`; a process of its own, as NVML is loaded once."""
    simulated = (here.vgpu.prefix / "lib/vgpu/sim").resolve()
    (real,) = simulated.glob("libnvidia-ml.so.*.*")
    with here.kept(real):
        real.unlink()
        real.write_bytes(nvml.read_bytes())
        environment = {**os.environ, "MODES": setting}
        command = [sys.executable, "-m", "vgpu", "doctor", "--json", "--offline", "--config", here.config]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
        )
        assert done.stderr == ""
    (check,) = [one for one in json.loads(done.stdout)["checks"] if one["name"] == "GPUs"]
    found: list[dict[str, str]] = check["findings"]
    return found


@pytest.mark.seeds("VGPU-DRV-009", "VGPU-DRV-010", "VGPU-DRV-011")
@pytest.mark.parametrize(
    ("setting", "code", "remedy"),
    [("1 0 1", "VGPU-DRV-009", "nvidia-smi -i 0 -mig 0"), ("0 3 1", "VGPU-DRV-010", "nvidia-smi -i 0 -c DEFAULT"),
     ("0 2 1", "VGPU-DRV-010", "nvidia-smi -i 0 -c DEFAULT"), ("0 0 0", "VGPU-DRV-011", "nvidia-smi -i 0 -pm 1")],
)  # fmt: skip
def test_what_a_gpu_is_set_to(here: Installation, nvml: Path, setting: str, code: str, remedy: str) -> None:
    (one,) = modes(here, nvml, setting)
    assert (one["code"], one["remedy"]) == (code, remedy)
    assert "GPU-of-a-test" in one["evidence"]
    assert modes(here, nvml, "0 0 1") == []  # as nvidia-smi leaves it


@pytest.mark.seeds("VGPU-DRV-012")
def test_mps_that_stands_between(tree: Tree) -> None:
    comm = tree.process(4711, "nvidia-cuda-mps-control", "/usr/bin/nvidia-cuda-mps-control", "-d")
    one = fault(tree.host, "MPS", "VGPU-DRV-012", "process 4711", "nvidia-cuda-mps-control")
    assert one.remedy == "echo quit | nvidia-cuda-mps-control"
    for path in comm.parent.iterdir():  # it ended
        path.unlink()
    mended(tree.host, "MPS", "VGPU-DRV-012")


@pytest.mark.seeds("VGPU-STA-006")
def test_a_wrapper_of_another_build(here: Installation) -> None:
    wrapper = (here.vgpu.prefix / "lib/vgpu/wrapper/libcuda.so.1").resolve()
    ours = quota_file.QUOTA_VERSION.to_bytes(4, "little") + quota_file.USAGE_VERSION.to_bytes(4, "little")
    good = wrapper.read_bytes()
    assert good.count(b"vgpu\0\0\0\0" + ours) == 1
    with here.kept(wrapper):
        wrapper.write_bytes(good.replace(b"vgpu\0\0\0\0" + ours, b"vgpu\0\0\0\0" + bytes([9, 0, 0, 0, 9, 0, 0, 0])))
        fault(here.host, "wrapper", "VGPU-STA-006", str(wrapper), "quota 9, usage 9")
        wrapper.write_bytes(b"\x7fELF of long ago")
        fault(here.host, "wrapper", "VGPU-STA-006", "not named in it")
    mended(here.host, "wrapper", "VGPU-STA-006")  # its own build is there again


@pytest.mark.seeds("VGPU-STA-007")
def test_an_installed_file_that_was_changed(here: Installation) -> None:
    hook = (here.vgpu.prefix / "bin/vgpu-hook").resolve()
    hook.write_bytes(hook.read_bytes() + b"\0")
    one = fault(here.host, "installed", "VGPU-STA-007", str(hook), "not the file that was installed")
    hook.unlink()
    fault(here.host, "installed", "VGPU-STA-007", str(hook), "cannot be read")
    here.follow(one.remedy.replace("FOLDER", f"{ROOT} --units none"))
    mended(here.host, "installed", "VGPU-STA-007")


def test_what_needs_an_inventory_says_so_without_one(real: tuple[Policy, Path], tmp_path: Path) -> None:
    host = host_of(real[0], tmp_path / "etc")  # no scan was made
    for name in ("files", "closure"):
        assert look(host, name).state == UNSEEN
    assert {one.code for one in look(host, "inventory").findings} == {"VGPU-HOST-002"}
    assert all(one.state != "ok" or one.seen for one in checks.examine(host))
