"""NVIDIA's driver: kernel modules, libraries of the same version, device nodes. With simulated GPUs none is needed."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator

from oci_hook import inventory_scan
from oci_hook.errors import VgpuError
from oci_hook.rootview import RootView
from runtime_config import policy_file
from vgpu.doctor.finding import CannotSee, Result, Seen, found
from vgpu.doctor.host.machine import Host, NoPolicy, Run, why

_NVRM = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+){1,2})")
_VERSIONED = re.compile(r"(lib[\w-]+)\.so\.(\d+(?:\.\d+){1,2})")
ESSENTIAL = ("libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler")
_CHARACTER_DEVICES = {"nvidiactl": "nvidia", "nvidia-uvm": "nvidia-uvm"}  # node -> its word in /proc/devices


_NOT_ASKED = "no kernel module nvidia that would need them"


def _simulated(host: Host) -> bool:
    try:
        return host.policy.simulate_gpus > 0
    except NoPolicy:
        return _is_simulated_in(host.config)


def _is_simulated_in(config: str) -> bool:
    """By what the admin wrote: without its compiled form a simulated host must not be told to install a driver."""
    try:
        return policy_file.read_policy(config, "").simulate_gpus > 0
    except VgpuError:
        return False


def module_version(host: Host) -> str:
    """Of the loaded kernel module, "" if there is none."""
    text = (host.read("/sys/module/nvidia/version") or "").strip()
    if text:
        return text
    match = _NVRM.search(host.read("/proc/driver/nvidia/version") or "")
    return match[1] if match else ""


def library_versions(host: Host) -> dict[str, dict[str, str]]:
    """Name of a driver's library -> version -> path, as they lie below the driver root. Raises CannotSee."""
    try:
        below = host.policy.driver_root
    except NoPolicy:
        below = "/"
    try:
        fd = os.open(host.path(below), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise CannotSee(f"driver root {below}", why(error)) from None
    versions: dict[str, dict[str, str]] = {}
    try:
        root = RootView(fd)
        for folder in dict.fromkeys(inventory_scan.library_folders(root)):
            for name in sorted(root.names(folder)):
                match = _VERSIONED.fullmatch(name)
                if match and match[1] in inventory_scan.LIBRARIES and root.is_file(f"{folder}/{name}"):
                    versions.setdefault(match[1], {}).setdefault(match[2], f"{folder}/{name}")
    finally:
        os.close(fd)
    return versions


def versions(host: Host) -> Iterator[Result]:
    if _simulated(host):
        yield Seen("simulated GPUs: NVIDIA's driver is not needed")
        return
    module, libraries = module_version(host), library_versions(host)
    have = libraries.get("libcuda", {})
    if not module:
        there = f"; its libraries are there ({', '.join(have)})" if have else ", and no libcuda.so is installed"
        remedy = "modprobe nvidia" if have else "apt-get install nvidia-driver && reboot"
        yield found("VGPU-DRV-001", "kernel module nvidia", f"it is not loaded{there}", remedy=remedy)
        return
    if module not in have:
        evidence = f"the kernel module is {module}, libcuda.so is there in {', '.join(have) or 'no version'}"
        remedy = "reboot" if have else f"apt-get install libcuda1={module}-*"
        yield found("VGPU-DRV-002", "libcuda.so", evidence, remedy=remedy)
        return
    for name in ESSENTIAL:
        if module not in libraries.get(name, {}):
            others = ", ".join(libraries.get(name, {})) or "no version"
            yield found("VGPU-DRV-003", f"{name}.so.{module}", f"it is not installed; there is {others} of it")
    yield Seen(f"driver {module}, {len(libraries)} libraries")


def uvm(host: Host) -> Iterator[Result]:
    if _simulated(host) or not module_version(host):
        yield Seen(_NOT_ASKED)
        return
    if host.stat("/sys/module/nvidia_uvm") is None:
        yield found("VGPU-DRV-004", "kernel module nvidia-uvm", "there is no /sys/module/nvidia_uvm")
    else:
        yield Seen("nvidia-uvm is loaded")


def devices(host: Host) -> Iterator[Result]:
    if _simulated(host) or not module_version(host):
        yield Seen(_NOT_ASKED)
        return
    majors = _majors(host)
    wanted = dict(_CHARACTER_DEVICES)
    for bus in host.names("/proc/driver/nvidia/gpus"):
        information = host.read(f"/proc/driver/nvidia/gpus/{bus}/information") or ""
        if match := re.search(r"Device Minor:\s*(\d+)", information):
            wanted[f"nvidia{match[1]}"] = "nvidia"
    good = 0
    for name, word in wanted.items():
        path, status = f"/dev/{name}", host.stat(f"/dev/{name}")
        if status is None:
            remedy = "nvidia-modprobe -u -c 0" if name == "nvidia-uvm" else f"nvidia-modprobe -c {name[6:] or 0}"
            yield found("VGPU-DRV-005", path, "it is not there", remedy=remedy if name != "nvidiactl" else "nvidia-smi")
        elif trouble := _wrong(status, majors.get(word)):
            yield found("VGPU-DRV-006", path, trouble[0], remedy=trouble[1].format(path=path))
        else:
            good += 1
    yield Seen(f"{good} device nodes")


def _majors(host: Host) -> dict[str, int]:
    """Word of /proc/devices -> number. The driver's own is called nvidia, nvidia-frontend before 550."""
    text = (host.read("/proc/devices") or "").partition("Block devices")[0]
    pairs = [line.split() for line in text.splitlines() if line[:4].strip().isdigit()]
    found_ones = {word: int(number) for number, word in pairs}
    return {"nvidia": found_ones.get("nvidia-frontend", found_ones.get("nvidia", 195)), **found_ones}


def _wrong(status: os.stat_result, major: int | None) -> tuple[str, str] | None:
    """What is wrong with a device node, and the command that mends it."""
    if not stat.S_ISCHR(status.st_mode):
        return "it is no character device", "rm -r {path} && nvidia-smi"
    if major is not None and os.major(status.st_rdev) != major:
        return f"its major number is {os.major(status.st_rdev)}, the driver's is {major}", "rm {path} && nvidia-smi"
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o666 != 0o666:
        return f"its mode is {mode:04o}: containers' users may not open it", "chmod 666 {path}"
    return None


CHECKS: tuple[tuple[str, str, Run], ...] = (
    ("driver", "versions", versions),
    ("driver", "nvidia-uvm", uvm),
    ("driver", "devices", devices),
)
