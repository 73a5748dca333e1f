"""Request + the host's GPUs + what is given out -> Placement. Pure: every fact about the host is an argument.

Free memory of a GPU is its memory times overcommit_memory, less the slices on it and what is reserved for others; cores
likewise. A GPU serves one ask of a container at most. For each ask, filters say which GPUs can serve it, policies give
those a score from 0 to 1, and it takes the best with which all later asks can still be served; between equal scores the
lower index decides. Reasons for a rejection are named as HAMi names them.

binpack and spread are here; what only some hosts use is in policies_more.py, which is loaded when it is needed.
"""

from __future__ import annotations

from oci_hook.errors import PlacementError, shown
from oci_hook.records import GRANT, Allocation, Ask, Candidate, Gpu, Host, Placement, Policy, Request, Slice
from oci_hook.values import TYPE_CHECKING, dataclass, replace

if TYPE_CHECKING:
    from collections.abc import Sequence

POLICIES = ("binpack", "spread", "topology", "exclusive", "least-contended", "weighted")
MIXABLE = ("binpack", "spread", "topology", "least-contended")
_NOTHING = Host()


@dataclass(frozen=True)
class Room:
    """What one GPU has, and how much of it is given out. total_*: with overcommit. kept_*: reserved for others.

    here: the allocations that have a slice of it.
    """

    gpu: Gpu
    total_bytes: int
    used_bytes: int
    total_cores: int
    used_cores: int
    kept_bytes: int = 0
    kept_cores: int = 0
    here: tuple[Allocation, ...] = ()

    @property
    def free_bytes(self) -> int:
        return max(self.total_bytes - self.used_bytes - self.kept_bytes, 0)

    @property
    def free_cores(self) -> int:
        return max(self.total_cores - self.used_cores - self.kept_cores, 0)


@dataclass(frozen=True)
class Case:
    """One ask and one GPU, and all that filters and policies may look at. asked: bytes of the ask on this GPU.

    wanted: UUID of the only GPU that may serve it, None: any. how: the policy's name.
    """

    request: Request
    ask: Ask
    room: Room
    asked: int
    wanted: str | None
    how: str
    policy: Policy
    host: Host


def place(
    request: Request, gpus: Sequence[Gpu], given: Sequence[Allocation], policy: Policy, host: Host = _NOTHING
) -> Placement:
    """A GPU for every ask, or no slices at all; every candidate's score or reject reason either way.

    request: after `policy.clamp`. given: living allocations, matched by UUID. Raises PlacementError VGPU-PLC-002 for a
    device that the host does not have, VGPU-PLC-003 for a policy and VGPU-PLC-004 for a reservation that is not there.
    """
    how = request.policy or policy.placement
    weights = _weights(how, policy, len(request.asks))
    rooms = rooms_for(request, gpus, given, policy, host)
    named = [find(device, gpus) for device in request.devices]
    rows = []
    for number, ask in enumerate(request.asks):
        wanted = named[number] if named else None
        asked = [_bytes(ask, room.gpu, policy) for room in rooms]
        rows.append([Case(request, ask, *pair, wanted, how, policy, host) for pair in zip(rooms, asked, strict=True)])
    candidates = [[_judge(number, case) for case in row] for number, row in enumerate(rows)]
    if policy.quotas:
        from oci_hook import policies_more

        candidates = policies_more.within_quotas(candidates, rows, given)
    slices: list[Slice] = []
    taken: list[str] = []
    for number, row in enumerate(rows):
        candidates[number] = _scored(candidates[number], row, weights, taken)
        for item in sorted((item for item in candidates[number] if item.score is not None), key=_preference):
            if item.uuid not in taken and _servable(candidates[number + 1 :], {*taken, item.uuid}):
                case = next(case for case in row if case.room.gpu.uuid == item.uuid)
                slices.append(Slice(item.index, item.uuid, case.asked, case.ask.cores_percent))
                taken.append(item.uuid)
                break
    complete = len(slices) == len(request.asks)
    if complete and policy.quotas:
        complete, candidates = policies_more.hold_to_quotas(slices, candidates, request, given, policy)
    return Placement(
        policy=how,
        slices=tuple(slices) if complete else (),
        candidates=tuple(item for row in candidates for item in row),
    )


def refusal(placement: Placement) -> PlacementError:
    """Why nothing fitted: how often each reason, then each GPU's own."""
    asks = sorted({item.ask for item in placement.candidates})
    # the first ask that fits nowhere is the reason; if each fits somewhere, there are too few GPUs that fit
    stuck = next((ask for ask in asks if all(c.reject for c in placement.candidates if c.ask == ask)), None)
    if not placement.candidates:
        return PlacementError("VGPU-PLC-001", "this host has no GPU", remedy="look at `vgpu inventory`")
    rows = [item for item in placement.candidates if item.ask == (stuck or 0)]
    counts: dict[str, int] = {}
    for item in rows:
        if item.reject:
            counts[item.reject] = counts.get(item.reject, 0) + 1
    summary = ", ".join(f"{count}/{len(rows)} {reason}" for reason, count in counts.items())
    if stuck is None:
        fitting = sum(1 for item in rows if not item.reject)
        summary = f"AllocatedCardsInsufficientRequest: {len(asks)} GPUs asked and {fitting} fit" + (
            f"; {summary}" if summary else ""
        )
    each = "; ".join(f"GPU {item.index}: {item.reject or 'fits'} ({item.detail})" for item in rows)
    which = f" for GPU {stuck} of the container" if stuck is not None and len(asks) > 1 else ""
    return PlacementError(
        "VGPU-PLC-001",
        f"no room{which}: {summary}: {each}",
        remedy="ask for less, or wait until one of the containers that `vgpu ps` lists ends",
    )


def rooms_for(
    request: Request, gpus: Sequence[Gpu], given: Sequence[Allocation], policy: Policy, host: Host = _NOTHING
) -> list[Room]:
    """What every GPU has left for this request, by index. Raises PlacementError VGPU-PLC-004."""
    kept: dict[str, tuple[int, int]] = {}
    if host.reservations or request.reservation:
        from oci_hook import policies_more

        kept = policies_more.kept_for_others(request, given, host)
    return [_room(gpu, given, policy, *kept.get(gpu.uuid, (0, 0))) for gpu in sorted(gpus, key=lambda gpu: gpu.index)]


def _room(gpu: Gpu, given: Sequence[Allocation], policy: Policy, kept_bytes: int, kept_cores: int) -> Room:
    here = [(entry, part) for entry in given for part in entry.placement.slices if part.uuid == gpu.uuid]
    return Room(
        gpu=gpu,
        total_bytes=int(gpu.memory_bytes * policy.overcommit_memory),
        used_bytes=sum(part.memory_bytes for _, part in here),
        total_cores=int(gpu.cores_percent * policy.overcommit_cores),
        used_cores=sum(part.cores_percent for _, part in here),
        kept_bytes=kept_bytes,
        kept_cores=kept_cores,
        here=tuple(entry for entry, _ in here),
    )


def find(device: str, gpus: Sequence[Gpu]) -> str:
    """The UUID of the GPU that a request names by index or UUID."""
    for gpu in gpus:
        if device in (str(gpu.index), gpu.uuid):
            return gpu.uuid
    have = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus) or "none"
    raise PlacementError(
        "VGPU-PLC-002",
        f"this host has no GPU {shown(device)}; it has {have}",
        remedy="name one that `vgpu inventory` shows (vgpu.devices, if it was set, may be left out)",
    )


def _bytes(ask: Ask, gpu: Gpu, policy: Policy) -> int:
    """Device memory that `ask` means on this GPU."""
    if ask.memory_bytes is not None:
        return ask.memory_bytes
    share = gpu.memory_bytes * (ask.memory_percent or 0) // 100
    return min(share, policy.max_memory_bytes or share)


def _judge(number: int, case: Case) -> Candidate:
    """The candidate, without a score yet."""
    gpu = case.room.gpu
    reject, detail = _unsuitable(case) or _shared(case) or _full(case) or (None, "")
    if reject is None:
        memory, cores = _words(case)
        detail = memory + (f"; {cores}" if case.ask.cores_percent else "")
    return Candidate(ask=number, index=gpu.index, uuid=gpu.uuid, score=None, reject=reject, detail=detail)


def _unsuitable(case: Case) -> tuple[str, str] | None:
    """What no other container's end would change."""
    gpu, asked = case.room.gpu, case.request
    if case.wanted not in (None, gpu.uuid):
        return "CardUuidMismatch", "another one was named"
    if asked.gpu_types and not any(kind in gpu.name.lower() for kind in asked.gpu_types):
        return "CardTypeMismatch", f"it is a {gpu.name}"
    if asked.numa not in (None, gpu.numa_node):
        return "NumaNotFit", "its NUMA node is " + ("not known" if gpu.numa_node is None else str(gpu.numa_node))
    if gpu.health != "ok" or gpu.uuid in case.host.sick:
        return "CardNotHealth", gpu.health if gpu.health != "ok" else case.host.sick[gpu.uuid]
    if gpu.uuid in case.host.cordoned:
        return "CardCordoned", case.host.cordoned[gpu.uuid]
    return None


def _shared(case: Case) -> tuple[str, str] | None:
    """Who is on the GPU, and how many."""
    here, reject = case.room.here, "ExclusiveDeviceAllocateConflict"
    if case.how == "exclusive":
        if here:
            return reject, f"{len(here)} on it, and it was asked for alone"
        if any(item.uuid == case.room.gpu.uuid and item.name.startswith(GRANT) for item in case.host.reservations):
            return reject, "a user was granted a part of it, and it was asked for alone"
    for entry in here:
        if entry.placement.policy == "exclusive":
            return reject, f"{entry.id[:12]} has it alone"
        if case.request.mutex and entry.request.mutex == case.request.mutex:
            return reject, f"{entry.id[:12]} has the same vgpu.mutex={case.request.mutex}"
    if case.policy.max_slices is not None and len(here) >= case.policy.max_slices:
        return "CardTimeSlicingExhausted", f"{len(here)} containers on it, {case.policy.max_slices} allowed"
    return None


def _full(case: Case) -> tuple[str, str] | None:
    room, (memory, cores) = case.room, _words(case)
    if case.asked > room.gpu.memory_bytes:  # with overcommit as well: one container never gets more than there is
        total = room.gpu.memory_bytes / (1 << 20)
        return "CardInsufficientMemory", f"asked {case.asked / (1 << 20):g} MiB, the GPU has {total:g} MiB"
    if case.asked > room.free_bytes:
        return "CardInsufficientMemory", memory
    if case.ask.cores_percent > room.free_cores:
        return "CardInsufficientCore", cores
    if not room.free_cores:
        return (
            "CardComputeUnitsExhausted",
            f"all of its cores are reserved, {room.used_cores + room.kept_cores} percent",
        )
    return None


def _words(case: Case) -> tuple[str, str]:
    room, kept = case.room, ""
    if room.kept_bytes or room.kept_cores:
        kept = f" ({room.kept_bytes / (1 << 20):g} MiB and {room.kept_cores} percent are reserved)"
    free, total = room.free_bytes / (1 << 20), room.total_bytes / (1 << 20)
    memory = f"asked {case.asked / (1 << 20):g} MiB, free {free:g} of {total:g} MiB{kept}"
    return memory, f"cores asked {case.ask.cores_percent}, free {room.free_cores} of {room.total_cores}"


def _weights(how: str, policy: Policy, count: int) -> dict[str, float]:
    """Which policies count how much. count: of GPUs that are asked for."""
    if how == "exclusive":  # all that are left are empty: what matters is how they are joined
        return {"topology": 1.0} if count > 1 else {"binpack": 1.0}
    if how in MIXABLE:
        return {how: 1.0}
    if how != "weighted" or not policy.weights:
        raise PlacementError(
            "VGPU-PLC-003",
            f"vgpu.policy={how}: the admin has not said what it is here",
            remedy="choose another, or have `weighted: {binpack: 0.7, topology: 0.3}` written in config.yaml",
        )
    return policy.weights


def _scored(
    row: Sequence[Candidate], cases: Sequence[Case], weights: dict[str, float], taken: Sequence[str]
) -> list[Candidate]:
    """The row with its scores. taken: UUIDs of the GPUs that the container's earlier asks took."""
    parts: dict[str, list[float]] = {}
    for name in weights:
        if name in ("binpack", "spread"):
            full = [_filled(case) for case in cases]
            parts[name] = full if name == "binpack" else [1 - share for share in full]
        else:
            from oci_hook import policies_more

            fitting = {item.uuid for item in row if not item.reject}
            parts[name] = [policies_more.score(name, case, fitting, taken) for case in cases]
    whole = sum(weights.values())
    scored = []
    for number, item in enumerate(row):
        if not item.reject:
            each = {name: round(values[number], 6) for name, values in parts.items()}
            score = sum(weights[name] * values[number] for name, values in parts.items()) / whole
            item = replace(item, score=round(score, 6), parts=each if len(each) > 1 else {})
        scored.append(item)
    return scored


def _filled(case: Case) -> float:
    """How full the GPU would be, memory and cores together, 0 to 1."""
    room = case.room
    memory = (room.used_bytes + room.kept_bytes + case.asked) / room.total_bytes
    cores = (room.used_cores + room.kept_cores + case.ask.cores_percent) / room.total_cores
    return (memory + cores) / 2


def _preference(item: Candidate) -> tuple[float, int]:
    return (-(item.score or 0.0), item.index)


def _servable(rows: Sequence[Sequence[Candidate]], taken: set[str]) -> bool:
    """Whether each row can get a GPU of its own among those that fit it and are not taken (augmenting paths)."""
    owner: dict[str, int] = {}

    def assign(row: int, tried: set[str]) -> bool:
        for item in rows[row]:
            if item.reject or item.uuid in taken or item.uuid in tried:
                continue
            tried.add(item.uuid)
            if item.uuid not in owner or assign(owner[item.uuid], tried):
                owner[item.uuid] = row
                return True
        return False

    return all(assign(row, set()) for row in range(len(rows)))
