"""vgpu configure containerd: the runtime handler in config.toml, and whether containerd itself reads it there.

config.toml may import other files. Before 2.1 a table of theirs replaces the same plugin's table in it, and the handler
with it; since 2.1 they are merged. So containerd is asked, and what it would not see is not left behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from typing import Any

from oci_hook.errors import HostError, shown
from runtime_config import files
from runtime_config.engines import RUNTIME, containerd, k3s
from vgpu import configure
from vgpu.configure import Change, Edit, Tell

DROP_IN = "conf.d/90-vgpu.toml"  # beside config.toml: the folder that containerd's own default imports, since 2.2
_ANSWER_S = 30
_RESTART = "containerd reads it when it starts: systemctl restart containerd; containers live on"


def run(edit: Edit, prefix: str, *, program: str, verify: bool, drop_in: bool, as_json: bool) -> int:
    """The command. program: the containerd to ask. Returns 0, or configure.WOULD_CHANGE."""
    tell = configure.quiet if as_json else configure.say
    return configure.finish(do(edit, prefix, program, tell, verify=verify, drop_in=drop_in), as_json=as_json)


def do(
    edit: Edit, prefix: str, program: str, tell: Tell, *, verify: bool = False, drop_in: bool = False
) -> dict[str, Any]:
    """containerd, as `edit` wants it; see configure.do. drop_in: in a file of our own, which `edit.path` imports."""
    if not edit.undo:
        _require_kept(edit.path, program)
    change = _plan_drop_in(edit, prefix, program) if drop_in else configure.plan(edit, prefix)
    result = configure.begin(change, edit)
    if not drop_in and change.needed and not edit.undo:
        _require_seen(change, program)
    if edit.dry_run:
        configure.show(change, edit, result, tell)
        return result
    if change.needed:
        configure.write(change, edit)
    if drop_in and change.needed:
        _require_merged(edit, change, program)
    tell(f"{change.file.path}: {'changed' if change.needed else configure.unchanged(edit)}")
    if verify:
        _verify(program, edit.path, change.launcher)
        reads = "reads" if change.launcher else "no longer reads"
        tell(f"{program} {reads} the runtime handler {RUNTIME} there")
    if change.needed:
        result["advice"] = [_RESTART]
    return {**result, "launcher": change.launcher, "verified": verify}


def _require_kept(path: str, program: str) -> None:
    """Raises VGPU-CFG-011 for a file that a distribution of Kubernetes writes anew at each start, or that nobody reads
    as the host's containerd is such a distribution's own."""
    folder, name = os.path.split(os.path.realpath(path))
    for engine, made in k3s.FILES.items():
        remedy = f"vgpu configure {engine}"
        if folder.endswith(os.path.dirname(made).removeprefix("/var/lib")):
            written = f"{path} is made by {engine} when it starts, from a template"
            raise HostError("VGPU-CFG-011", written, remedy=f"{remedy} --config {folder}/config.toml")
        alone = path == containerd.DEFAULT_PATH and not os.path.lexists(path) and os.path.lexists(made)
        if alone and shutil.which(program) is None:
            what = f"{path} would be read by nobody: the containerd of this host is {engine}'s own"
            raise HostError("VGPU-CFG-011", what, remedy=remedy)
    if "/microk8s/" in folder and name == "containerd.toml":
        template = f"{folder}/containerd-template.toml"
        what = f"{path} is made by MicroK8s when it starts, from {template}"
        raise HostError("VGPU-CFG-011", what, remedy=f"vgpu configure containerd --config {template}")


def _plan_drop_in(edit: Edit, prefix: str, program: str) -> Change:
    """Reads what containerd makes of its files. Raises VGPU-CFG-001, -003 and -004."""
    file = files.read(os.path.join(os.path.dirname(os.path.abspath(edit.path)), DROP_IN))
    before = files.decode(file)
    if edit.undo:
        return Change(file, before, None, None, undo=True)
    launcher = configure.launcher_in(prefix)
    main, dump = files.decode(files.read(edit.path)), _dump(program, edit.path)
    after = containerd.drop_in(main, dump, launcher, set_default=edit.set_default, path=edit.path)
    return Change(file, before, after, launcher, undo=False)


def _require_merged(edit: Edit, change: Change, program: str) -> None:
    """After a drop-in was written or taken away: it goes again if containerd does not read it, or nothing beside it."""
    if edit.undo:
        return
    try:
        dump = _dump(program, edit.path)
        seen = containerd.find(dump).launcher == change.launcher
        there = containerd.handlers(dump)
        without = containerd.handlers(_parsed_without(edit, program, change))
        changed = [name for name, table in without.items() if name != RUNTIME and there.get(name) != table]
        if seen and not changed:
            return
        what = f"changes other handlers ({', '.join(sorted(changed))})" if changed else "is not read"
    except HostError as error:
        what = f"cannot be read: {error}"
    _put_back(change)
    raise HostError(
        "VGPU-CFG-009",
        f"{change.file.path} {what}, and was taken away again",
        remedy=f"have {edit.path} import conf.d/*.toml, with containerd 2.1 or newer; or leave --drop-in out",
    )


def _parsed_without(edit: Edit, program: str, change: Change) -> str:
    """What containerd would have without the drop-in: it is moved out of the way of the pattern for a moment."""
    aside = f"{change.file.target}.vgpu-aside"
    os.rename(change.file.target, aside)
    try:
        return _dump(program, edit.path)
    finally:
        os.rename(aside, change.file.target)


def _put_back(change: Change) -> None:
    now = files.read(change.file.path)
    if change.file.data is None:
        files.remove(now)
    else:
        files.replace(now, change.file.data)


def _require_seen(change: Change, program: str) -> None:
    """A file that imports others is tried beside itself first. Raises VGPU-CFG-009 if the handler would be hidden; not
    if there is no containerd to ask."""
    text = change.after or ""
    if not containerd.imports(text, change.file.path) or shutil.which(program) is None:
        return
    folder, name = os.path.split(change.file.target)
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=f".{name}.", suffix=".vgpu-trial") as trial:
        trial.write(text)
        trial.flush()
        seen = containerd.find(_dump(program, trial.name)).launcher
    if seen != change.launcher:
        raise HostError(
            "VGPU-CFG-009",
            f"{program} would not see the handler {RUNTIME} in {change.file.path}: a file that it imports has a table "
            "of the same plugin, which replaces it",
            remedy="name that file instead, with --config; or use containerd 2.1 or newer",
        )


def _dump(program: str, path: str) -> str:
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
    return done.stdout


def _verify(program: str, path: str, launcher: str | None) -> None:
    """Raises VGPU-CFG-004."""
    found = containerd.find(_dump(program, path), f"{program} config dump").launcher
    if found != launcher:
        what = f"{program} has the runtime handler {RUNTIME} at {shown(found)} after reading {path}"
        raise HostError("VGPU-CFG-004", what, remedy="see which other files it imports: containerd config dump")
