"""The audit log's lines about slices: each decision with all that led to it, and each end with what was used.

A decision's inputs are complete: `placement.place(*unpack(pack(…)))` decides the same again, on any machine. They are
kept short: of an allocation only what placement looks at. Lines are written under the ledger's lock, with its sequence
number, so their order is the order in which the ledger changed.
"""

from __future__ import annotations

import os

from oci_hook import audit, fastjson, ledger
from oci_hook.errors import HostError, shown
from oci_hook.records import Allocation, Gpu, Host, Placement, Policy, Process, Request, Slice
from oci_hook.values import TYPE_CHECKING, as_json, from_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Inputs = tuple[Request, tuple[Gpu, ...], tuple[Allocation, ...], Policy, Host]

_OF_POLICY = (
    "placement",
    "max_memory_bytes",
    "overcommit_memory",
    "overcommit_cores",
    "weights",
    "quotas",
    "max_slices",
)
_NOBODY = Process(0, 0)


def pack(
    request: Request, gpus: Sequence[Gpu], given: Sequence[Allocation], policy: Policy, host: Host
) -> dict[str, Any]:
    """What JSON has, for `unpack`."""
    fields = vars(policy)
    return {
        "request": as_json(request),
        "gpus": as_json(gpus),
        "given": [_packed(entry) for entry in given],
        "policy": {name: as_json(fields[name]) for name in _OF_POLICY},
        "host": as_json(host),
    }


def _packed(entry: Allocation) -> dict[str, Any]:
    slices = [[part.index, part.uuid, part.memory_bytes, part.cores_percent] for part in entry.placement.slices]
    asked = {"mutex": entry.request.mutex, "reservation": entry.request.reservation, "labels": entry.request.labels}
    packed: dict[str, Any] = {"id": entry.id, "slices": slices}
    packed.update({name: value for name, value in asked.items() if value})
    if entry.placement.policy == "exclusive":
        packed["exclusive"] = True
    return packed


def unpack(raw: dict[str, Any]) -> Inputs:
    """Raises KeyError, TypeError, ValueError or AttributeError for what `pack` did not write."""
    policy: Policy = from_json(Policy, {"runtime": "", "prefix": "", **raw["policy"]})
    gpus = tuple(from_json(Gpu, gpu) for gpu in raw["gpus"])
    given = tuple(_unpacked(entry) for entry in raw["given"])
    return from_json(Request, raw["request"]), gpus, given, policy, from_json(Host, raw["host"])


def _unpacked(raw: dict[str, Any]) -> Allocation:
    asked = Request((), mutex=raw.get("mutex"), reservation=raw.get("reservation"), labels=raw.get("labels", {}))
    how = "exclusive" if raw.get("exclusive") else ""
    placed = Placement(how, tuple(Slice(*part) for part in raw["slices"]), ())
    return Allocation(raw["id"], "", "", "armed", 0, _NOBODY, _NOBODY, asked, placed, (), False, "")


def digest(inputs: dict[str, Any]) -> str:
    """SHA-256 of the inputs' JSON, 64 hexadecimal digits."""
    try:
        from _sha256 import sha256  # type: ignore[import-not-found,unused-ignore]  # CPython up to 3.11
    except ImportError:
        from hashlib import sha256
    found: str = sha256(fastjson.dumps(inputs).encode()).hexdigest()
    return found


def tell(log_dir: str, container: str, sequence: int, inputs: dict[str, Any], placed: Placement, **facts: Any) -> None:
    """The line of a decision: "allocate", or "deny" where no slices were given."""
    event = "allocate" if placed.slices else "deny"
    audit.append(
        log_dir, event, container, seq=sequence, digest=digest(inputs), placement=placed, inputs=inputs, **facts
    )


def ended(policy: Policy, allocation: Allocation, sequence: int, event: str, **facts: Any) -> None:
    """The line of an end: "release", "reap" or "fail". Before the folder goes: its usage file is read."""
    from oci_hook import usage_file  # most starts end nobody

    _, used = usage_file.read(policy.state_dir, allocation)
    if allocation.state == "creating" and event != "fail":
        _note_silence(policy, allocation)
    audit.append(
        policy.log_dir, event, allocation.id, seq=sequence, name=allocation.name, image=allocation.image,
        state=allocation.state, created_ns=allocation.created_ns, labels=allocation.request.labels,
        exclusive=allocation.placement.policy == "exclusive", slices=allocation.placement.slices, use=used, **facts,
    )  # fmt: skip


def _note_silence(policy: Policy, allocation: Allocation) -> None:
    error, part = silence(policy, allocation)
    audit.silent(
        policy.state_dir, allocation.id, allocation.created_ns, error, name=allocation.name, image=allocation.image,
        part=part,
    )  # fmt: skip


def silence(policy: Policy, allocation: Allocation) -> tuple[HostError, str]:
    """A start that is dead, of which nobody could say why: all that is known then, and whose part it was in."""
    begun = os.path.lexists(f"{ledger.folder(policy.state_dir, allocation.id)}/{audit.BEGUN}")
    where = "while its hook was at work" if begun else "before its hook was called"
    look = "`dmesg`: was a hook killed, for memory or after 10 s?" if begun else "its message has the runtime's reason"
    error = HostError(
        "VGPU-OCI-005",
        f"the start of container {shown(allocation.id)} ended {where}, and nobody said why",
        remedy=f"look into the engine's log ({look}), then start the container again",
    )
    return error, "hook" if begun else "runtime"
