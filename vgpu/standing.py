"""vgpu cordon, uncordon, reserve, unreserve, reservations: what the admin says about single GPUs."""

from __future__ import annotations

import re
import time

from oci_hook import inventory, ledger, placement, request, standing
from oci_hook.errors import PlacementError, RequestError, shown
from oci_hook.policy import mib
from oci_hook.records import GRANT, Gpu, Host, Policy, Request, Reservation
from oci_hook.values import replace
from vgpu import output
from vgpu.config import load

_SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


def cordon(config: str, name: str, why: str, *, sick: bool, as_json: bool) -> None:
    """No new container gets the GPU from now on; those on it stay."""
    policy = load(config)
    gpu = _gpu(policy, name)
    with ledger.Ledger(policy.state_dir):
        host = standing.load(policy)
        field = "sick" if sick else "cordoned"
        standing.save(policy, replace(host, **{field: {**getattr(host, field), gpu.uuid: why}}))
    _say(f"GPU {gpu.index} ({gpu.uuid}) takes no new container: {why}", gpu, as_json=as_json)


def uncordon(config: str, name: str, *, as_json: bool) -> None:
    """The GPU is open again, whether it was cordoned or sick."""
    policy = load(config)
    gpu = _gpu(policy, name)
    with ledger.Ledger(policy.state_dir):
        host = standing.load(policy)
        kept = [{uuid: why for uuid, why in found.items() if uuid != gpu.uuid} for found in (host.cordoned, host.sick)]
        standing.save(policy, replace(host, cordoned=kept[0], sick=kept[1]))
    _say(f"GPU {gpu.index} ({gpu.uuid}) takes containers", gpu, as_json=as_json)


def reserve(config: str, gpu_name: str, memory: str, cores: int, lasting: str, name: str, *, as_json: bool) -> None:
    """Keeps room on a GPU for containers with vgpu.reservation=NAME. Raises PlacementError if it is not free."""
    size, seconds = request.memory_size(memory), duration(lasting)
    if size is None:
        raise RequestError("VGPU-REQ-001", f"--memory={shown(memory)}: not a memory size", remedy="write --memory 8GiB")
    if not request.is_word(name):
        why = f"--name={shown(name)}: not a name of at most 64 letters, digits and _.-"
        raise RequestError("VGPU-REQ-002", why, remedy="write --name training")
    policy = load(config)
    gpu = _gpu(policy, gpu_name)
    with ledger.Ledger(policy.state_dir) as book:
        host = _alive(standing.load(policy))
        others = replace(host, reservations=tuple(r for r in host.reservations if (r.name, r.uuid) != (name, gpu.uuid)))
        [room] = placement.rooms_for(Request(()), [gpu], book.entries(), policy, others)
        if size > room.free_bytes or cores > room.free_cores:
            raise PlacementError(
                "VGPU-PLC-001",
                f"GPU {gpu.index} has {mib(room.free_bytes)} and {room.free_cores} % of its cores free, "
                f"{mib(size)} and {cores} % are to be reserved",
                remedy="reserve less, or wait until one of the containers that `vgpu ps` lists ends",
            )
        made = Reservation(name, gpu.uuid, size, cores, host.now_ns + seconds * 10**9)
        standing.save(policy, replace(others, reservations=(*others.reservations, made)))
    until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(made.expires_ns / 1e9))
    _say(f"{mib(size)} of GPU {gpu.index} are kept for vgpu.reservation={name} until {until}", gpu, as_json=as_json)


def unreserve(config: str, name: str, *, as_json: bool) -> None:
    """Raises PlacementError VGPU-PLC-004 if there is none of that name. Containers that use it keep their slices."""
    if name.startswith(GRANT):
        remedy = f"vgpu grant {name.removeprefix(GRANT)} --revoke"
        raise PlacementError("VGPU-PLC-004", f"{shown(name)} is no reservation but a grant", remedy=remedy)
    policy = load(config)
    with ledger.Ledger(policy.state_dir):
        host = _alive(standing.load(policy))
        kept = tuple(item for item in host.reservations if item.name != name)
        if len(kept) == len(host.reservations):
            why = f"there is no reservation {shown(name)}"
            raise PlacementError("VGPU-PLC-004", why, remedy="look at `vgpu reservations`")
        standing.save(policy, replace(host, reservations=kept))
    if as_json:
        output.emit_json({"name": name})
    else:
        print(f"reservation {name} is gone")


def reservations(config: str, *, as_json: bool) -> None:
    """Those in force."""
    found = _alive(standing.load(load(config))).reservations
    if as_json:
        output.emit_json({"reservations": [dict(vars(item)) for item in found]})
        return
    rows = [
        (item.name, item.uuid, output.size(item.memory_bytes), f"{item.cores_percent} %",
         "it is revoked" if item.name.startswith(GRANT) else
         time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(item.expires_ns / 1e9)))
        for item in found
    ]  # fmt: skip
    output.table(("NAME", "GPU", "MEMORY", "CORES", "UNTIL"), rows)


def duration(text: str) -> int:
    """Seconds of "2h", "30min", "1d". Raises RequestError VGPU-REQ-002."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})(s|min|m|h|d)", text)
    if found is None:
        why = f"--for={shown(text)}: not a duration: a whole number with s, min, h or d"
        raise RequestError("VGPU-REQ-002", why, remedy="write --for 2h")
    return int(found[1]) * _SECONDS[found[2]]


def _alive(host: Host) -> Host:
    now = time.time_ns()
    return replace(host, now_ns=now, reservations=tuple(item for item in host.reservations if item.expires_ns > now))


def _gpu(policy: Policy, name: str) -> Gpu:
    gpus = inventory.load(policy).gpus
    uuid = placement.find(name, gpus)
    return next(gpu for gpu in gpus if gpu.uuid == uuid)


def _say(text: str, gpu: Gpu, *, as_json: bool) -> None:
    if as_json:
        output.emit_json({"gpu": gpu.index, "uuid": gpu.uuid, "message": text})
    else:
        print(output.printable(text))
