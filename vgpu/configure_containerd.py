"""vgpu configure containerd: the runtime handler in config.toml, and whether containerd itself reads it there."""

from __future__ import annotations

import subprocess
from typing import Any

from oci_hook.errors import HostError, shown
from runtime_config.engines import RUNTIME, containerd
from vgpu import configure
from vgpu.configure import Edit, Tell

_ANSWER_S = 30


def run(edit: Edit, prefix: str, *, verify: str | None, as_json: bool) -> int:
    """The command. verify: the containerd program to ask, None: ask none. Returns 0, or configure.WOULD_CHANGE."""
    tell = configure.quiet if as_json else configure.say
    return configure.finish(do(edit, prefix, verify, tell), as_json=as_json)


def do(edit: Edit, prefix: str, verify: str | None, tell: Tell) -> dict[str, Any]:
    """containerd, as `edit` wants it; see configure.do."""
    change = configure.plan(edit, prefix)
    result = configure.begin(change, edit)
    if edit.dry_run:
        configure.show(change, edit, result, tell)
        return result
    if change.needed:
        configure.write(change, edit)
    tell(f"{change.file.path}: {'changed' if change.needed else configure.unchanged(edit)}")
    if verify is not None:
        _verify(verify, change.file.path, change.launcher)
        reads = "reads" if change.launcher else "no longer reads"
        tell(f"{verify} {reads} the runtime handler {RUNTIME} there")
    if change.needed:
        result["advice"] = ["containerd reads it when it starts: systemctl restart containerd; containers live on"]
    return {**result, "launcher": change.launcher, "verified": verify is not None}


def _verify(program: str, path: str, launcher: str | None) -> None:
    """What containerd makes of the file, files that it imports included. Raises VGPU-CFG-004."""
    try:
        command = [program, "--config", path, "config", "dump"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        why = error.strerror if isinstance(error, OSError) else f"no answer in {_ANSWER_S} s"
        raise HostError("VGPU-CFG-004", f"{program} cannot be asked: {why}", remedy="name it with --program") from None
    if done.returncode:
        said = shown(done.stderr.strip().rpartition("\n")[2], 200)
        raise HostError(
            "VGPU-CFG-004", f"{program} cannot read {path}: {said}", remedy="vgpu configure containerd --undo"
        )
    found = containerd.find(done.stdout, f"{program} config dump").launcher
    if found != launcher:
        what = f"{program} has the runtime handler {RUNTIME} at {shown(found)} after reading {path}"
        raise HostError("VGPU-CFG-004", what, remedy="see which other files it imports: containerd config dump")
