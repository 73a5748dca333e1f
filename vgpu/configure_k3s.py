"""vgpu configure k3s and rke2: the handler in the template from which they make containerd's config.toml."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from oci_hook.errors import HostError, shown
from runtime_config import files
from runtime_config.engines import RUNTIME, containerd, k3s
from runtime_config.engines.k3s import Template
from vgpu import configure
from vgpu.configure import Change, Edit, Tell

_RESTART = {"k3s": "systemctl restart k3s, or k3s-agent", "rke2": "systemctl restart rke2-server, or rke2-agent"}


@dataclass(frozen=True, slots=True)
class Request:
    """engine: "k3s" or "rke2". made: the path of the config.toml that it makes; the template lies beside it."""

    engine: str
    made: str
    prefix: str
    undo: bool = False
    set_default: bool = False
    dry_run: bool = False
    verify: bool = False


def run(request: Request, *, as_json: bool) -> int:
    """The command. Returns 0, or configure.WOULD_CHANGE."""
    tell = configure.quiet if as_json else configure.say
    return configure.finish(do(request, tell), as_json=as_json)


def do(request: Request, tell: Tell) -> dict[str, Any]:
    """The engine, as `request` wants it; see configure.do."""
    edit = _edit(request)
    change = configure.plan(edit, request.prefix)
    result = configure.begin(change, edit)
    if edit.dry_run:
        configure.show(change, edit, result, tell)
        return result
    if change.needed:
        configure.write(change, edit)
        again = _RESTART[request.engine]
        result["advice"] = [f"{request.engine} makes {request.made} of it when it starts: {again}; containers live on"]
    tell(f"{change.file.path}: {'changed' if change.needed else configure.unchanged(edit)}")
    if request.verify:
        _verify(request, change)
        tell(f"{request.made} {'has' if change.launcher else 'no longer has'} the runtime handler {RUNTIME}")
    return {**result, "launcher": change.launcher, "verified": request.verify}


def _edit(request: Request) -> Edit:
    """Raises VGPU-CFG-003 if there is nothing to go by: which template counts depends on what was made."""
    file = files.read(request.made)
    if file.data is None and not request.undo:
        what = f"{request.made} is not there; {request.engine} makes it when it starts"
        raise HostError("VGPU-CFG-003", what, remedy=f"start {request.engine} once, or name that file with --config")
    text = files.decode(file)
    path = k3s.template_of(text, request.made)
    if request.undo:  # that of an earlier version may still have it
        beside = [os.path.join(os.path.dirname(request.made), name) for name in k3s.TEMPLATES.values()]
        path = next((one for one in beside if _has_ours(request.engine, one)), path)
    runc = containerd.handlers(text, request.made).get("runc", {}).get("options", {})
    editor = Template(request.engine, runc if isinstance(runc, dict) else {})
    return Edit(path, editor, undo=request.undo, set_default=request.set_default, dry_run=request.dry_run)


def _has_ours(engine: str, path: str) -> bool:
    return Template(engine).find(files.decode(files.read(path)), path).launcher is not None


def _verify(request: Request, change: Change) -> None:
    """Raises VGPU-CFG-004 if config.toml was made before the template was changed."""
    found = containerd.find(files.decode(files.read(request.made)), request.made).launcher
    if found != change.launcher:
        what = f"{request.made} has the runtime handler {RUNTIME} at {shown(found)}: it was made before"
        raise HostError("VGPU-CFG-004", what, remedy=_RESTART[request.engine])
