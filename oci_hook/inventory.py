"""What this host has, as the last scan found it: loading it at a container's start, and noticing that it is stale.

`inventory_scan` makes it. The key is cheap to compute and changes when driver, GPUs or our own libraries do.
"""

from __future__ import annotations

import os

from oci_hook import fastjson, files
from oci_hook.errors import HostError, shown
from oci_hook.records import SCHEMA, Inventory, Policy
from oci_hook.values import from_json

_MAX_FILE = 16 << 20
_REMEDY = "vgpu inventory --refresh"
DRIVER_VERSION = "/sys/module/nvidia/version"
DRIVER_GPUS = "/proc/driver/nvidia/gpus"


def path(policy: Policy) -> str:
    return f"{policy.host_state_dir}/inventory.json"


def wrapper_folder(policy: Policy) -> str:
    return f"{policy.prefix}/lib/vgpu/wrapper"


def simulator_folder(policy: Policy) -> str:
    return f"{policy.prefix}/lib/vgpu/sim"


def loaded_driver() -> str:
    """The version of the kernel's NVIDIA module, or "" when there is none."""
    try:
        with open(DRIVER_VERSION, encoding="ascii", errors="replace") as file:
            return file.read(64).strip()
    except OSError:
        return ""


def current_key(policy: Policy) -> str:
    """Differs from `Inventory.key` when the inventory has to be made again."""
    if policy.simulate_gpus:
        host = f"simulated {policy.simulate_gpus} x {policy.simulate_memory_bytes}"
        ours = [*_stamps(wrapper_folder(policy)), *_stamps(simulator_folder(policy))]
    else:
        host = (
            f"driver {loaded_driver() or 'none'} at {policy.driver_root}, {' '.join(_names(DRIVER_GPUS)) or 'no GPU'}"
        )
        ours = _stamps(wrapper_folder(policy))
        if policy.driver_spec:
            ours += _stamp(policy.driver_spec)
    return " ".join([host, *ours])


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _stamps(folder: str) -> list[str]:
    return [stamp for name in _names(folder) for stamp in _stamp(f"{folder}/{name}")]


def _stamp(path: str) -> list[str]:
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [f"{os.path.basename(path)}:{status.st_ino}:{status.st_mtime_ns}"]


def load(policy: Policy) -> Inventory:
    """What may be given out of: the host's GPUs, or what a user was granted of them. Raises as `of_host`."""
    found = of_host(policy)
    if policy.grant is None or not policy.grant.parts:
        return found
    from oci_hook import rootless

    return rootless.narrowed(found, policy.grant)


def of_host(policy: Policy) -> Inventory:
    """Raises HostError VGPU-HOST-002 if there is none that can be used or it is stale, VGPU-HOST-006 if others can
    write it.
    """
    file_path = path(policy)
    try:
        raw, status = files.read(file_path, _MAX_FILE)
        if not files.is_trusted(status.st_uid) or status.st_mode & 0o022:
            raise HostError(
                "VGPU-HOST-006",
                f"the inventory {file_path} can be written by others than root",
                remedy=f"rm {file_path} && {policy.vgpu_command} inventory --refresh",
            )
        found: Inventory = from_json(Inventory, fastjson.loads(raw))
        if found.schema != SCHEMA:
            raise ValueError(f"schema {shown(found.schema)}, not {SCHEMA}")
    except FileNotFoundError:
        raise HostError("VGPU-HOST-002", f"there is no GPU inventory at {file_path}", remedy=_REMEDY) from None
    except OSError as error:
        raise _unusable(file_path, f"errno {error.errno}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise _unusable(file_path, str(error)) from None
    if found.key != current_key(policy):
        raise HostError(
            "VGPU-HOST-002", "the GPU inventory is older than the driver, the GPUs or vgpu itself", remedy=_REMEDY
        )
    return found


def _unusable(file_path: str, why: str) -> HostError:
    return HostError(
        "VGPU-HOST-002", f"the GPU inventory {file_path} cannot be used: {shown(why, 160)}", remedy=_REMEDY
    )
