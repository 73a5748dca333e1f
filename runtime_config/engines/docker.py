"""Docker's daemon.json: the runtime `vgpu`, and on request as the default. Pure: text in, text out.

dockerd takes `runtimes` and `default-runtime` on SIGHUP. A key that is no longer in the file at all changes nothing in
the running daemon, though (seen with 20.10): to take one out needs a restart, or one reload of an `outspoken` text.
A plain reload after the default runtime has gone from `runtimes` ends 20.10 with a nil pointer.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import NoReturn

from oci_hook.errors import HostError, VgpuError, shown
from runtime_config import json_text
from runtime_config.engines import LAUNCHER_NAME, RUNTIME
from runtime_config.json_text import Node

DEFAULT_PATH = "/etc/docker/daemon.json"


@dataclass(frozen=True, slots=True)
class Found:
    """What a daemon.json says of us. launcher: the path of our runtime, None if it is not there."""

    launcher: str | None
    is_default: bool
    default: str | None


def _wrong(text: str, path: str, node: Node, what: str, remedy: str) -> NoReturn:
    raise HostError("VGPU-CFG-003", f"{path}: {json_text.where(text, node.start)}: {what}", remedy=remedy)


def _runtimes(text: str, path: str, root: Node) -> Node | None:
    runtimes = root.get("runtimes")
    if runtimes is not None and runtimes.members is None:
        found = shown(text[runtimes.start : runtimes.end])
        _wrong(text, path, runtimes, f"runtimes={found} is not an object", 'write "runtimes": {} or remove it')
    return runtimes


def _our_path(text: str, path: str, root: Node) -> Node | None:
    """The path in our entry. An entry of that name that leads to another program is somebody else's, and refused."""
    runtimes = _runtimes(text, path, root)
    entry = runtimes.get(RUNTIME) if runtimes else None
    if entry is None:
        return None
    launcher = entry.get("path")
    if launcher is None or launcher.scalar is None or os.path.basename(launcher.scalar) != LAUNCHER_NAME:
        found = shown(text[entry.start : entry.end])
        _wrong(
            text,
            path,
            entry,
            f"there is a runtime named {RUNTIME} that is not ours: {found}",
            "give it another name, or remove it",
        )
    return launcher


def find(text: str, path: str = DEFAULT_PATH) -> Found:
    """Raises VGPU-CFG-001 (not JSON) or VGPU-CFG-003 (`runtimes` or its `vgpu` is something else than we can edit)."""
    root = json_text.parse(text, path)
    launcher = _our_path(text, path, root)
    default = root.get("default-runtime")
    if default is not None and default.scalar is None:
        _wrong(text, path, default, "default-runtime is not a string", 'write "default-runtime": "runc" or remove it')
    scalar = default.scalar if default else None
    return Found(launcher.scalar if launcher else None, scalar == RUNTIME, scalar)


def add(text: str, launcher: str, *, set_default: bool = False, path: str = DEFAULT_PATH) -> str:
    """`text` with the runtime `vgpu` at `launcher` (absolute). What is so already stays as it is written.

    path: for messages. Raises as `find`.
    """
    found = find(text, path)
    root = json_text.parse(text, path)
    ours = _our_path(text, path, root)
    runtimes = _runtimes(text, path, root)
    entry = {"path": launcher}
    if ours is not None:
        text = text if ours.scalar == launcher else json_text.set_value(text, ours, launcher)
    elif runtimes is not None:
        text = json_text.insert(text, root, runtimes, RUNTIME, entry)
    else:
        text = json_text.insert(text, root, root, "runtimes", {RUNTIME: entry})
    if set_default and not found.is_default:
        return with_default(text, RUNTIME, path)
    return text


def with_default(text: str, runtime: str, path: str = DEFAULT_PATH) -> str:
    """`text` with `runtime` as the default runtime. Raises as `find`."""
    find(text, path)
    root = json_text.parse(text, path)
    default = root.get("default-runtime")
    if default is not None:
        return json_text.set_value(text, default, runtime)
    return json_text.insert(text, root, root, "default-runtime", runtime)


def outspoken(text: str, path: str = DEFAULT_PATH, *, default: bool = True) -> str:
    """`text` for one reload: dockerd keeps what it has where a key is missing, so both are there. Raises as `find`.

    default: False where a flag says the default runtime, since dockerd refuses a key beside it.
    """
    root = json_text.parse(text, path)
    if root.get("runtimes") is None:
        text = json_text.insert(text, root, root, "runtimes", {})
    return text if find(text, path).default or not default else with_default(text, "runc", path)


def _only_ours_differs(text: str, original: str, found: Found, path: str) -> bool:
    """Is `text` what `add` made of `original`, and nothing else? In one step, or the default later."""
    if found.launcher is None:
        return False
    try:
        if text == add(original, found.launcher, set_default=found.is_default, path=path):
            return True
        plain = add(original, found.launcher, path=path)
        return text == add(plain, found.launcher, set_default=found.is_default, path=path)
    except VgpuError:  # the original was not one that could be edited
        return False


def remove(text: str, original: str | None, path: str = DEFAULT_PATH) -> str | None:
    """`text` without what `add` did; None when there was no file before and nothing of others is in it now.

    original: the backup's text, None if there is no backup. Byte for byte the original where nothing else has changed
    since; otherwise only our entry goes, and the default runtime becomes what it was, or "runc". Raises as `find`.
    """
    found = find(text, path)
    if found.launcher is None and not found.is_default:
        return text
    if _only_ours_differs(text, original or "", found, path):
        return original
    if found.is_default:
        previous = _previous_default(original)
        default = json_text.parse(text, path).get("default-runtime")
        assert default is not None
        text = json_text.set_value(text, default, previous)
    return _without_entry(text, path) if found.launcher else text


def _previous_default(original: str | None) -> str:
    try:
        previous = json.loads((original or "{}").removeprefix(json_text.BOM)).get("default-runtime")
    except (ValueError, AttributeError):
        return "runc"
    return previous if isinstance(previous, str) and previous != RUNTIME else "runc"


def _without_entry(text: str, path: str) -> str:
    root = json_text.parse(text, path)
    runtimes = root.get("runtimes")
    assert runtimes is not None and runtimes.members
    if len(runtimes.members) == 1:
        return json_text.remove(text, root, "runtimes")
    return json_text.remove(text, runtimes, RUNTIME)
