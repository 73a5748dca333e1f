"""vgpu configure: put the runtime into an engine's configuration, or take it out, and see that the engine noticed."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from oci_hook.errors import HostError
from runtime_config import files
from runtime_config.engines import LAUNCHER_NAME, RUNTIME, docker
from runtime_config.files import ConfigFile
from vgpu import docker_process, docker_users, engine_docker, output

WOULD_CHANGE = 2
Tell = Callable[[str], None]


class Found(Protocol):
    """What an engine's configuration says of us."""

    @property
    def launcher(self) -> str | None: ...
    @property
    def is_default(self) -> bool: ...


class Editor(Protocol):
    """A module of runtime_config.engines: text in, text out."""

    def find(self, text: str, path: str = ...) -> Found: ...
    def add(self, text: str, launcher: str, *, set_default: bool = ..., path: str = ...) -> str: ...
    def remove(self, text: str, original: str | None, path: str = ...) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Edit:
    """What is to be done with the file at `path`, by the engine's `editor`.

    dry_run: only show it. force: an undo although containers still need the runtime.
    """

    path: str
    editor: Editor = docker
    undo: bool = False
    set_default: bool = False
    dry_run: bool = False
    force: bool = False


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
    undo: the running dockerd may still have what is no longer in the file. was_default: it had vgpu as its default.
    """

    file: ConfigFile
    before: str
    after: str | None
    launcher: str | None
    undo: bool
    was_default: bool = False

    @property
    def needed(self) -> bool:
        return bool(self.after) if self.file.data is None else self.after != self.before

    @property
    def needs_outspoken_reload(self) -> bool:
        """Also when the file was undone before: dockerd may not know yet."""
        return self.undo and self.outspoken() != (self.after or "")

    def outspoken(self) -> str:
        """The text after, for a dockerd that has to be told in words what is gone."""
        path = self.file.path
        return docker.outspoken(self.after or "", path, default=not docker_process.default_is_a_flag(path))

    def diff(self) -> str:
        return difference(self.file, self.before, self.after)


def difference(file: ConfigFile, before: str, after: str | None) -> str:
    """As `diff -u` shows it. after: None for no file."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        (after or "").splitlines(keepends=True),
        file.path if file.data is not None else "/dev/null",
        file.path if after is not None else "/dev/null",
    )
    # as diff(1): a last line without its line end is said, not joined to the next
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def launcher_in(prefix: str) -> str:
    """The launcher of the installation in `prefix`. Raises VGPU-CFG-003 if there is none: no container would start."""
    path = os.path.join(os.path.abspath(prefix), "bin", LAUNCHER_NAME)
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
        after = edit.editor.add(before, launcher, set_default=edit.set_default, path=file.path)
        return Change(file, before, after, launcher, undo=False)
    backup = files.read(file.backup_path)
    original = None if backup.data is None else files.decode(backup)
    undone = edit.editor.remove(before, original, file.path)
    was_default = edit.editor.find(before, file.path).is_default
    return Change(file, before, undone, None, undo=True, was_default=was_default)


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
    if backup_missing or edit.editor.find(change.before, file.path).launcher is None:
        files.keep_backup(file)
    os.makedirs(os.path.dirname(file.target), 0o755, exist_ok=True)
    files.replace(file, change.after.encode())


def run(edit: Edit, engine: Engine, prefix: str, *, as_json: bool) -> int:
    """The command. Returns the exit code: 0, or WOULD_CHANGE."""
    return finish(do(edit, engine, prefix, quiet if as_json else say), as_json=as_json)


def do(edit: Edit, engine: Engine, prefix: str, tell: Tell) -> dict[str, Any]:
    """Docker, as `edit` wants it; what was done, as `--json` shows it. tell: called with each line for people."""
    change = plan(edit, prefix)
    result = begin(change, edit)
    _check(change, edit, engine)
    if edit.dry_run:
        show(change, edit, result, tell)
        return result
    if change.needed:
        write(change, edit)
    tell(f"{change.file.path}: {'changed' if change.needed else unchanged(edit)}")
    if engine.reload:
        _reload(change, engine)
    if engine.verify:
        engine_docker.verify(engine.host, RUNTIME, change.launcher, wait=engine.reload)
        tell(f"dockerd {'no longer has' if edit.undo else 'has'} the runtime {RUNTIME}")
    elif change.needed:
        result["advice"] = _what_next(change, edit)
    return {**result, "launcher": change.launcher, "reloaded": engine.reload, "verified": engine.verify}


def _check(change: Change, edit: Edit, engine: Engine) -> None:
    """What only the daemon knows. Raises VGPU-CFG-006 to -008; nothing has been written then."""
    path = change.file.path
    if change.needed and not edit.undo:
        docker_process.require_no_conflict(change.after or "", path, change.launcher or "")
        docker_process.require_valid(change.after or "", change.before, path)
    if change.needed and edit.undo and not edit.force:
        docker_users.require_none(engine.host, path, change.before)


def say(line: str) -> None:
    """For people, at once: what follows may take a while, or fail."""
    print(line, flush=True)


def quiet(line: str) -> None:
    """For programs, which get one object at the end."""


def begin(change: Change, edit: Edit) -> dict[str, Any]:
    return {"file": change.file.path, "changed": change.needed, "dry_run": edit.dry_run}


def finish(result: dict[str, Any], *, as_json: bool) -> int:
    """Shows what `do` has done; its exit code."""
    advice: list[str] = result.pop("advice", [])
    if as_json:
        output.emit_json(result)
    else:
        for line in advice:
            output.message(f"vgpu: {line}")
    return WOULD_CHANGE if result["dry_run"] and result["changed"] else 0


def show(change: Change, edit: Edit, result: dict[str, Any], tell: Tell) -> None:
    """The change as a diff, to people and in `result`."""
    result["diff"] = change.diff()
    tell(change.diff().removesuffix("\n") if change.needed else f"{change.file.path}: {unchanged(edit)}")


def unchanged(edit: Edit) -> str:
    return f"nothing to do: the runtime {RUNTIME} {'is not there' if edit.undo else 'is there already'}"


def _reload(change: Change, engine: Engine) -> None:
    """Has dockerd read the file; where keys went, first one that says in so many words that they are gone."""
    if not change.needs_outspoken_reload:
        engine_docker.reload(engine.host)
        return
    final = files.read(change.file.path)
    files.replace(final, change.outspoken().encode())
    try:
        engine_docker.reload(engine.host)
        engine_docker.verify(engine.host, RUNTIME, None, wait=True)
    finally:
        interim = files.read(change.file.path)
        if final.data is None:
            files.remove(interim)
        else:
            files.replace(interim, final.data)


def _what_next(change: Change, edit: Edit) -> list[str]:
    if change.was_default and change.needs_outspoken_reload:
        first = (
            "do not reload dockerd as it is, 20.10 crashes when its default runtime is gone: "
            "run vgpu configure docker --undo --reload, or restart it"
        )
    elif change.needs_outspoken_reload:
        first = "dockerd forgets it when it restarts, or at once with vgpu configure docker --undo --reload"
    else:
        first = "dockerd reads it at its next reload: systemctl reload docker, or run this with --reload"
    return [first] + (["containers that were created with the runtime vgpu can no longer start"] if edit.undo else [])
