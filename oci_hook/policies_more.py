"""The policies and filters of placement.py that only some hosts use: topology, load, quotas, reservations. Pure too.

Loaded by placement.py when a request or the policy calls for one of them, so that no other start pays for it.
"""

from __future__ import annotations

from oci_hook.errors import PlacementError, shown
from oci_hook.values import TYPE_CHECKING, replace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oci_hook.placement import Case
    from oci_hook.records import Allocation, Candidate, Gpu, Host, Policy, Quota, Request, Slice

# how near two GPUs are, 0 to 1; the order is that of `nvidia-smi topo`, the distances are ours
_NEAR = {"PIX": 0.5, "PXB": 0.4, "PHB": 0.3, "NODE": 0.2, "SYS": 0.0}
_NVLINKS = 18  # of an H100, the most that a GPU has so far


def score(name: str, case: Case, fitting: set[str], taken: Sequence[str]) -> float:
    """0 to 1. name: "topology" or "least-contended". fitting: UUIDs that can serve this ask."""
    if name == "least-contended":
        return max(0.0, 1 - case.host.load.get(case.room.gpu.uuid, 0.0))
    return _topology(case, fitting - set(taken), taken)


def near(one: Gpu, other: str) -> float:
    """How well `one` reaches the GPU with the UUID `other`: 0 to 1, 0.6 and above over NVLink."""
    link = one.links.get(other, "SYS")
    if link.startswith("NV") and link[2:].isdigit():
        return 0.6 + 0.4 * min(int(link[2:]), _NVLINKS) / _NVLINKS
    return _NEAR.get(link, 0.0)


def _topology(case: Case, free: set[str], taken: Sequence[str]) -> float:
    """For several GPUs: how near it is to those taken, or to the nearest that could still be taken with it.

    For a single one the other way round, so that GPUs that belong together stay free together.
    """
    gpu, count = case.room.gpu, len(case.request.asks)
    if taken:
        return sum(near(gpu, uuid) for uuid in taken) / len(taken)
    others = sorted((near(gpu, uuid) for uuid in free if uuid != gpu.uuid), reverse=True)
    if not others:
        return 1.0
    if count == 1:
        return 1 - sum(others) / len(others)
    return sum(others[: count - 1]) / (count - 1)


def kept_for_others(request: Request, given: Sequence[Allocation], host: Host) -> dict[str, tuple[int, int]]:
    """UUID -> bytes and percent of cores that reservations keep from this request.

    What a reservation's own containers have of it is theirs already, and not counted twice. Raises PlacementError
    VGPU-PLC-004.
    """
    alive = [item for item in host.reservations if item.expires_ns > host.now_ns]
    if request.reservation and all(item.name != request.reservation for item in alive):
        raise PlacementError(
            "VGPU-PLC-004",
            f"vgpu.reservation={shown(request.reservation)}: there is no such reservation now",
            remedy="look at `vgpu reservations`; one that has expired must be made anew",
        )
    kept: dict[str, tuple[int, int]] = {}
    for item in alive:
        if item.name == request.reservation:
            continue
        claimed = [
            part
            for entry in given
            if entry.request.reservation == item.name
            for part in entry.placement.slices
            if part.uuid == item.uuid
        ]
        memory, cores = kept.get(item.uuid, (0, 0))
        memory += max(item.memory_bytes - sum(part.memory_bytes for part in claimed), 0)
        cores += max(item.cores_percent - sum(part.cores_percent for part in claimed), 0)
        kept[item.uuid] = (memory, cores)
    return kept


def matches(quota: Quota, labels: dict[str, str], mine: dict[str, str]) -> bool:
    """Whether a container with `labels` counts, when one with `mine` asks."""
    name, sign, value = quota.label.partition("=")
    return labels.get(name, "") == (value if sign else mine.get(name, ""))


def applies(quota: Quota, mine: dict[str, str]) -> bool:
    name, sign, value = quota.label.partition("=")
    return mine.get(name, "") == value if sign else name in mine


def _over(quota: Quota, wanted: tuple[int, int], mine: dict[str, str], given: Sequence[Allocation]) -> str:
    """In words how `wanted`, bytes and percent of cores, would exceed the quota; "" if it does not."""
    entries = [entry for entry in given if matches(quota, entry.request.labels, mine)]
    parts = [part for entry in entries for part in entry.placement.slices]
    memory = wanted[0] + sum(part.memory_bytes for part in parts)
    cores = wanted[1] + sum(part.cores_percent for part in parts)
    if quota.memory_bytes is not None and memory > quota.memory_bytes:
        return f"memory {memory >> 20} of {quota.memory_bytes >> 20} MiB"
    if quota.cores_percent is not None and cores > quota.cores_percent:
        return f"cores {cores} of {quota.cores_percent} percent"
    if quota.containers is not None and len(entries) >= quota.containers:
        return f"containers {len(entries) + 1} of {quota.containers}"
    return ""


def _quota_words(wanted: tuple[int, int], request: Request, given: Sequence[Allocation], policy: Policy) -> str:
    for quota in policy.quotas:
        if applies(quota, request.labels):
            over = _over(quota, wanted, request.labels, given)
            if over:
                return f"quota of {quota.label}: {over}"
    return ""


def within_quotas(
    candidates: list[list[Candidate]], rows: Sequence[Sequence[Case]], given: Sequence[Allocation]
) -> list[list[Candidate]]:
    """All rejected if even the smallest that the request can mean is above a quota of its labels."""
    first = next((case for row in rows for case in row), None)
    if first is None:
        return candidates
    least = sum(min(case.asked for case in row) for row in rows)
    cores = sum(ask.cores_percent for ask in first.request.asks)
    words = _quota_words((least, cores), first.request, given, first.policy)
    return _rejected(candidates, words) if words else candidates


def hold_to_quotas(
    slices: Sequence[Slice],
    candidates: list[list[Candidate]],
    request: Request,
    given: Sequence[Allocation],
    policy: Policy,
) -> tuple[bool, list[list[Candidate]]]:
    """Whether the slices as chosen are within the quotas; a share in percent is known only now."""
    wanted = (sum(part.memory_bytes for part in slices), sum(part.cores_percent for part in slices))
    words = _quota_words(wanted, request, given, policy)
    return (False, _rejected(candidates, words)) if words else (True, candidates)


def _rejected(candidates: list[list[Candidate]], words: str) -> list[list[Candidate]]:
    return [
        [item if item.reject else replace(item, score=None, reject="ResourceQuotaNotFit", detail=words) for item in row]
        for row in candidates
    ]
