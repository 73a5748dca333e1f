"""Makes the folder of a version. It appears with one rename, complete, and what is in it is not written again, apart
from what follows from the admin's config.yaml: etc/policy.json and etc/launcher.conf."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from oci_hook import quota_file, records
from vgpu import __version__
from vgpu.installer import layout, source
from vgpu.installer.layout import Prefix, Version, refuse
from vgpu.installer.source import Item

# What this release can read of containers that another one started. A layout that changes so that the reader still
# understands the one before gets a second number here.
READS = {
    "ledger": [records.SCHEMA],
    "quota": [quota_file.QUOTA_VERSION],
    "usage": [quota_file.USAGE_VERSION],
}
_HOT, _CLI = "lib/vgpu/python/", "lib/vgpu/cli/"


@dataclass(frozen=True, slots=True)
class Made:
    """A version that is ready to be written. home: where it will be. items: all its files, compiled ones included."""

    home: Path
    items: tuple[Item, ...]
    manifest: bytes
    python: str


def make(prefix: Prefix, found: Sequence[Item], python: str, cli_python: str) -> Made:
    """Compiles; writes nothing into the prefix. python: of shim and hook, an absolute path free of links.

    Raises VGPU-INST-001.
    """
    tag, found = source.for_interpreter(python, found)
    home = prefix.versions / f"{__version__}-{source.build_id(found, python, tag, cli_python, str(prefix.path))}"
    command = f"exec {shlex.quote(cli_python)} -I {shlex.quote(f'{home}/{source.ENTRY}')}"
    items = [
        *found,
        *_compiled(found, home, python, _HOT),
        *_compiled(found, home, cli_python, _CLI),
        *(Item(name, f'#!/bin/sh\n{command} {first}"$@"\n'.encode(), 0o755) for name, first in source.COMMANDS.items()),
    ]
    files = {item.target: hashlib.sha256(item.data).hexdigest() for item in sorted(items, key=lambda item: item.target)}
    manifest = {"schema": layout.MANIFEST_SCHEMA, "version": __version__, "reads": READS, "files": files}
    return Made(home, tuple(items), f"{json.dumps(manifest, indent=1)}\n".encode(), python)


def _compiled(found: Sequence[Item], home: Path, python: str, below: str) -> Iterator[Item]:
    """The compiled form of the sources `below`, which is never checked against them: at a container's start that costs.

    python: the interpreter that will run them. The modules of shim and hook also come in one file each.
    """
    with tempfile.TemporaryDirectory(prefix="vgpu-install-") as stage:
        names = set()
        for item in found:
            if item.target.startswith(below) and item.target != source.PACKER:
                path = Path(stage, item.target.removeprefix(below))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(item.data)
                names.add(path)
        # without the column tables of tracebacks, a third of what is read at each start
        command = [python, "-I", "-X", "no_debug_ranges"]
        compiler = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
        target = f"{home}/{below}".removesuffix("/")
        _run([*command, *compiler, "-s", stage, "-p", target, stage])
        if below == _HOT:
            packer = next(item for item in found if item.target == source.PACKER)
            for part in source.PACKS:
                pack = _run([*command, "-S", "-E", "-", stage, target, part], packer.data)
                yield Item(f"{below}{part}.pack", pack)
        for path in sorted(Path(stage).rglob("*")):
            if path.is_file() and path not in names:
                yield Item(f"{below}{path.relative_to(stage)}", path.read_bytes())


def _run(command: Sequence[str], text: bytes = b"") -> bytes:
    done = subprocess.run(command, input=text, capture_output=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace")
        raise refuse(
            f"{command[0]} cannot compile vgpu's modules: {said}", "use an interpreter of version 3.11 or later"
        )
    return done.stdout


def missing(made: Made) -> list[Item]:
    """What is not in the version's folder, or not as it should be. Normally that is all, or nothing."""
    return [item for item in made.items if not _is_there(made.home / item.target, item)]


def _is_there(path: Path, item: Item) -> bool:
    try:
        return path.read_bytes() == item.data and path.stat().st_mode & 0o7777 == item.mode
    except OSError:
        return False


def write(prefix: Prefix, made: Made, derived: Sequence[Item]) -> None:
    """Makes the version's folder, or mends one that was damaged. derived: what follows from config.yaml."""
    config_link = made.home / "etc/config.yaml"
    if made.home.is_dir():
        for item in (*made.items, *derived, Item(layout.MANIFEST, made.manifest)):
            layout.put(made.home / item.target, item.data, item.mode)
        if not config_link.is_symlink():
            config_link.symlink_to("../../../etc/config.yaml")
        return
    layout.folder(prefix.versions)
    stage = Path(tempfile.mkdtemp(prefix=layout.UNFINISHED, dir=prefix.versions))
    try:
        for item in (*made.items, *derived, Item(layout.MANIFEST, made.manifest)):
            path = stage / item.target
            layout.folder(path.parent)
            path.write_bytes(item.data)
            path.chmod(item.mode)
        (stage / "etc/config.yaml").symlink_to("../../../etc/config.yaml")
        stage.chmod(0o755)
        os.sync()  # all of it is on the disk before anything names it
        os.rename(stage, made.home)
        layout.sync(prefix.versions)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def remove(prefix: Prefix, version: Version) -> None:
    """Takes a version away; it is no version any more from the first step on."""
    going = prefix.versions / f"{layout.UNFINISHED}gone-{version.name}"
    shutil.rmtree(going, ignore_errors=True)
    os.rename(version.home, going)
    shutil.rmtree(going)


def clear_unfinished(prefix: Prefix) -> None:
    """What an installer that was killed left. Only with the lock."""
    for folder in (prefix.path, prefix.path / "etc", prefix.versions):
        for path in folder.glob(f"{layout.UNFINISHED}*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
