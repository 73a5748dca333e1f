"""vgpu ps: the slices that are given out. Reads the containers' folders, never the programs in them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from libcuda_wrap import bindings
from oci_hook import ledger
from oci_hook.errors import HostError, VgpuError
from oci_hook.records import GRANT, Allocation, Policy
from vgpu import given, output, users
from vgpu.config import load
from vgpu.users import User

COLUMNS = ("CONTAINER", "NAME", "IMAGE", "GPU", "MEMORY", "CORES", "STATE", "IN FORCE", "PROCESSES", "DENIED")


def run(config: str, *, as_json: bool) -> None:
    """Prints all slices. One that cannot be read is named on stderr and left out; the others are shown."""
    policy = load(config)
    containers = collect(policy)
    grants = users.grants(policy, lambda told_already: None)
    gpus = given.by_gpu(containers, grants, policy)
    over = {gpu["uuid"] for gpu in gpus if gpu["overcommitted"]}
    if as_json:
        output.emit_json({"cores_enforced": True, "gpus": gpus, "grants": grants, "containers": containers})
        return
    index = {gpu["uuid"]: str(gpu["index"]) for gpu in gpus}
    rows = [row for grant in grants for row in _grant_rows(grant, index)]
    output.table(COLUMNS, [*rows, *(row for container in containers for row in _rows(container, over))])


def collect(policy: Policy) -> list[dict[str, Any]]:
    """One dict a container, oldest first; what --json prints. For root with those of users' rootless engines."""
    found = _collect(policy.state_dir, names(policy.state_dir), None)
    for user in users.every(policy):
        found += _collect(user.policy.state_dir, users.names(user), user)
    return sorted(found, key=lambda container: int(container["created_ns"]))


def _collect(state_dir: str, ids: list[str], user: User | None) -> list[dict[str, Any]]:
    found = []
    for name in ids:
        try:
            allocation = users.read(user, name) if user else ledger.read(state_dir, name)
            if allocation is not None:
                found.append(_describe(state_dir, allocation, user.name if user else None))
        except VgpuError as error:
            if os.path.lexists(ledger.folder(state_dir, name)):  # else it ended while we were reading
                output.message(error.line())
    return found


def names(state_dir: str) -> list[str]:
    """Ids of the containers that have a folder. Raises HostError VGPU-HOST-003 if they cannot be listed."""
    try:
        return [name for name in os.listdir(f"{state_dir}/containers") if ledger.is_id(name)]
    except FileNotFoundError:  # nothing has ever been given out
        return []
    except OSError as error:
        raise HostError(
            "VGPU-HOST-003",
            f"{state_dir}/containers cannot be read: {(error.strerror or '').lower()}",
            remedy="run the command as root",
        ) from None


def _describe(state_dir: str, allocation: Allocation, user: str | None) -> dict[str, Any]:
    usage, trouble = _usage(state_dir, allocation)
    slices = allocation.placement.slices
    return {
        "id": allocation.id,
        "name": allocation.name,
        "image": allocation.image,
        "user": user,
        "state": allocation.state if ledger.alive(allocation) else "ended",
        "created_ns": allocation.created_ns,
        "simulated": allocation.simulated,
        "driver_version": allocation.driver_version,
        "policy": allocation.placement.policy,
        "clamped": list(allocation.clamped),
        "in_force": bool(usage and usage.armed_ns),
        "in_force_since_ns": _wall_clock(usage.armed_ns) if usage and usage.armed_ns else None,
        "trouble": trouble,
        "gpus": [
            {
                "index": part.index,
                "uuid": part.uuid,
                "memory_bytes": part.memory_bytes,
                "cores_percent": part.cores_percent,
                **_use(usage, number),
            }
            for number, part in enumerate(slices)
        ],
        "processes": [
            {"pid": process.pid, "held_bytes": list(process.held_bytes[: len(slices)])}
            for process in (usage.processes if usage else ())
            if process.alive
        ],
    }


def _use(usage: bindings.Usage | None, number: int) -> dict[str, int | None]:
    """The figures of the container's GPU `number`; None where they cannot be read."""
    gpu = usage.gpus[number] if usage else None
    return {
        # what ended processes held stays charged until room is needed; it is not in use
        "used_bytes": max(0, gpu.used_bytes - gpu.ended_bytes) if gpu else None,
        "charged_bytes": gpu.used_bytes if gpu else None,
        "peak_bytes": gpu.peak_bytes if gpu else None,
        "denied_count": gpu.denied_count if gpu else None,
        "denied_bytes": gpu.denied_bytes if gpu else None,
    }


def _usage(state_dir: str, allocation: Allocation) -> tuple[bindings.Usage | None, str | None]:
    """The usage file's figures, or why there are none. It is written by the container: it may hold anything."""
    try:
        return bindings.read_usage(Path(ledger.folder(state_dir, allocation.id), "box/usage")), None
    except (VgpuError, OSError) as error:
        return None, str(error)


def _wall_clock(boottime_ns: int) -> int:
    """CLOCK_BOOTTIME as Unix time, nanoseconds."""
    return time.time_ns() - (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - boottime_ns)


def _rows(container: dict[str, Any], over: set[str]) -> list[tuple[str, ...]]:
    """One row a GPU; what belongs to the container stands in the first. over: GPUs given out more than once."""
    rows: list[tuple[str, ...]] = []
    for number, gpu in enumerate(container["gpus"]):
        used, first = gpu["used_bytes"], number == 0
        notes = ["simulated"] * container["simulated"] + ["overcommitted"] * (gpu["uuid"] in over)
        rows.append(
            (
                container["id"][:12] if first else "",
                users.shown(container["user"], container["name"]) if first else "",
                container["image"] if first else "",
                f"{gpu['index']} ({', '.join(notes)})" if notes else str(gpu["index"]),
                f"{'?' if used is None else output.size(used)} / {output.size(gpu['memory_bytes'])}",
                _cores(gpu["cores_percent"]),
                container["state"] if first else "",
                _in_force(container) if first else "",
                str(len(container["processes"])) if first else "",
                "?" if gpu["denied_count"] is None else str(gpu["denied_count"]),
            )
        )
    return rows


def _grant_rows(grant: dict[str, Any], index: dict[str, str]) -> list[tuple[str, ...]]:
    """One row a GPU: how much of what was granted is given out. index: UUID -> the host's number."""
    rows = []
    for number, gpu in enumerate(grant["gpus"]):
        who = (f"{GRANT}{grant['uid']}", grant["user"]) if number == 0 else ("", "")
        memory = f"{output.size(gpu['given_bytes'])} / {output.size(gpu['memory_bytes'])}"
        what = (index.get(gpu["uuid"], "?"), memory, _cores(gpu["cores_percent"]), "grant" if number == 0 else "")
        rows.append((*who, "", *what, "", "", ""))
    return rows


def _cores(percent: int) -> str:
    return f"{percent} %" if percent else "no limit"


def _in_force(container: dict[str, Any]) -> str:
    if container["trouble"]:
        return "unknown"
    if not container["in_force"]:
        return "not used yet"
    seconds = max(0, time.time_ns() - container["in_force_since_ns"]) // 1_000_000_000
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"since {seconds // length} {unit}"
    return f"since {seconds} s"
