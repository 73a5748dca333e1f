"""The inventory out of a CDI spec that the driver's own tool has written: its libraries, programs and devices.

For a driver whose files are where no search finds them, and for an admin who has decided in that spec what containers
may have. What is taken of it is what `inventory_scan` would look for; the GPUs themselves are asked of NVML as always.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from oci_hook import inventory, inventory_scan
from oci_hook.errors import HostError
from oci_hook.records import DeviceFile, Gpu, Inventory, Library, Policy
from runtime_config import cdi, files
from runtime_config.cdi import Spec


def real(policy: Policy, gpus: Sequence[Gpu]) -> Inventory:
    """Raises VGPU-CFG-001 for what is no spec, VGPU-HOST-007 if it is not of the driver that is loaded, and
    VGPU-DEP-005 if one of its files is gone."""
    spec = _read(policy.driver_spec)
    mounted = list(dict.fromkeys(host for edits in spec.edits() for host, _ in edits.mounts))
    version = _version(spec, mounted)
    return Inventory(
        driver_version=version,
        simulated=False,
        key=inventory.current_key(policy),
        gpus=tuple(gpus),
        libraries=tuple(_libraries(mounted, version)),
        wrapper=inventory_scan.wrapper(policy),
        devices=tuple(_devices(spec, gpus)),
        programs=tuple(path for path in mounted if os.path.basename(path) in inventory_scan.PROGRAMS),
    )


def _read(path: str) -> Spec:
    file = files.read(path, cdi.SIZE_LIMIT_BYTES)
    if file.data is None:
        raise _stale(path, "is not there")
    return cdi.parse(files.decode(file), path)


def _version(spec: Spec, mounted: Sequence[str]) -> str:
    names = {os.path.basename(path) for path in mounted}
    found = sorted(name.removeprefix("libcuda.so.") for name in names if name.startswith("libcuda.so."))
    versions = [version for version in found if "." in version]  # libcuda.so.1 is a link
    if len(versions) != 1:
        raise _stale(spec.path, f"names {len(versions)} files libcuda.so.<version>, not one")
    loaded = inventory.loaded_driver()
    if loaded and versions[0] != loaded:
        raise _stale(spec.path, f"names driver {versions[0]}, and driver {loaded} is loaded")
    return versions[0]


def _stale(path: str, what: str) -> HostError:
    remedy = f"nvidia-ctk cdi generate --output={path}, or take driver_spec out of config.yaml"
    return HostError("VGPU-HOST-007", f"the driver's CDI spec {path} {what}", remedy=remedy)


def _libraries(mounted: Sequence[str], version: str) -> Iterator[Library]:
    for path in mounted:
        capability = inventory_scan.LIBRARIES.get(os.path.basename(path).removesuffix(f".so.{version}"))
        if capability is not None:
            yield inventory_scan.library(os.path.realpath(path), capability)


def _devices(spec: Spec, gpus: Sequence[Gpu]) -> Iterator[DeviceFile]:
    nodes = dict.fromkeys(node for edits in spec.edits() for node in edits.nodes)
    of_gpus = {f"/dev/nvidia{gpu.minor}": gpu.index for gpu in gpus}
    shared = {f"/dev/{name}" for name in inventory_scan.SHARED_DEVICES}
    for host, inside in nodes:
        if inside in of_gpus or inside in shared:
            yield DeviceFile(host, inside, of_gpus.get(inside), "node")
