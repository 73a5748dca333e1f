"""vgpu grant: a part of the GPUs for a user's rootless engines. What it means is in oci_hook/rootless.py."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oci_hook import audit, ledger, neighbours, placement, request, rootless, standing
from oci_hook.errors import HostError, PlacementError, RequestError, shown
from oci_hook.policy import mib
from oci_hook.records import GRANT, Policy, Reservation, Slice
from oci_hook.shim import inventory_now
from oci_hook.values import replace
from vgpu import output, users
from vgpu.config import load
from vgpu.users import User

COLUMNS = ("USER", "UID", "GPU", "MEMORY", "CORES", "GIVEN OUT")
_NEVER = (1 << 63) - 1  # a grant ends when it is revoked
_LEFT = "end them first, as that user: podman rm --all --force; or use --force: they run on, and nobody counts them"


def give(config: str, user: str, settings: dict[str, str], *, force: bool, as_json: bool) -> None:
    """Grants, or puts a new grant in the place of the old. settings: "memory", "cores", "devices" and "count", as the
    labels have them.

    Raises RequestError for what cannot be read, PlacementError VGPU-PLC-001 if there is no room, and VGPU-PLC-007 if
    more than that is in use (unless `force`).
    """
    policy = _as_root(config)
    uid = _uid(user)
    asked = request.parse({f"vgpu.{name}": text for name, text in settings.items()}, {}, (), ("annotation",))
    if asked is None:
        raise RequestError("VGPU-REQ-003", "a grant without --memory", remedy=f"vgpu grant {user} --memory 16GiB")
    have = inventory_now(policy)
    with ledger.Ledger(policy.state_dir) as book:
        host = standing.timed(policy)
        before = rootless.granted(host).get(uid, ())
        others = replace(host, reservations=tuple(item for item in host.reservations if item not in before))
        if before and "devices" not in settings and len(before) == len(asked.asks):
            asked = replace(asked, devices=tuple(part.uuid for part in before))  # its containers are there
        placed = placement.place(asked, have.gpus, [one for one in book.entries() if ledger.alive(one)], policy, others)
        if not placed.slices:
            raise placement.refusal(placed)
        parts = tuple(
            Reservation(f"{GRANT}{uid}", part.uuid, part.memory_bytes, part.cores_percent, _NEVER)
            for part in placed.slices
        )
        _require_enough(policy, uid, parts, force=force)
        standing.save(policy, replace(others, reservations=(*others.reservations, *parts)))
        make_folder(policy, uid)
        keep_time(policy, uid, parts)
        audit.append(policy.log_dir, "grant", f"{GRANT}{uid}", seq=book.tick(), parts=parts, before=before)
    _say(policy, uid, f"granted to {users.name_of(uid)}, whose rootless engines can give it out now", as_json=as_json)


def revoke(config: str, user: str, *, force: bool, as_json: bool) -> None:
    """Raises PlacementError VGPU-PLC-004 if there is no grant, VGPU-PLC-007 if it is in use (unless `force`)."""
    policy = _as_root(config)
    uid = _uid(user)
    with ledger.Ledger(policy.state_dir) as book:
        host = standing.timed(policy)
        before = rootless.granted(host).get(uid)
        if before is None:
            what = f"user {shown(user)} has no grant"
            raise PlacementError("VGPU-PLC-004", what, remedy="look at `vgpu grant --list`")
        _require_enough(policy, uid, (), force=force)
        kept = tuple(item for item in host.reservations if item not in before)
        standing.save(policy, replace(host, reservations=kept))
        keep_time(policy, uid, ())
        if not any(users.running(_user(policy, uid, ()))):  # else their ends are written down there
            shutil.rmtree(rootless.folder(policy.state_dir, uid), ignore_errors=True)
        audit.append(policy.log_dir, "revoke", f"{GRANT}{uid}", seq=book.tick(), before=before)
    _say(policy, uid, f"{users.name_of(uid)} has no grant any more", as_json=as_json)


def show(config: str, *, as_json: bool) -> None:
    """All grants; for a user who is not root, their own."""
    policy = load(config)
    found = users.grants(policy)
    if policy.grant is not None:
        found = [users.describe(User(policy.grant.uid, users.name_of(policy.grant.uid), policy))] * bool(
            policy.grant.parts
        )
    if as_json:
        output.emit_json({"grants": found})
        return
    output.table(COLUMNS, [_row(grant, gpu) for grant in found for gpu in grant["gpus"]])


def _row(grant: dict[str, Any], gpu: dict[str, Any]) -> tuple[str, ...]:
    cores = f"{gpu['cores_percent']} %" if gpu["cores_percent"] else "no limit"
    given = output.size(gpu["given_bytes"])
    return grant["user"], str(grant["uid"]), gpu["uuid"], output.size(gpu["memory_bytes"]), cores, given


def restore(policy: Policy) -> None:
    """What a boot has taken of the grants, which outlive it themselves. Raises HostError."""
    granted = rootless.granted(standing.load(policy))
    if not granted:
        return
    with ledger.Ledger(policy.state_dir):
        for uid, parts in granted.items():
            make_folder(policy, uid)
            keep_time(policy, uid, parts)


def make_folder(policy: Policy, uid: int) -> None:
    """The user's own, and nobody else's. Raises HostError VGPU-HOST-003."""
    path = rootless.folder(policy.state_dir, uid)
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        os.chmod(os.path.dirname(path), 0o755)  # whatever the umask
        if not os.path.isdir(path):
            os.mkdir(path, 0o700)
        os.chown(path, uid, _group(uid), follow_symlinks=False)
    except OSError as error:
        raise ledger.state_error(path, error) from error


def keep_time(policy: Policy, uid: int, parts: Sequence[Reservation]) -> None:
    """Lets root's containers that borrow idle time know whose it is: each GPU of the grant has a neighbour that never
    lends, a share file that is empty (vgw_share.h). Of an earlier grant nothing stays. The ledger's lock is held.

    Raises HostError VGPU-HOST-003.
    """
    folder = f"{policy.state_dir}/grants/{uid}"
    slices = [Slice(0, part.uuid, part.memory_bytes, part.cores_percent) for part in parts if part.cores_percent]
    try:
        shutil.rmtree(folder, ignore_errors=True)  # its links count as left behind by this
        if not slices:
            return
        os.makedirs(folder, 0o700)
        Path(folder, "share").touch(0o644)
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            neighbours.enter(policy.state_dir, opened, slices, b"")
        finally:
            os.close(opened)
    except OSError as error:
        raise ledger.state_error(folder, error) from error


def _group(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


def _as_root(config: str) -> Policy:
    policy = load(config)
    if policy.grant is not None:
        what = f"user {policy.grant.uid} wants to change grants, which are root's to give"
        raise HostError("VGPU-HOST-012", what, remedy="run it as root: sudo vgpu grant …")
    return policy


def _uid(user: str) -> int:
    """By name or number. Raises RequestError VGPU-REQ-006."""
    try:
        uid = int(user) if user.isascii() and user.isdecimal() and len(user) < 10 else pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError, UnicodeError):
        what = f"there is no user {shown(user)} on this host"
        raise RequestError("VGPU-REQ-006", what, remedy="name one that `getent passwd` shows, or a number") from None
    if uid == 0:
        what = "root needs no grant: its engines give out of the whole host"
        raise RequestError("VGPU-REQ-006", what, remedy="name the user whose rootless engine is to give slices")
    return uid


def _user(policy: Policy, uid: int, parts: tuple[Reservation, ...]) -> User:
    return User(uid, users.name_of(uid), rootless.within(policy, uid, parts, has_folder=True))


def _require_enough(policy: Policy, uid: int, parts: tuple[Reservation, ...], *, force: bool) -> None:
    """That what the user's containers have now is within `parts`. A start of theirs that is under way is not seen."""
    if force:
        return
    left = {part.uuid: (part.memory_bytes, part.cores_percent or 100) for part in parts}
    entries = list(users.running(_user(policy, uid, parts)))
    for uuid in {part.uuid for entry in entries for part in entry.placement.slices}:
        here = [part for entry in entries for part in entry.placement.slices if part.uuid == uuid]
        memory, cores = sum(part.memory_bytes for part in here), sum(part.cores_percent for part in here)
        most = left.get(uuid, (0, 0))
        if memory > most[0] or cores > most[1]:
            names = ", ".join(entry.id[:12] for entry in entries)
            raise PlacementError(
                "VGPU-PLC-007",
                f"user {uid}'s containers {names} have {mib(memory)} and {cores} % of GPU {uuid}, of which "
                f"{mib(most[0])} and {most[1]} % would be left",
                remedy=_LEFT,
            )


def _say(policy: Policy, uid: int, text: str, *, as_json: bool) -> None:
    found = [grant for grant in users.grants(policy) if grant["uid"] == uid]
    if as_json:
        output.emit_json({"uid": uid, "grant": found[0] if found else None})
        return
    for gpu in found[0]["gpus"] if found else ():
        cores = f", {gpu['cores_percent']} % of its time" if gpu["cores_percent"] else ""
        print(f"GPU {gpu['uuid']}: {output.size(gpu['memory_bytes'])}{cores}")
    print(output.printable(text))
