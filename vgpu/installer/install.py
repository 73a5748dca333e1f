"""Install or upgrade, and roll back: make the version's folder, then let the links name it.

Whatever can be refused is refused before anything is written. The one step that counts is the rename of `current`:
killed before it, all is as it was, apart from a folder that nobody names; killed after it, the new version is in use.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oci_hook import inventory
from oci_hook.errors import shown
from oci_hook.records import Policy
from vgpu.installer import config, layout, tenants, version
from vgpu.installer.config import Settings
from vgpu.installer.layout import CURRENT, LINKS, PREVIOUS, Prefix, Version, refuse
from vgpu.installer.source import Item
from vgpu.output import message

HOT_PYTHON = "/usr/bin/python3"  # of the system: there before any virtual environment, and no user can replace it


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `install` is asked for. units: the folder for systemd's units, None: nowhere."""

    settings: Settings
    python: str = HOT_PYTHON
    cli_python: str = HOT_PYTHON
    units: str | None = None
    force: bool = False
    dry_run: bool = False
    upgrade: bool = False


def install(prefix: Prefix, found: Sequence[Item], wanted: Wanted) -> bool:
    """Installs `found` and makes it current; whether anything changed, or with dry_run would change."""
    if prefix.path.exists() and not prefix.path.is_dir():
        raise refuse(f"{prefix.path} is no folder", "remove it, or choose another --prefix")
    before = prefix.current()
    if wanted.upgrade and before is None:
        raise refuse(f"nothing of vgpu is installed in {prefix.path}", "vgpu install, or name its --prefix")
    prefix.require_room()
    python = os.path.realpath(wanted.python)
    made = version.make(prefix, found, python, wanted.cli_python)
    text = config.wanted(prefix, wanted.settings)
    policy, derived = config.derived(prefix, made.home, text, python)
    _check_tenants(prefix, policy, made.home.name, version.READS, force=wanted.force)
    missing = version.missing(made)
    changes = bool(missing or text is not None or prefix.home(CURRENT) != made.home)
    if wanted.dry_run:
        _say_plan(prefix, made, len(missing), text)
        return changes
    with prefix.locked():
        version.clear_unfinished(prefix)
        version.write(prefix, made, derived)
        config.write(prefix, text)
        switched = switch(prefix, made.home)
        _put_units(prefix, made.home, wanted.units)
    if not switched and not missing:
        print(f"{prefix.path}: {made.home.name} is installed and in use already")
        return changes
    print(f"{prefix.path}: {made.home.name} is in use{_instead_of(before, made.home)}; {len(missing)} files written")
    _refresh(made.home, policy)
    return changes


def _instead_of(before: Version | None, home: Path) -> str:
    return f", {before.name} before" if before is not None and before.home != home else ""


def rollback(prefix: Prefix, *, to: str | None, force: bool, dry_run: bool) -> bool:
    """Back to the version that was in use before, or the one named `to`; whether that changes anything."""
    before = prefix.current()
    target = prefix.previous() if to is None else _named(prefix, to)
    if before is None or target is None:
        remedy = "vgpu versions shows what is there; name one with --to"
        raise refuse(f"there is no version in {prefix.path} to go back to", remedy)
    if target.home == before.home:
        print(f"{prefix.path}: {target.name} is in use already")
        return False
    damaged = [name for name in target.files if not (target.home / name).is_file()]
    if damaged:
        raise refuse(f"{target.home} is not complete: {damaged[0]} is missing", "install that version again")
    policy = _policy_of(prefix)
    _check_tenants(prefix, policy, target.name, target.reads, force=force)
    if dry_run:
        print(f"{prefix.path}: {target.name} would be in use instead of {before.name}")
        return True
    with prefix.locked():
        version.clear_unfinished(prefix)
        _have_it_compile(target)
        switch(prefix, target.home)
    print(f"{prefix.path}: {target.name} is in use, {before.name} before")
    _refresh(target.home, policy)
    return True


def _named(prefix: Prefix, name: str) -> Version:
    found = [one for one in prefix.installed() if one.name.startswith(name)]
    exact = [one for one in found if one.name == name] or found
    if len(exact) != 1:
        what = "no installed version is" if not exact else f"{len(exact)} installed versions are"
        raise refuse(f"{what} named {shown(name)}", "vgpu versions shows what is there")
    return exact[0]


def switch(prefix: Prefix, home: Path) -> bool:
    """Makes `home` current. New containers get it from the rename on; False if it was current."""
    layout.folder(prefix.path / "etc")
    old = prefix.home(CURRENT)
    if old is not None and old != home:
        prefix.point(PREVIOUS, f"versions/{old.name}")
    changed = prefix.point(CURRENT, f"versions/{home.name}")
    for link, target in LINKS.items():
        changed = prefix.point(link, target) or changed
    return changed


def _policy_of(prefix: Prefix) -> Policy:
    from runtime_config import policy_file

    return policy_file.read_policy(str(prefix.config), str(prefix.path))


def _check_tenants(prefix: Prefix, policy: Policy, name: str, reads: dict[str, list[int]], *, force: bool) -> None:
    found = tenants.find(prefix, policy.state_dir)
    for line in tenants.require_readable(found, name, reads, force=force):
        message(f"vgpu: {name} cannot manage {line}")


def _have_it_compile(target: Version) -> None:
    """An older version's policy.json is of the day when it was replaced; the caps that hold now are in config.yaml."""
    program = target.home / "bin/vgpu"
    settings = {"PATH": os.environ.get("PATH", os.defpath), "VGPU_CONFIG": str(target.home / "etc/config.yaml")}
    done = subprocess.run([program, "config", "apply"], env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        said = shown(done.stderr.strip().rpartition("\n")[2], 300)
        raise refuse(
            f"{target.name} cannot use config.yaml: {said}",
            "mend config.yaml so that it can, or stay",
            code="VGPU-INST-002",
        )


def _refresh(home: Path, policy: Policy) -> None:
    """The inventory names the version's own libraries. If this fails, the first container's start does it."""
    if not os.path.exists(inventory.path(policy)):
        return
    settings = {"PATH": os.environ.get("PATH", os.defpath), "VGPU_CONFIG": str(home / "etc/config.yaml")}
    command = [str(home / "bin/vgpu"), "inventory", "--refresh"]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        message(f"vgpu: the inventory could not be made anew: {shown(done.stderr.strip().rpartition(chr(10))[2], 300)}")


def _say_plan(prefix: Prefix, made: version.Made, missing: int, text: str | None) -> None:
    current = prefix.home(CURRENT)
    if missing:
        print(f"{made.home}: {missing} of {len(made.items)} files would be written")
    if text is not None:
        print(f"{prefix.config}: would be {'written anew' if prefix.config.exists() else 'made'}")
    if current != made.home:
        print(f"{prefix.path}: {made.home.name} would be in use instead of {current.name if current else 'nothing'}")
    elif not missing and text is None:
        print(f"{prefix.path}: nothing to do: {made.home.name} is in use")


def units(prefix: Prefix, home: Path) -> dict[str, bytes]:
    """systemd's units of the version in `home`: name -> content, for this prefix."""
    ours, system = str(prefix.path).encode(), layout.SYSTEM_PREFIX.encode()
    found = sorted((home / "share/systemd").glob("*.service"))
    return {unit.name: unit.read_bytes().replace(system, ours) for unit in found}


def _put_units(prefix: Prefix, home: Path, folder: str | None) -> None:
    """systemd's units are put where it looks, and neither enabled nor started."""
    if folder is None:
        return
    changed = [layout.put(Path(folder, name), text) for name, text in units(prefix, home).items()]
    if any(changed) and shutil.which("systemctl") and os.path.isdir("/run/systemd/system"):
        message("vgpu: systemd's units changed: systemctl daemon-reload && systemctl try-restart 'vgpu-*'")


def unit_folder(prefix: Prefix, given: str | None) -> str | None:
    """Where the units go. given: "none" for nowhere; None: systemd's folder for what no package brought, but only for
    the system's own prefix: units of two prefixes would have one name."""
    if given is not None:
        return None if given == "none" else os.path.abspath(given)
    system = str(prefix.path) == layout.SYSTEM_PREFIX and os.path.isdir("/etc/systemd/system")
    return "/usr/local/lib/systemd/system" if system else None
