"""vgpu configure podman and crio: files of our own beside the engine's, and what the engine makes of them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from oci_hook.errors import HostError, shown
from runtime_config import launcher_conf
from runtime_config.engines import RUNTIME, hooks_d
from runtime_config.engines.hooks_d import HookFile
from vgpu import configure, output
from vgpu.configure import Change, Edit

_ANSWER_S = 60


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for. hooks_dir: the folder of hooks.d, None: not these. program: to verify with."""

    edit: Edit
    prefix: str
    hooks_dir: str | None = None
    program: str | None = None


def run(engine: str, request: Request, next_step: str, *, as_json: bool) -> int:
    """The command. engine: "podman" or "crio". Returns the exit code: 0, or configure.WOULD_CHANGE."""
    edits = _edits(request)
    changes = [(configure.plan(edit, request.prefix), edit) for edit in edits]
    needed = [change.file.path for change, _ in changes if change.needed]
    result: dict[str, Any] = {"files": [change.file.path for change, _ in changes], "changed": needed}
    if request.edit.dry_run:
        return _show(changes, {**result, "dry_run": True}, as_json=as_json)
    for change, edit in changes:
        if change.needed:
            configure.write(change, edit)
    if request.program is not None:
        _verify(request.program, changes[-1][0])
    if as_json:
        launcher = changes[-1][0].launcher
        verified = request.program is not None
        output.emit_json({**result, "dry_run": False, "launcher": launcher, "verified": verified})
        return 0
    for change, edit in changes:
        print(f"{change.file.path}: {_done(change, edit)}")
    if request.program is not None:
        print(f"{request.program} {'no longer has' if request.edit.undo else 'has'} the runtime {RUNTIME}")
    if needed:
        output.message(f"vgpu: {engine}: {next_step}")
    return 0


def _edits(request: Request) -> list[Edit]:
    """Hooks first: when vgpu is taken out, the engine must not skip one whose program has gone already."""
    edits = []
    if request.hooks_dir is not None:
        python = "" if request.edit.undo else launcher_conf.python_of(request.prefix)
        for stage in hooks_d.STAGES:
            file = HookFile(stage, python, os.path.abspath(request.prefix))
            edits.append(replace(request.edit, path=f"{request.hooks_dir}/{file.name}", editor=file))
    return [*edits, request.edit]


def _done(change: Change, edit: Edit) -> str:
    if not change.needed:
        return "nothing to do" if edit.undo else configure.unchanged(edit)
    return "removed" if change.after is None else "changed"


def _show(changes: Sequence[tuple[Change, Edit]], result: dict[str, Any], *, as_json: bool) -> int:
    diff = "".join(change.diff() for change, _ in changes if change.needed)
    if as_json:
        output.emit_json({**result, "diff": diff})
    else:
        print(diff or "nothing to do\n", end="")
    return configure.WOULD_CHANGE if diff else 0


def _verify(program: str, change: Change) -> None:
    """Whether Podman starts our launcher when it is told `--runtime vgpu`. Raises VGPU-CFG-004."""
    command = [program, "--runtime", RUNTIME, "info", "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
        runtime = json.loads(done.stdout)["host"]["ociRuntime"] if done.returncode == 0 else {}
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        why = shown(str(error), 160)
        raise HostError("VGPU-CFG-004", f"{program} cannot be asked: {why}", remedy="name it with --program") from None
    found = runtime.get("path") if runtime.get("name") == RUNTIME else None
    if found == change.launcher:
        return
    said = done.stderr.strip().rpartition("\n")[2]
    what = f"{program} has the runtime {RUNTIME} at {shown(found)} after reading {change.file.path} {shown(said, 160)}"
    raise HostError("VGPU-CFG-004", what, remedy="see which other files name it: grep -r vgpu /etc/containers")
