"""Grants of users' rootless engines: can each be used, and is there what it is of?"""

from __future__ import annotations

import os
from collections.abc import Iterator

from oci_hook import inventory
from oci_hook.errors import VgpuError
from vgpu import users
from vgpu.doctor.finding import CannotSee, Result, Seen, found
from vgpu.doctor.host.machine import Host, Run


def folders(host: Host) -> Iterator[Result]:
    """A grant outlives a boot, the user's folder does not; and a GPU can have been taken out."""
    policy = host.policy
    try:
        known = {gpu.uuid for gpu in inventory.of_host(policy).gpus}
        granted = [user for user in users.every(policy, users.refuse) if user.parts]
    except VgpuError as error:
        raise CannotSee("grants", f"{error.code}: {error}") from None
    for user in granted:
        folder = user.policy.state_dir
        if not _is_of(folder, user.uid):
            evidence = f"user {user.name} has a grant, and {folder} is not there or not theirs"
            yield found("VGPU-HOST-012", folder, evidence, remedy="vgpu inventory --refresh")
        for part in user.parts:
            if part.uuid not in known:
                evidence = f"user {user.name} was granted {part.memory_bytes >> 20} MiB of it, and it is not there"
                remedy = f"vgpu grant {user.uid} --revoke"
                yield found("VGPU-STA-005", f"GPU {part.uuid}", evidence, remedy=remedy)
    yield Seen(f"users with a grant: {len(granted)}")


def _is_of(folder: str, uid: int) -> bool:
    try:
        return os.lstat(folder).st_uid == uid and os.path.isdir(folder)
    except OSError:
        return False


CHECKS: tuple[tuple[str, str, Run], ...] = (("state", "grants", folders),)
