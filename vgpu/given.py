"""How much of each GPU is given out, and which are given out more than once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oci_hook import inventory
from oci_hook.errors import VgpuError
from oci_hook.records import Gpu, Policy


def by_gpu(
    containers: Sequence[dict[str, Any]], grants: Sequence[dict[str, Any]], policy: Policy
) -> list[dict[str, Any]]:
    """One dict a GPU, in the host's order. containers: as `ps.collect` has them; those that have ended hold nothing,
    and those of users are within their grants. grants: as `users.grants` has them.

    memory_bytes: of the GPU, None if the inventory cannot tell. overcommitted: the sum of the quotas is more than the
    GPU has, in memory or in cores, so that a container may not get all that it was promised.
    """
    known = _gpus(policy)
    found: dict[str, dict[str, Any]] = {}
    counted = [one for one in containers if one["state"] != "ended" and one["user"] is None]
    for part in [gpu for one in (*counted, *grants) for gpu in one["gpus"]]:
        host = known.get(part["uuid"])
        gpu = found.setdefault(
            part["uuid"],
            {
                "index": host.index if host else part.get("index", -1),
                "uuid": part["uuid"],
                "memory_bytes": host.memory_bytes if host else None,
                "given_bytes": 0,
                "given_cores_percent": 0,
                "overcommit_memory": policy.overcommit_memory,
                "overcommit_cores": policy.overcommit_cores,
            },
        )
        gpu["given_bytes"] += part["memory_bytes"]
        gpu["given_cores_percent"] += part["cores_percent"]
    for gpu in found.values():
        has = gpu["memory_bytes"]
        gpu["overcommitted"] = gpu["given_cores_percent"] > 100 or (has is not None and gpu["given_bytes"] > has)
    return sorted(found.values(), key=lambda gpu: int(gpu["index"]))


def _gpus(policy: Policy) -> dict[str, Gpu]:
    try:
        return {gpu.uuid: gpu for gpu in inventory.load(policy).gpus}
    except VgpuError:  # stale or not there: `vgpu ps` shows what it can
        return {}
