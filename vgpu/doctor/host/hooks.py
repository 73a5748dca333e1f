"""Hook files of Podman and CRI-O, and CDI specs: whatever they name must be there, or containers do not start."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import yaml

from vgpu.doctor.finding import CannotSee, Result, Seen, found
from vgpu.doctor.host.driver import module_version
from vgpu.doctor.host.machine import Host, Run

HOOK_FOLDERS = ("/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d", "/run/containers/oci/hooks.d")
CDI_FOLDERS = ("/etc/cdi", "/run/cdi")
_NVIDIA_LIBRARY = re.compile(r"/lib(?:cuda|nvidia-[\w-]+|nvcuvid)\.so\.(\d+(?:\.\d+){1,2})$")
_SHOWN = 3  # names in one evidence


def hook_files(host: Host) -> Iterator[Result]:
    good = 0
    for path in _files(host, HOOK_FOLDERS, ".json"):
        text = host.read(path) or ""
        try:
            program = json.loads(text)["hook"]["path"]
        except (ValueError, TypeError, KeyError) as error:
            yield found("VGPU-ENG-005", path, f"no hook file of version 1.0.0 ({type(error).__name__}: {error})",
                        remedy=f"mend it, or: rm {path}")  # fmt: skip
            continue
        if not isinstance(program, str) or not os.access(host.path(program), os.X_OK):
            evidence = f"it names {program}, which is not there or is no program"
            yield found("VGPU-ENG-004", path, evidence, remedy=f"install what {program} belongs to, or: rm {path}")
        else:
            good += 1
    yield Seen(f"{good} hook files")


def _files(host: Host, folders: tuple[str, ...], *ends: str) -> list[str]:
    return [f"{folder}/{name}" for folder in folders for name in host.names(folder) if name.endswith(ends)]


def cdi_specs(host: Host) -> Iterator[Result]:
    good, driver = 0, module_version(host)
    for path in _files(host, CDI_FOLDERS, ".json", ".yaml"):
        try:
            named = set(_named(yaml.safe_load(host.read(path) or "")))  # JSON is YAML
        except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
            first = str(error).partition("\n")[0]
            yield found("VGPU-ENG-008", path, f"it cannot be read: {first}", remedy=f"make it anew, or: rm {path}")
            continue
        missing = sorted(name for name in named if not _is_there(host, name))
        others = sorted({match[1] for name in named if (match := _NVIDIA_LIBRARY.search(name))} - {driver})
        remedy = _anew(path)
        if missing:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            yield found("VGPU-ENG-006", path, f"not there: {', '.join(missing[:_SHOWN])}{more}", remedy=remedy)
        elif others and driver:
            evidence = f"it is of driver {', '.join(others)}, and the kernel has {driver}"
            yield found("VGPU-ENG-007", path, evidence, remedy=remedy)
        else:
            good += 1
    yield Seen(f"{good} CDI specs")


def _is_there(host: Host, name: str) -> bool:
    try:
        return host.stat(name) is not None
    except CannotSee:
        return True  # a folder that we may not look into


def _anew(path: str) -> str:
    kind = os.path.basename(path)
    command = "nvidia-ctk cdi generate --output=" if kind.startswith("nvidia") else "vgpu cdi generate --output "
    return f"{command}{path}"


def _named(spec: Any) -> Iterator[str]:
    """All host paths of a CDI spec: device nodes, mounts' sources, hooks' programs."""
    edits = [spec.get("containerEdits") or {}]
    edits += [device.get("containerEdits") or {} for device in spec.get("devices") or []]
    for edit in edits:
        for node in edit.get("deviceNodes") or []:
            yield str(node.get("hostPath") or node["path"])
        for mount in edit.get("mounts") or []:
            yield str(mount["hostPath"])
        for hook in edit.get("hooks") or []:
            yield str(hook["path"])


CHECKS: tuple[tuple[str, str, Run], ...] = (("engines", "hook files", hook_files), ("engines", "CDI", cdi_specs))
