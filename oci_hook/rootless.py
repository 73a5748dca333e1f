"""Engines that a user runs without root's rights, and the grant that their slices are taken out of.

What is given out is counted for the whole host in root's ledger, which a user must not write. So root grants a user a
part of the GPUs (`vgpu grant`): a reservation in the host's standing.json that no container can claim. Root's own
starts count it like any other. Out of the grant the user's engines give slices by the same code, as if it were the
whole host: their GPUs have the granted memory and cores, and the ledger is the user's own, <state>/users/<uid>.

Within the grant the user is the admin: their files hold their own containers to their slices, not the user. Loaded only
where the installation is root's and this process is not.
"""

from __future__ import annotations

import os

from oci_hook import inventory, standing
from oci_hook.errors import HostError
from oci_hook.records import GRANT, Grant, Host, Inventory, Policy, Reservation
from oci_hook.values import TYPE_CHECKING, replace

if TYPE_CHECKING:
    from collections.abc import Iterator

_OVERFLOW = 65534  # how the kernel shows an owner who has no number in this user namespace


def as_user(policy: Policy) -> Policy:
    """`policy` on behalf of the user that this process belongs to. Without a grant it is as it was, but for `grant`.

    Raises HostError VGPU-HOST-010 if it cannot be known what was granted.
    """
    uid = host_uid()
    return within(
        policy, uid, _parts(standing.of_host(policy), uid), has_folder=_is_ours(folder(policy.state_dir, uid))
    )


def within(policy: Policy, uid: int, parts: tuple[Reservation, ...], *, has_folder: bool) -> Policy:
    """The host's `policy`, narrowed to what the user `uid` was granted. has_folder: there may be containers in it
    still, though the grant was revoked.
    """
    grant = Grant(uid, policy.state_dir, policy.log_dir, parts)
    if not parts and not has_folder:
        return replace(policy, grant=grant)
    home = folder(policy.state_dir, uid)
    cores = max((part.cores_percent or 100 for part in parts), default=100)
    return replace(
        policy,
        grant=grant,
        state_dir=home,
        log_dir=f"{home}/log",
        # more than there is was given out once already, by the grant
        overcommit_memory=1.0,
        overcommit_cores=1.0,
        # a container without a limit would take more than the grant has
        max_cores_percent=min(policy.max_cores_percent, cores),
        # those outside of the grant cannot be seen, so time that they leave idle cannot be borrowed
        burst="hard" if cores < 100 else policy.burst,
    )


def folder(state_dir: str, uid: int) -> str:
    """The user's state folder. state_dir: the host's."""
    return f"{state_dir}/users/{uid}"


def folders(state_dir: str) -> list[str]:
    """All users' state folders, those of revoked grants among them."""
    try:
        return sorted(folder(state_dir, int(name)) for name in os.listdir(f"{state_dir}/users") if name.isdecimal())
    except FileNotFoundError:
        return []


def granted(host: Host) -> dict[int, tuple[Reservation, ...]]:
    """uid -> parts of the grant, of all users."""
    names = {item.name for item in host.reservations if item.name.startswith(GRANT)}
    uids = sorted(int(name[len(GRANT) :]) for name in names)
    return {uid: _parts(host, uid) for uid in uids}


def _parts(host: Host, uid: int) -> tuple[Reservation, ...]:
    return tuple(item for item in host.reservations if item.name == f"{GRANT}{uid}")


def inventory_now(policy: Policy, grant: Grant) -> Inventory:
    """What the user's GPUs are. Raises HostError: VGPU-HOST-012 without a grant, VGPU-HOST-002 if root has to look at
    the host again.
    """
    if not grant.parts:
        raise HostError(
            "VGPU-HOST-012",
            f"this engine is user {grant.uid}'s, who has no grant: slices are counted for the whole host, by root",
            remedy=f"have root grant a part of the GPUs: sudo {policy.vgpu_command} grant {grant.uid} --memory 8GiB",
        )
    try:
        found = inventory.load(policy)
    except HostError as error:
        raise HostError(error.code, str(error), remedy=_refresh(policy)) from error
    if not _is_ours(policy.state_dir):
        raise HostError(
            "VGPU-HOST-012",
            f"user {grant.uid} has a grant, but no folder {policy.state_dir} yet: root makes it after each boot",
            remedy=_refresh(policy),
        )
    return found


def _refresh(policy: Policy) -> str:
    return f"sudo {policy.vgpu_command} inventory --refresh"


def narrowed(found: Inventory, grant: Grant) -> Inventory:
    """The host's inventory with the granted GPUs alone, each with what was granted of it. The device files stay: those
    of others' GPUs have to be known to be taken out of a container.
    """
    parts = {part.uuid: part for part in grant.parts}
    gpus = tuple(
        replace(gpu, memory_bytes=parts[gpu.uuid].memory_bytes, cores_percent=parts[gpu.uuid].cores_percent or 100)
        for gpu in found.gpus
        if gpu.uuid in parts
    )
    return replace(found, gpus=gpus)


def _is_ours(path: str) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return found.st_mode & 0o170000 == 0o040000 and found.st_uid == os.geteuid()


def host_uid() -> int:
    """Who we are outside of this user namespace. In one within another it is a number of that one, and the folder of
    that number is not ours: then there is no grant.
    """
    mine = os.geteuid()
    for inside, outside, count in _uid_map():
        if inside <= mine < inside + count:
            return outside + mine - inside
    return mine


def is_hosts_root(uid: int) -> bool:
    """Whether an owner that shows as `uid` can be the host's root, who has no number in a rootless engine's namespace.

    Nor have other users; but the files that we ask this of lie where root has put vgpu, and no other can write there.
    """
    return uid == _OVERFLOW and all(outside for _, outside, _ in _uid_map())


def _uid_map() -> Iterator[tuple[int, int, int]]:
    """(first uid inside, first uid outside, how many)."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            for line in file:
                inside, outside, count = map(int, line.split())
                yield inside, outside, count
    except OSError:
        return  # a kernel without user namespaces
