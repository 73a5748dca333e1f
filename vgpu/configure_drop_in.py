"""vgpu configure podman and crio: files of our own beside the engine's, and what the engine makes of them."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, replace
from typing import Any

from oci_hook.errors import HostError, shown
from runtime_config import launcher_conf
from runtime_config.engines import RUNTIME, hooks_d
from runtime_config.engines.hooks_d import FolderFile, HookFile
from vgpu import configure
from vgpu.configure import Change, Edit, Tell

_ANSWER_S = 60
_NEXT = {
    "podman": "every call reads it anew: podman run --runtime vgpu --annotation vgpu.memory=8GiB IMAGE",
    "crio": "it reads this when it starts: systemctl restart crio; containers live on",
}
_UNDONE = "containers that were created with the runtime vgpu can no longer start"


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for. hooks_dir: the folder of hooks.d, None: not these. program: to verify with.

    named: the engine reads hooks_dir only if a drop-in beside the edit's file says so, as a user's Podman does.
    """

    edit: Edit
    prefix: str
    hooks_dir: str | None = None
    program: str | None = None
    named: bool = False


def run(engine: str, request: Request, *, as_json: bool) -> int:
    """The command. engine: "podman" or "crio". Returns the exit code: 0, or configure.WOULD_CHANGE."""
    return configure.finish(
        do(engine, request, configure.quiet if as_json else configure.say, verify=request.program is not None),
        as_json=as_json,
    )


def do(engine: str, request: Request, tell: Tell, *, verify: bool) -> dict[str, Any]:
    """The engine, as `request` wants it; see configure.do."""
    changes = [(configure.plan(edit, request.prefix), edit) for edit in _edits(request)]
    needed = [change.file.path for change, _ in changes if change.needed]
    result: dict[str, Any] = {
        "files": [change.file.path for change, _ in changes],
        "changed": needed,
        "dry_run": request.edit.dry_run,
    }
    if request.edit.dry_run:
        result["diff"] = "".join(change.diff() for change, _ in changes if change.needed)
        tell(result["diff"].removesuffix("\n") or "nothing to do")
        return result
    for change, edit in changes:
        if change.needed:
            configure.write(change, edit)
        tell(f"{change.file.path}: {_done(change, edit)}")
    if verify and request.program is not None:
        _verify(request.program, changes[-1][0])
        tell(f"{request.program} {'no longer has' if request.edit.undo else 'has'} the runtime {RUNTIME}")
    if needed:
        result["advice"] = [f"{engine}: {_UNDONE if request.edit.undo and engine == 'podman' else _NEXT[engine]}"]
    return {**result, "launcher": changes[-1][0].launcher, "verified": verify}


def _edits(request: Request) -> list[Edit]:
    """Hooks first: when vgpu is taken out, the engine must not skip one whose program has gone already."""
    edits = []
    if request.hooks_dir is not None:
        python = "" if request.edit.undo else launcher_conf.python_of(request.prefix)
        for stage in hooks_d.STAGES:
            file = HookFile(stage, python, os.path.abspath(request.prefix))
            edits.append(replace(request.edit, path=f"{request.hooks_dir}/{file.name}", editor=file))
        if request.named:
            path = f"{os.path.dirname(request.edit.path)}/{FolderFile.NAME}"
            edits.append(replace(request.edit, path=path, editor=FolderFile(request.hooks_dir)))
    return [*edits, request.edit]


def _done(change: Change, edit: Edit) -> str:
    if not change.needed:
        return "nothing to do" if edit.undo else configure.unchanged(edit)
    return "removed" if change.after is None else "changed"


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
