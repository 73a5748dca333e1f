"""NVIDIA's own container toolkit in the same container: its hooks stay, and what they bring neither undoes the slice
nor comes twice. Pure.

What they do, by the toolkit's documentation and what it leaves in config.json (1.17 to 1.20):
* legacy: a prestart hook that mounts driver and devices, unless NVIDIA_VISIBLE_DEVICES is `void`;
* CDI: mounts and devices in the spec, createContainer hooks that make links and the loader's cache, and since 1.20.1
  createRuntime hooks that set the driver's own memory limit (driver r615) from two variables.
"""

from __future__ import annotations

import os

from oci_hook.errors import RequestError
from oci_hook.values import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Any

    from oci_hook.bundle import Node

_STAGES = ("prestart", "createRuntime", "createContainer")
_LEGACY = ("nvidia-container-runtime-hook", "nvidia-container-toolkit")
_RUNTIME = "nvidia-container-runtime"
_VISIBLE = "NVIDIA_VISIBLE_DEVICES"
_REQUEST, _LIMIT = "NVIDIA_GPU_MEMORY_REQUEST", "NVIDIA_GPU_MEMORY_LIMIT"


def is_here(spec: dict[str, Any], runtime: str) -> bool:
    """Is there a hook of the toolkit, or is `runtime`, which stands below ours and may add some, its own?"""
    return os.path.basename(runtime).startswith(_RUNTIME) or any(True for _ in _hooks(spec))


def settle(spec: dict[str, Any], runtime: str, names: Collection[str], memory: int, others: Collection[Node]) -> None:
    """Edits `spec` so that both can be there.

    names: of the files that the slice mounts into the library folder. memory: the smallest quota of the slice, bytes.
    others: device nodes of GPUs that are not the slice's. Raises VGPU-REQ-004 if the toolkit would set the driver's
    limit below the quota: the container could never have what it is promised.
    """
    _require_room(spec, memory)
    legacy = any(os.path.basename(entry["path"]) in _LEGACY for entry in _hooks(spec))
    if legacy or os.path.basename(runtime).startswith(_RUNTIME):
        _hush(spec)
    for entry in _hooks(spec):
        if "create-symlinks" in (entry.get("args") or []):
            entry["args"] = list(_without_links(entry["args"], names))
    _take_out(spec, others)


def _hooks(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    hooks = spec.get("hooks") or {}
    for stage in _STAGES:
        for entry in hooks.get(stage) or []:
            if os.path.basename(str(entry.get("path"))).startswith("nvidia-"):
                yield entry


def _hush(spec: dict[str, Any]) -> None:
    """The legacy hook then mounts nothing: the slice brings the driver already. It would also do so without the
    variable, for an image with CUDA_VERSION."""
    process = spec["process"] = dict(spec.get("process") or {})
    others = [pair for pair in process.get("env") or [] if not pair.startswith(f"{_VISIBLE}=")]
    process["env"] = [*others, f"{_VISIBLE}=void"]


def _without_links(args: list[str], names: Collection[str]) -> Iterator[str]:
    """`--link TARGET::PATH` but for paths where our mounts are: a link cannot take a mount's place, and the start would
    fail."""
    words = iter(args)
    for word in words:
        value = next(words, "") if word == "--link" else word.partition("=")[2] if word.startswith("--link=") else None
        if value is None:
            yield word
        elif os.path.basename(value.rpartition("::")[2]) not in names:
            yield from (word, value) if word == "--link" else (word,)


def _require_room(spec: dict[str, Any], memory: int) -> None:
    """Theirs is a limit in the driver, ours is in front of it: where both are, the smaller one counts."""
    if not any("apply-cuda-memory-limits" in (entry.get("args") or []) for entry in _hooks(spec)):
        return
    env = dict(pair.split("=", 1) for pair in (spec.get("process") or {}).get("env") or [] if "=" in pair)
    limit = env.get(_LIMIT, "")
    if _REQUEST not in env or not limit.isdecimal() or int(limit) << 20 >= memory:
        return
    raise RequestError(
        "VGPU-REQ-004",
        f"{_LIMIT}={limit} (env): NVIDIA's hook will hold the container to {limit} MiB, and its slice is "
        f"{memory >> 20} MiB",
        remedy=f"leave {_LIMIT} out, or set it to {memory >> 20} or more",
    )


def _take_out(spec: dict[str, Any], nodes: Collection[Node]) -> None:
    """Devices and rules for GPUs of others, as `--gpus all` brings them."""
    linux = spec.get("linux") or {}
    numbers = {(node.major, node.minor) for node in nodes}
    if linux.get("devices"):
        linux["devices"] = [one for one in linux["devices"] if (one.get("major"), one.get("minor")) not in numbers]
    resources = linux.get("resources") or {}
    if resources.get("devices"):
        resources["devices"] = [
            rule
            for rule in resources["devices"]
            if not rule.get("allow") or (rule.get("major"), rule.get("minor")) not in numbers
        ]
