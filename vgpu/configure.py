"""vgpu configure docker: put the runtime into daemon.json, or take it out, and see that dockerd has noticed."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from typing import Any

from oci_hook.errors import HostError
from runtime_config import files
from runtime_config.engines import docker
from runtime_config.files import ConfigFile
from vgpu import output

WOULD_CHANGE = 2


@dataclass(frozen=True, slots=True)
class Edit:
    """What is to be done with the file at `path`. dry_run: only show it."""

    path: str
    undo: bool = False
    set_default: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Engine:
    """The running daemon. host: as docker -H. reload: have it read the file. verify: ask it for the runtime."""

    host: str
    reload: bool = False
    verify: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """A file's text before and after. after: None deletes it.

    launcher: the runtime's path afterwards, None: no runtime.
    drops_default: the running dockerd has vgpu as its default, and no key in the new file says otherwise.
    """

    file: ConfigFile
    before: str
    after: str | None
    launcher: str | None
    drops_default: bool

    @property
    def needed(self) -> bool:
        return bool(self.after) if self.file.data is None else self.after != self.before

    def diff(self) -> str:
        name = self.file.path
        lines = difflib.unified_diff(
            self.before.splitlines(keepends=True),
            (self.after or "").splitlines(keepends=True),
            name if self.file.data is not None else "/dev/null",
            name if self.after is not None else "/dev/null",
        )
        # as diff(1): a last line without its line end is said, not joined to the next
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def launcher_in(prefix: str) -> str:
    """The launcher of the installation in `prefix`. Raises VGPU-CFG-003 where there is none: Docker would not start."""
    path = os.path.join(os.path.abspath(prefix), "bin", docker.LAUNCHER_NAME)
    if not os.access(path, os.X_OK):
        remedy = "name the folder that vgpu is installed in with --prefix, or install it there"
        raise HostError("VGPU-CFG-003", f"there is no {path}", remedy=remedy)
    return path


def plan(edit: Edit, prefix: str) -> Change:
    """Reads the file, and its backup where that matters, and decides. Changes nothing. Raises VGPU-CFG-001 and -003."""
    file = files.read(edit.path)
    before = files.decode(file)
    if not edit.undo:
        launcher = launcher_in(prefix)
        after = docker.add(before, launcher, set_default=edit.set_default, path=file.path)
        return Change(file, before, after, launcher, drops_default=False)
    backup = files.read(file.backup_path)
    original = None if backup.data is None else files.decode(backup)
    undone = docker.remove(before, original, file.path)
    was, now = docker.find(before, file.path), docker.find(undone or "", file.path)
    return Change(file, before, undone, None, drops_default=was.is_default and now.default is None)


def write(change: Change, edit: Edit) -> None:
    """Makes the change, with a backup before the first; an undo that restores the original takes the backup away."""
    file = change.file
    if edit.undo:
        backup = files.read(file.backup_path)
        if change.after is None:
            files.remove(file)
        else:
            files.replace(file, change.after.encode())
        if backup.data is not None and backup.data == (change.after or "").encode():
            files.remove(backup)
        return
    assert change.after is not None
    backup_missing = not os.path.lexists(file.backup_path)
    if backup_missing or docker.find(change.before, file.path).launcher is None:
        files.keep_backup(file)
    os.makedirs(os.path.dirname(file.target), 0o755, exist_ok=True)
    files.replace(file, change.after.encode())


def run(edit: Edit, engine: Engine, prefix: str, *, as_json: bool) -> int:
    """The command. Returns the exit code: 0, or WOULD_CHANGE."""
    change = plan(edit, prefix)
    changed = change.needed
    result: dict[str, Any] = {"file": change.file.path, "changed": changed, "dry_run": edit.dry_run}
    if edit.dry_run:
        if as_json:
            output.emit_json({**result, "diff": change.diff()})
        elif changed:
            print(change.diff(), end="")
        else:
            print(f"{change.file.path}: {_unchanged(edit)}")
        return WOULD_CHANGE if changed else 0
    if changed:
        write(change, edit)
    reloaded = engine.reload and _reload(change, engine)
    if engine.verify:
        _verify(change, engine)
    if as_json:
        output.emit_json({**result, "launcher": change.launcher, "reloaded": reloaded, "verified": engine.verify})
        return 0
    print(f"{change.file.path}: {'changed' if changed else _unchanged(edit)}")
    if engine.verify:
        print(f"dockerd {'has no' if edit.undo else 'has the'} runtime {docker.RUNTIME}")
    elif changed:
        _say_what_next(change, edit)
    return 0


def _unchanged(edit: Edit) -> str:
    return f"nothing to do: the runtime {docker.RUNTIME} {'is not there' if edit.undo else 'is there already'}"


def _reload(change: Change, engine: Engine) -> bool:
    from vgpu import engine_docker

    if change.drops_default and change.needed:
        # dockerd keeps a default runtime whose key is gone: tell it runc first, then give the file its last form
        final = files.read(change.file.path)
        files.replace(final, docker.with_default(change.after or "", "runc", change.file.path).encode())
        try:
            engine_docker.reload(engine.host)
            engine_docker.wait_for_default(engine.host, "runc")
        finally:
            interim = files.read(change.file.path)
            if final.data is None:
                files.remove(interim)
            else:
                files.replace(interim, final.data)
    engine_docker.reload(engine.host)
    return True


def _verify(change: Change, engine: Engine) -> None:
    from vgpu import engine_docker

    engine_docker.verify(engine.host, docker.RUNTIME, change.launcher, wait=engine.reload)


def _say_what_next(change: Change, edit: Edit) -> None:
    if change.drops_default:
        output.message("vgpu: dockerd keeps vgpu as its default runtime until it restarts: systemctl restart docker")
    else:
        output.message("vgpu: dockerd reads it at its next reload: systemctl reload docker (or run this with --reload)")
    if edit.undo:
        output.message("vgpu: containers that were created with the runtime vgpu can no longer start")
