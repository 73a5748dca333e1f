"""Take out versions that nobody uses, or everything.

Engines' configurations go first, so that no engine names what is no longer there. While containers run that we started
the launcher stays, as it is by it that the engine ends them, and so does what their hooks and libraries are in.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oci_hook.errors import HostError, VgpuError
from oci_hook.records import Policy
from runtime_config import policy_file
from runtime_config.engines import LAUNCHER_NAME
from vgpu import configure
from vgpu.installer import config, engines, layout, tenants, version
from vgpu.installer.install import units
from vgpu.installer.layout import CURRENT, LINKS, PREVIOUS, Prefix, Version
from vgpu.output import message

STATE = (
    "lock",
    "turn",
    "inventory.json",
    "inventory.lock",
    "sim",
    "containers",
    "failures",
    "monitor",
    "gpus",
    "users",
    "grants",
)
LOG = ("audit.jsonl*", "audit.lock", "audit.lost", "standing.json")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `uninstall` is asked for. engine_files: engine -> its configuration file, if it is not the usual one."""

    engine_files: Mapping[str, str]
    units: str | None = None
    purge: bool = False
    force: bool = False
    dry_run: bool = False


def prune(prefix: Prefix, *, dry_run: bool) -> bool:
    """Removes the versions that are neither current nor previous and that no container uses; whether there are any."""
    found = tenants.find(prefix, _policy(prefix).state_dir)
    kept = (prefix.home(CURRENT), prefix.home(PREVIOUS))
    going: list[Version] = []
    for one in prefix.installed():
        users = tenants.using(found, one)
        if one.home not in kept and users:
            print(f"{one.name}: in use by {', '.join(user.shown() for user in users)}")
        elif one.home not in kept:
            going.append(one)
            print(f"{one.name}: {'would be removed' if dry_run else 'removed'}")
    if going and not dry_run:
        with prefix.locked():
            for one in going:
                version.remove(prefix, one)
    if not going:
        print(f"{prefix.path}: no version to remove")
    return bool(going)


def uninstall(prefix: Prefix, wanted: Wanted) -> bool:
    """Takes all out; whether there was anything. Raises VGPU-INST-003 while containers run, unless forced."""
    versions = prefix.installed()
    if not versions and not any(map(prefix.has, (CURRENT, *LINKS))):
        print(f"{prefix.path}: nothing of vgpu is installed there")
        return False
    policy = _policy(prefix)
    running = _running(prefix, policy)
    if running and not wanted.force:
        raise HostError(
            "VGPU-INST-003",
            f"{len(running)} containers that vgpu-runtime started are there: {', '.join(running)}",
            remedy="end and remove them first, or use --force: they run on, and the files that they need stay",
        )
    edits = engines.edits(prefix, wanted.engine_files, force=wanted.force)
    if wanted.dry_run:
        for _, change in edits:
            print(change.diff(), end="")
        print(f"{prefix.path}: {len(versions)} versions would be removed")
        return True
    for edit, change in edits:
        configure.write(change, edit)
        message(f"vgpu: {change.file.path}: the runtime is taken out; reload or restart the engine")
    with prefix.locked():
        version.clear_unfinished(prefix)
        _remove_units(prefix, wanted.units)
        _unlink(prefix, "bin")  # no container starts by us from now on
        if running := _running(prefix, policy):
            prefix.point("bin", LINKS["bin"])
            staying = _remove_unused(prefix, versions, policy)
            message(f"vgpu: {prefix.path} stays in part, for {', '.join(running)}")
            message(f"vgpu: when they have ended, take the rest out with {prefix.path}/bin/vgpu uninstall")
        else:
            staying = 0
            for link in (*LINKS, CURRENT, PREVIOUS):
                _unlink(prefix, link)
            for one in versions:
                version.remove(prefix, one)
            _remove_rest(prefix, policy, purge=wanted.purge)
    print(f"{prefix.path}: {len(versions) - staying} versions removed")
    return True


def _running(prefix: Prefix, policy: Policy) -> list[str]:
    """The containers that need us, as people know them."""
    found = tenants.find(prefix, policy.state_dir)
    others = tenants.started_by(f"{prefix.path}/bin/{LAUNCHER_NAME}") - {one.id for one in found}
    return [*(one.shown() for one in found), *(f"{one[:12]} (without a slice)" for one in sorted(others))]


def _policy(prefix: Prefix) -> Policy:
    """For the folders that it names. config.yaml may be gone or wrong; a compiled form is then as good."""
    try:
        return policy_file.read_policy(str(prefix.config), str(prefix.path))
    except VgpuError:
        from oci_hook import policy

        for one in prefix.installed():
            compiled = one.home / "etc/policy.json"
            if compiled.exists():
                return policy.load(str(compiled))
        return Policy(runtime="", prefix=str(prefix.path))


def _remove_units(prefix: Prefix, folder: str | None) -> None:
    current = prefix.home(CURRENT)
    if folder is None or current is None:
        return
    for name, text in units(prefix, current).items():
        placed = Path(folder, name)
        if placed.is_file() and placed.read_bytes() == text:  # an admin's own stays
            placed.unlink()
    layout.remove_empty(Path(folder))


def _unlink(prefix: Prefix, link: str) -> None:
    if prefix.has(link):
        (prefix.path / link).unlink()


def _remove_unused(prefix: Prefix, versions: Sequence[Version], policy: Policy) -> int:
    """Takes out the versions that no container stands on, but for the current one; how many stay."""
    found, staying = tenants.find(prefix, policy.state_dir), 0
    for one in versions:
        if one.home == prefix.home(CURRENT) or tenants.using(found, one):
            staying += 1
        else:
            version.remove(prefix, one)
    return staying


def _remove_rest(prefix: Prefix, policy: Policy, *, purge: bool) -> None:
    if not config.remove(prefix, purge=purge):
        message(f"vgpu: {prefix.config} is yours and stays; --purge takes it too")
    _remove_known(policy.state_dir, STATE)
    if purge:
        _remove_known(policy.log_dir, LOG)
    elif os.path.isdir(policy.log_dir):
        message(f"vgpu: {policy.log_dir} has the audit log and stays; --purge takes it too")
    for folder in (prefix.versions, prefix.path / "etc", prefix.path):
        layout.remove_empty(folder)


def _remove_known(folder: str, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for path in Path(folder).glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    layout.remove_empty(Path(folder))
