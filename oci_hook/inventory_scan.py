"""Makes the inventory: which driver files, devices and GPUs this host has. Not on the start path; may take its time.

Real: the driver root's library folders and ld.so.cache, /dev, and NVML for the GPUs. Simulated: the libraries of the
simulated driver, and its folder of shared state; the caller makes that and passes the GPUs in.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any

from oci_hook import elf, fastjson, inventory, ledger, preflight
from oci_hook.errors import HostError, shown
from oci_hook.mounts import WRAPPED, identity
from oci_hook.records import DeviceFile, Gpu, Inventory, Library, Policy
from oci_hook.rootview import RootView
from oci_hook.values import as_json, replace

# Names as in <name>.so.<driver version> -> capability of NVIDIA_DRIVER_CAPABILITIES. Left out on purpose: what only a
# debugger or confidential computing loads (libcudadebugger, libnvidia-pkcs11*), as it needs libraries (libgcc_s,
# libcrypto) that a small image lacks: the container would be refused for something that it never uses.
LIBRARIES = {
    "libcuda": "compute",
    "libnvidia-allocator": "compute",
    "libnvidia-compiler": "compute",
    "libnvidia-fatbinaryloader": "compute",
    "libnvidia-gpucomp": "compute",
    "libnvidia-nvvm": "compute",
    "libnvidia-opencl": "compute",
    "libnvidia-ptxjitcompiler": "compute",
    "libnvidia-tileiras": "compute",
    "libnvidia-cfg": "utility",
    "libnvidia-ml": "utility",
    "libnvidia-nscq": "utility",
    "libnvcuvid": "video",
    "libnvidia-encode": "video",
    "libnvidia-opticalflow": "video",
}
PROGRAMS = ("nvidia-smi", "nvidia-debugdump")
SHARED_DEVICES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
_DRIVER_FOLDERS = ("nvidia/current", "nvidia")  # below a library folder: Debian's alternatives
_PROGRAM_FOLDERS = ("/usr/bin", "/usr/sbin", "/bin", "/usr/lib/nvidia/current")
_INSTALL = "install NVIDIA's driver, or simulate: set simulate.gpus in config.yaml, then `vgpu config apply`"


def library(path: str, capability: str) -> Library:
    """The record of one library of the host. Raises HostError VGPU-DEP-005 if it is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _no_library(path, f"cannot be opened (errno {error.errno})") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _no_library(path, "is no regular file")
        found = elf.parse(lambda offset, size: os.pread(fd, size, offset))
    except elf.ElfError as error:
        raise _no_library(path, f"is {error}") from None
    finally:
        os.close(fd)
    soname = found.soname or os.path.basename(path)
    role = WRAPPED.get(soname, "plain")
    return Library(
        path=path,
        soname=soname,
        role=role,
        capability=capability,
        needed=found.needed,
        versions=found.requires,
        identity=identity(status),
    )


def _no_library(path: str, what: str) -> HostError:
    return HostError("VGPU-DEP-005", f"{shown(path, 200)} {what}", remedy="install the driver, or vgpu, again")


def wrapper(policy: Policy) -> tuple[Library, ...]:
    """Our own two libraries, as they are installed."""
    folder = inventory.wrapper_folder(policy)
    found = (
        library(f"{folder}/libcuda.so.1", "compute"),
        library(f"{folder}/libnvidia-ml.so.1", "utility"),
    )
    for one in found:
        if one.role == "plain":
            raise _no_library(one.path, f"has the SONAME {shown(one.soname)}, not that of the driver")
    return found


def simulated(policy: Policy, gpus: Sequence[Gpu]) -> Inventory:
    """The inventory of the simulated driver. gpus: as its shared state in <state>/sim says."""
    folder, state = inventory.simulator_folder(policy), f"{policy.state_dir}/sim"
    found = []
    for start, capability in (("libcuda.so.", "compute"), ("libnvidia-ml.so.", "utility")):
        names = [name for name in _sorted_names(folder) if name.startswith(start) and name.count(".") >= 3]
        if not names:
            raise _no_library(f"{folder}/{start}*", "is not installed")
        found.append(library(f"{folder}/{names[-1]}", capability))
    version = os.path.basename(found[0].path).removeprefix("libcuda.so.")
    devices = [DeviceFile(f"{state}/ctl", "/dev/vgpu-sim/ctl", None, "bind")]
    devices += [
        DeviceFile(f"{state}/gpu{gpu.index}", f"/dev/vgpu-sim/gpu{gpu.index}", gpu.index, "bind") for gpu in gpus
    ]
    return Inventory(
        driver_version=version,
        simulated=True,
        key=inventory.current_key(policy),
        gpus=tuple(gpus),
        libraries=tuple(found),
        wrapper=wrapper(policy),
        devices=tuple(devices),
    )


def _sorted_names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def on_disk(driver_root: str, version: str = "") -> tuple[str, tuple[Library, ...], tuple[str, ...]]:
    """Version, libraries and programs of NVIDIA's driver below a root. version: of the kernel's module, "" for any.

    Raises HostError VGPU-HOST-007 if it is not there.
    """
    fd = os.open(driver_root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        root = RootView(fd)
        folders = tuple(library_folders(root))
        version = version or _version_on_disk(root, folders)
        if not version:
            raise HostError("VGPU-HOST-007", f"no NVIDIA driver below {driver_root}", remedy=_INSTALL)
        paths = {name: _host_path(root, folders, f"{name}.so.{version}") for name in LIBRARIES}
        if not paths["libcuda"]:
            raise HostError(
                "VGPU-HOST-007",
                f"the kernel has driver {version}, but libcuda.so.{version} is not below {driver_root}",
                remedy="install the driver's libraries in the same version, or reboot after an upgrade",
            )
        programs = tuple(filter(None, (_host_path(root, _PROGRAM_FOLDERS, name) for name in PROGRAMS)))
    finally:
        os.close(fd)
    return version, tuple(library(path, LIBRARIES[name]) for name, path in paths.items() if path), programs


def real(policy: Policy, gpus: Sequence[Gpu], dev: str = "/dev") -> Inventory:
    """The inventory of NVIDIA's driver below `policy.driver_root`. VGPU-HOST-007 if it is not there."""
    version, libraries, programs = on_disk(policy.driver_root, inventory.loaded_driver())
    return Inventory(
        driver_version=version,
        simulated=False,
        key=inventory.current_key(policy),
        gpus=tuple(gpus),
        libraries=libraries,
        wrapper=wrapper(policy),
        devices=tuple(_device_nodes(gpus, dev)),
        programs=programs,
    )


def _machine() -> int:
    machine = os.uname().machine
    return elf.AARCH64 if machine == "aarch64" else elf.X86_64


def library_folders(root: RootView) -> Iterator[str]:
    """Where the driver's libraries can be: beside the libcuda that the host's loader takes, then the usual folders."""
    for path in root.loader_cache(_machine()).get("libcuda.so.1", ()):
        yield os.path.dirname(path)
    for folder in preflight.default_folders(_machine()):
        yield folder
        yield from (f"{folder}/{below}" for below in _DRIVER_FOLDERS)


def _version_on_disk(root: RootView, folders: Sequence[str]) -> str:
    for folder in folders:
        versions = [name.removeprefix("libcuda.so.") for name in root.names(folder) if name.startswith("libcuda.so.")]
        for version in sorted(versions):
            if version.count(".") >= 1 and root.is_file(f"{folder}/libcuda.so.{version}"):
                return version
    return ""


def _host_path(root: RootView, folders: Sequence[str], name: str) -> str:
    """The path on the host, free of links, of the first regular file of that name; "" if there is none."""
    for folder in folders:
        fd = root.find(f"{folder}/{name}")
        if fd is None:
            continue
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    return ""


def _device_nodes(gpus: Sequence[Gpu], dev: str) -> Iterator[DeviceFile]:
    for name in SHARED_DEVICES:
        if os.path.exists(f"{dev}/{name}"):
            yield DeviceFile(f"{dev}/{name}", f"/dev/{name}", None, "node")
    for gpu in gpus:
        yield DeviceFile(f"{dev}/nvidia{gpu.minor}", f"/dev/nvidia{gpu.minor}", gpu.index, "node")


def nvml_gpus() -> tuple[Gpu, ...]:
    """The host's GPUs, asked of the driver through pynvml. One that does not answer is there, with its error as health.

    Raises HostError VGPU-HOST-007.
    """
    import pynvml  # type: ignore[import-untyped,unused-ignore]

    try:
        pynvml.nvmlInit()
        try:
            found = [_nvml_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
            return tuple(replace(gpu, links=_nvml_links(pynvml, gpu, found)) for gpu in found)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise HostError("VGPU-HOST-007", f"NVML says: {shown(str(error))}", remedy=_INSTALL) from None


def _nvml_gpu(nvml: Any, index: int) -> Gpu:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        bus = _text(nvml.nvmlDeviceGetPciInfo(handle).busId)
        return Gpu(
            index=index,
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            name=_text(nvml.nvmlDeviceGetName(handle)),
            memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            pci_bus_id=bus,
            minor=int(nvml.nvmlDeviceGetMinorNumber(handle)),
            numa_node=_numa_node(bus),
        )
    except nvml.NVMLError as error:  # fallen off the bus, say; the others can still be used
        return Gpu(index, f"GPU-unknown-{index}", "unknown", 0, "", index, f"NVML says: {error}")


def _numa_node(bus: str, devices: str = "/sys/bus/pci/devices") -> int | None:
    """None where the kernel does not know, or has one node only (-1)."""
    name = bus.lower()[-12:]  # NVML writes the domain with eight digits, the kernel with four
    try:
        with open(f"{devices}/{name}/numa_node", encoding="ascii") as file:
            node = int(file.read(16))
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def _nvml_links(nvml: Any, gpu: Gpu, others: Sequence[Gpu]) -> dict[str, str]:
    """How `gpu` reaches each other one. What NVML does not say is left out: the farthest is assumed."""
    levels = {10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}  # nvmlGpuTopologyLevel_t
    links: dict[str, str] = {}
    for other in others:
        if other.uuid == gpu.uuid or not (gpu.health == other.health == "ok"):
            continue
        with contextlib.suppress(nvml.NVMLError):
            pair = [nvml.nvmlDeviceGetHandleByIndex(one.index) for one in (gpu, other)]
            links[other.uuid] = levels.get(nvml.nvmlDeviceGetTopologyCommonAncestor(*pair), "SYS")
    counts: dict[str, int] = {}
    with contextlib.suppress(nvml.NVMLError):  # raised by the first link that this GPU does not have
        handle = nvml.nvmlDeviceGetHandleByIndex(gpu.index)
        for number in range(nvml.NVML_NVLINK_MAX_LINKS):
            if nvml.nvmlDeviceGetNvLinkState(handle, number) != nvml.NVML_FEATURE_ENABLED:
                continue
            bus = _text(nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, number).busId).lower()
            for other in others:
                if other.pci_bus_id.lower() == bus:
                    counts[other.uuid] = counts.get(other.uuid, 0) + 1
    return {**links, **{uuid: f"NV{count}" for uuid, count in counts.items()}}


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def save(policy: Policy, found: Inventory) -> str:
    """Writes inventory.json, all or nothing, and returns its path. Raises HostError VGPU-HOST-003."""
    path = inventory.path(policy)
    temporary = f"{path}.{os.getpid()}"
    try:
        ledger.prepare(policy.state_dir)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o644)
            file.write(fastjson.dumps(as_json(found)).encode() + b"\n")
        os.rename(temporary, path)
    except OSError as error:
        raise ledger.state_error(policy.state_dir, error) from error
    return path
