"""Users with a grant, as root sees them: their folders below <state>/users, which are theirs and may hold anything."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from oci_hook import ledger, rootless, standing
from oci_hook.errors import HostError, VgpuError
from oci_hook.records import Allocation, Policy, Reservation, Slice
from vgpu import output

_MOST = 1000  # containers of one user that are looked at
_MOST_GPUS = 16
_ALL_NUMBERS = (1 << 32) - 1  # a user namespace of so many users is the host's own


@dataclass(frozen=True, slots=True)
class User:
    """policy: the host's, as it is for this user."""

    uid: int
    name: str
    policy: Policy

    @property
    def parts(self) -> tuple[Reservation, ...]:
        """What was granted, one part a GPU; none: it was revoked, and there may be containers still."""
        return self.policy.grant.parts if self.policy.grant else ()


def name_of(uid: int) -> str:
    """As the host calls the user, else the number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def shown(user: str | None, name: str) -> str:
    """A container's name, with the user's before it if it is a rootless engine's."""
    return name if user is None else f"{user}: {name}" if name else user


def _say(error: HostError) -> None:
    output.message(error.line())


def every(policy: Policy, tell: Callable[[HostError], None] = _say) -> list[User]:
    """All that have a grant, or a folder still. None, if `policy` is a user's own. tell: is given what is wrong with
    the list of grants, if it cannot be read; who looks at a host that has a fault must see the rest.
    """
    if policy.grant is not None:
        return []
    granted: dict[int, tuple[Reservation, ...]] = {}
    try:
        granted = rootless.granted(standing.load(policy))
    except HostError as error:
        tell(error)
    found = []
    with_folder = (int(os.path.basename(path)) for path in rootless.folders(policy.state_dir))
    for uid in sorted({*granted, *with_folder}):
        narrow = rootless.within(policy, uid, granted.get(uid, ()), has_folder=True)
        found.append(User(uid, name_of(uid), narrow))
    return found


def names(user: User) -> list[str]:
    """Ids of the user's containers. Links are not followed: they could make root's containers look like the user's."""
    top = f"{user.policy.state_dir}/containers"
    try:
        if os.path.islink(top):
            return []
        with os.scandir(top) as found:
            ids = [item.name for item in found if ledger.is_id(item.name) and item.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError(
            "VGPU-HOST-003", f"{top} cannot be read (errno {error.errno})", remedy="run it as root"
        ) from None
    return sorted(ids)[:_MOST]


def read(user: User, container: str) -> Allocation | None:
    """As ledger.read, of an entry that nobody vouches for. Raises HostError VGPU-HOST-003 if it cannot be one."""
    found = ledger.read(user.policy.state_dir, container)
    if found is not None and not (_is_sane(found) and _is_theirs(user.uid, found)):
        path = ledger.folder(user.policy.state_dir, container)
        raise HostError("VGPU-HOST-003", f"{path} is no entry of user {user.uid}'s", remedy=f"rm -r {path}")
    return found


def running(user: User) -> Iterator[Allocation]:
    """The user's containers that run. What cannot be read is passed over."""
    for name in names(user):
        try:
            found = read(user, name)
        except VgpuError:
            continue
        if found is not None and ledger.alive(found):
            yield found


def _is_sane(found: Allocation) -> bool:
    """Whether all that is shown has the type that it should have."""
    texts: tuple[Any, ...] = (found.name, found.image, found.state, found.driver_version, found.placement.policy)
    slices = found.placement.slices
    return (
        all(isinstance(text, str) for text in (*texts, *found.clamped, *(part.uuid for part in slices)))
        and isinstance(found.simulated, bool)
        and type(found.created_ns) is int
        and 0 < len(slices) <= _MOST_GPUS
        and all(type(part) is Slice and type(part.index) is int for part in slices)
    )


def _is_theirs(uid: int, found: Allocation) -> bool:
    """Whether its first process, if it lives, is in a user namespace in which the user is somebody: nobody can make one
    for another user."""
    if found.init is None or not ledger.alive(found):
        return True
    try:
        with open(f"/proc/{found.init.pid}/uid_map", encoding="ascii") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
    except (OSError, ValueError):
        return True  # it has just ended
    return any(first <= uid < first + count and count < _ALL_NUMBERS for _, first, count in ranges)


def grants(policy: Policy, tell: Callable[[HostError], None] | None = None) -> list[dict[str, Any]]:
    """For --json: what is granted to whom, and how much of it is given out to containers. tell: as of `every`; without
    it HostError VGPU-HOST-010 is raised.
    """
    return [describe(user) for user in every(policy, tell or refuse) if user.parts]


def refuse(error: HostError) -> None:
    """For `every`, where nothing is of use without the list."""
    raise error


def describe(user: User) -> dict[str, Any]:
    given = [part for entry in running(user) for part in entry.placement.slices]
    return {
        "user": user.name,
        "uid": user.uid,
        "gpus": [
            {
                "uuid": part.uuid,
                "memory_bytes": part.memory_bytes,
                "cores_percent": part.cores_percent,
                "given_bytes": sum(one.memory_bytes for one in given if one.uuid == part.uuid),
                "given_cores_percent": sum(one.cores_percent for one in given if one.uuid == part.uuid),
            }
            for part in user.parts
        ],
    }
