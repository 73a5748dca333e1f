"""CDI specs, the Container Device Interface's files in /etc/cdi and /var/run/cdi: ours written, anybody's read.

Ours (kind vgpu.dev/gpu) names device files alone, and our hooks: an engine that knows CDI adds both to a container's
spec, so that whoever gets a device also gets the hook that gives it its slice. Driver files are the hook's affair and
not in it. Pure but for `folder_specs`, which reads. Source: the CDI specification, versions 0.3.0 to 1.1.0.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from oci_hook.bundle import HOOK_ENV, HOOK_TIMEOUT_S
from oci_hook.errors import HostError, VgpuError, shown
from oci_hook.records import DeviceFile, Inventory
from runtime_config import files

KIND = "vgpu.dev/gpu"
ALL = "all"
DEFAULT_PATH = "/etc/cdi/vgpu.json"
FOLDERS = ("/etc/cdi", "/var/run/cdi")  # where engines look; of two devices of one name, the later folder's counts
VERSIONS = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
_ENDINGS = (".json", ".yaml")  # others are not read by engines
SIZE_LIMIT_BYTES = 4 << 20
_SCRIPT = "/vgpu_hook.py"
STAGE = "createRuntime"  # after every prestart hook: a driver that one of those brings is covered by ours


@dataclass(frozen=True, slots=True)
class Edits:
    """What a device, or a whole spec, adds to a container. nodes and mounts: (host's path, container's path).

    numbers: host's path of a node -> (major, minor) where the spec fixes them. hooks: paths of programs; scripts: of
    our hook, which an interpreter is given.
    """

    nodes: tuple[tuple[str, str], ...] = ()
    mounts: tuple[tuple[str, str], ...] = ()
    hooks: tuple[str, ...] = ()
    numbers: dict[str, tuple[int, int]] = field(default_factory=dict)
    scripts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spec:
    """One file, read. common: what every device of it adds as well."""

    path: str
    version: str
    kind: str
    devices: dict[str, Edits]
    common: Edits
    text: str

    def names(self) -> list[str]:
        """As --device takes them."""
        return [f"{self.kind}={device}" for device in self.devices]

    def edits(self) -> Iterator[Edits]:
        yield self.common
        yield from self.devices.values()


# ours


def generate(inventory: Inventory, python: str, prefix: str) -> str:
    """The text of our spec. python: the interpreter of the hooks; prefix: of the installation.

    Raises VGPU-HOST-007 on a host without a GPU: a spec without a device is none.
    """
    common = _container_edits([device for device in inventory.devices if device.gpu is None])
    common["hooks"] = [_hook(STAGE, "direct", python, prefix), _hook("poststop", "poststop", python, prefix)]
    devices = []
    for gpu in inventory.gpus:
        own = _container_edits([device for device in inventory.devices if device.gpu == gpu.index])
        if own:  # a device without any edit is against the specification
            devices += [{"name": name, "containerEdits": own} for name in (str(gpu.index), gpu.uuid)]
    if not devices:
        raise HostError("VGPU-HOST-007", "no GPU of this host has a device file", remedy="vgpu inventory --refresh")
    every = _container_edits([device for device in inventory.devices if device.gpu is not None])
    devices.append({"name": ALL, "containerEdits": every})
    spec: dict[str, Any] = {"kind": KIND, "devices": devices, "containerEdits": common}
    return json.dumps({"cdiVersion": least_version(spec), **spec}, indent=2) + "\n"


def _container_edits(devices: Sequence[DeviceFile]) -> dict[str, Any]:
    nodes = [_node(device) for device in devices if device.kind == "node"]
    mounts = [
        {"hostPath": device.source, "containerPath": device.target, "options": ["bind", "rw", "nosuid", "nodev"]}
        for device in devices
        if device.kind == "bind"
    ]
    return {**({"deviceNodes": nodes} if nodes else {}), **({"mounts": mounts} if mounts else {})}


def _node(device: DeviceFile) -> dict[str, str]:
    # without numbers: the engine takes the host's at each start, and the driver's can change when it is loaded again
    same = device.source == device.target
    return {"path": device.target, **({} if same else {"hostPath": device.source}), "permissions": "rw"}


def _hook(stage: str, word: str, python: str, prefix: str) -> dict[str, Any]:
    return {"hookName": stage, "path": python, "args": hook_command(word, python, prefix), "env": list(HOOK_ENV),
            "timeout": HOOK_TIMEOUT_S}  # fmt: skip


def hook_command(word: str, python: str, prefix: str) -> list[str]:
    """Program and arguments of our hook, called by an engine itself. word: "direct" or "poststop"."""
    script = f"{prefix}/lib/vgpu/python{_SCRIPT}"
    return [python, "-I", "-S", "-E", script, word, "--policy", f"{prefix}/etc/policy.json"]


def least_version(spec: dict[str, Any]) -> str:
    """The lowest version that has all that `spec` uses: older engines refuse a file of a newer version.

    Source: the table of versions in the CDI specification.
    """
    everything = [spec.get("containerEdits") or {}, *(device["containerEdits"] for device in spec["devices"])]
    if any(edits.get("netDevices") for edits in everything):
        return "1.1.0"
    if any(edits.get("intelRdt") or edits.get("additionalGids") for edits in everything):
        return "0.7.0"
    if spec.get("annotations") or any(device.get("annotations") for device in spec["devices"]):
        return "0.6.0"
    if "." in spec["kind"].partition("/")[2]:
        return "0.6.0"
    nodes = [node for edits in everything for node in edits.get("deviceNodes") or []]
    if any("hostPath" in node for node in nodes) or any(device["name"][0].isdigit() for device in spec["devices"]):
        return "0.5.0"
    if any("type" in mount for edits in everything for mount in edits.get("mounts") or []):
        return "0.4.0"
    return "0.3.0"


# anybody's


def parse(text: str, path: str) -> Spec:
    """Raises VGPU-CFG-001 for what is no CDI spec."""
    try:
        raw = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
        kind, version = raw["kind"], raw["cdiVersion"]
        vendor, _, name = kind.partition("/")
        if not vendor or not name:
            raise ValueError(f"kind={shown(kind)} is not VENDOR/CLASS")
        if version not in VERSIONS:
            raise ValueError(f"cdiVersion={shown(version)} is none of {', '.join(VERSIONS)}")
        devices: dict[str, Edits] = {}
        for device in raw["devices"]:
            if not isinstance(device["name"], str) or device["name"] in devices:
                raise ValueError(f"the device name {shown(device['name'])} is no text, or is there twice")
            devices[device["name"]] = _edits(device["containerEdits"])
        return Spec(path, version, kind, devices, _edits(raw.get("containerEdits") or {}), text)
    except KeyError as error:
        why = f"{error} is missing"
    except (ValueError, TypeError, AttributeError, yaml.YAMLError, RecursionError) as error:
        why = " ".join(str(error).split())
    raise HostError("VGPU-CFG-001", f"{path}: not a CDI spec: {shown(why, 200)[1:-1]}", remedy=f"mend or remove {path}")


def _edits(raw: dict[str, Any]) -> Edits:
    """Raises KeyError, TypeError, ValueError or AttributeError."""
    nodes, numbers = [], {}
    for node in raw.get("deviceNodes") or []:
        host = _path(node.get("hostPath") or node["path"])
        nodes.append((host, _path(node["path"])))
        if isinstance(node.get("major"), int):
            numbers[host] = (node["major"], int(node.get("minor") or 0))
    mounts = [(_path(mount["hostPath"]), _path(mount["containerPath"])) for mount in raw.get("mounts") or []]
    hooks = [_path(hook["path"]) for hook in raw.get("hooks") or []]
    words = [word for hook in raw.get("hooks") or [] for word in hook.get("args") or [] if word.endswith(_SCRIPT)]
    return Edits(tuple(nodes), tuple(mounts), tuple(hooks), numbers, tuple(words))


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{shown(value)} is not a path")
    return value


def folder_specs(folders: Sequence[str]) -> Iterator[Spec | VgpuError]:
    """Every spec of the folders, in their order; what cannot be read stands there as its error."""
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue  # no such folder, no specs
        for name in names:
            path = os.path.join(folder, name)
            if not name.endswith(_ENDINGS):
                continue
            try:
                yield parse(files.decode(files.read(path, SIZE_LIMIT_BYTES)), path)
            except VgpuError as error:
                yield error
