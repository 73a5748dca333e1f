"""vgpu configure containerd: the runtime handler in config.toml, and whether containerd itself reads it there."""

from __future__ import annotations

import subprocess
from typing import Any

from oci_hook.errors import HostError, shown
from runtime_config.engines import RUNTIME, containerd
from vgpu import configure, output
from vgpu.configure import Edit

_ANSWER_S = 30


def run(edit: Edit, prefix: str, *, verify: str | None, as_json: bool) -> int:
    """The command. verify: the containerd program to ask, None: ask none. Returns 0, or configure.WOULD_CHANGE."""
    change = configure.plan(edit, prefix)
    result: dict[str, Any] = {"file": change.file.path, "changed": change.needed, "dry_run": edit.dry_run}
    if edit.dry_run:
        return configure.show(change, edit, result, as_json=as_json)
    if change.needed:
        configure.write(change, edit)
    if verify is not None:
        _verify(verify, change.file.path, change.launcher)
    if as_json:
        output.emit_json({**result, "launcher": change.launcher, "verified": verify is not None})
        return 0
    print(f"{change.file.path}: {'changed' if change.needed else configure.unchanged(edit)}", flush=True)
    if verify is not None:
        reads = "reads" if change.launcher else "no longer reads"
        print(f"{verify} {reads} the runtime handler {RUNTIME} there")
    if change.needed:
        output.message("vgpu: containerd reads it when it starts: systemctl restart containerd; containers live on")
    return 0


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
