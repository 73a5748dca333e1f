"""Request + the host's GPUs + what is given out -> Placement. Pure: every fact about the host is an argument.

Free memory of a GPU is its memory times overcommit_memory, less the slices on it; cores likewise. A GPU serves one ask
of a container at most. Each ask in turn takes the GPU with the best score with which all later asks can still be
served; between equal scores the lower index decides. Reasons for a rejection are named as HAMi names them.
"""

from __future__ import annotations

from oci_hook.errors import PlacementError, shown
from oci_hook.records import Allocation, Ask, Candidate, Gpu, Placement, Policy, Request, Slice
from oci_hook.values import TYPE_CHECKING, dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Room:
    """What one GPU has, and how much of it is given out. total_*: with overcommit."""

    gpu: Gpu
    total_bytes: int
    used_bytes: int
    total_cores: int
    used_cores: int


def place(request: Request, gpus: Sequence[Gpu], given: Sequence[Allocation], policy: Policy) -> Placement:
    """A GPU for every ask, or no slices at all; every candidate's score or reject reason either way.

    request: after `policy.clamp`. given: living allocations, matched by UUID. Raises PlacementError VGPU-PLC-002 for a
    device that the host does not have.
    """
    rooms = [_room(gpu, given, policy) for gpu in sorted(gpus, key=lambda gpu: gpu.index)]
    named = [_find(device, gpus) for device in request.devices]
    how = request.policy or policy.placement
    candidates: list[list[Candidate]] = []
    for number, ask in enumerate(request.asks):
        wanted = named[number] if named else None
        candidates.append([_judge(number, ask, room, wanted, how, policy) for room in rooms])
    slices: list[Slice] = []
    taken: set[str] = set()
    for number, ask in enumerate(request.asks):
        best = sorted((item for item in candidates[number] if item.score is not None), key=_preference)
        for item in best:
            if item.uuid not in taken and _servable(candidates[number + 1 :], taken | {item.uuid}):
                gpu = next(room.gpu for room in rooms if room.gpu.uuid == item.uuid)
                slices.append(Slice(gpu.index, gpu.uuid, _bytes(ask, gpu, policy), ask.cores_percent))
                taken.add(item.uuid)
                break
    complete = len(slices) == len(request.asks)
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
        summary = f"{len(asks)} GPUs asked and {fitting} fit" + (f"; {summary}" if summary else "")
    each = "; ".join(f"GPU {item.index}: {item.reject or 'fits'} ({item.detail})" for item in rows)
    which = f" for GPU {stuck} of the container" if stuck is not None and len(asks) > 1 else ""
    return PlacementError(
        "VGPU-PLC-001",
        f"no room{which}: {summary}: {each}",
        remedy="ask for less, or wait until one of the containers that `vgpu ps` lists ends",
    )


def _room(gpu: Gpu, given: Sequence[Allocation], policy: Policy) -> Room:
    here = [part for allocation in given for part in allocation.placement.slices if part.uuid == gpu.uuid]
    return Room(
        gpu=gpu,
        total_bytes=int(gpu.memory_bytes * policy.overcommit_memory),
        used_bytes=sum(part.memory_bytes for part in here),
        total_cores=int(100 * policy.overcommit_cores),
        used_cores=sum(part.cores_percent for part in here),
    )


def _find(device: str, gpus: Sequence[Gpu]) -> str:
    """The UUID of the GPU that a request names by index or UUID."""
    for gpu in gpus:
        if device in (str(gpu.index), gpu.uuid):
            return gpu.uuid
    have = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus) or "none"
    raise PlacementError(
        "VGPU-PLC-002",
        f"vgpu.devices: this host has no GPU {shown(device)}; it has {have}",
        remedy="name one that `vgpu inventory` shows, or leave vgpu.devices out",
    )


def _bytes(ask: Ask, gpu: Gpu, policy: Policy) -> int:
    """Device memory that `ask` means on this GPU."""
    if ask.memory_bytes is not None:
        return ask.memory_bytes
    share = gpu.memory_bytes * (ask.memory_percent or 0) // 100
    return min(share, policy.max_memory_bytes or share)


def _judge(number: int, ask: Ask, room: Room, wanted: str | None, how: str, policy: Policy) -> Candidate:
    gpu = room.gpu
    asked = _bytes(ask, gpu, policy)
    free = max(room.total_bytes - room.used_bytes, 0)
    free_cores = max(room.total_cores - room.used_cores, 0)
    memory = f"asked {asked / (1 << 20):g} MiB, free {free / (1 << 20):g} of {room.total_bytes / (1 << 20):g} MiB"
    cores = f"cores asked {ask.cores_percent}, free {free_cores} of {room.total_cores}"
    reject, detail = None, memory + (f"; {cores}" if ask.cores_percent else "")
    if wanted is not None and wanted != gpu.uuid:
        reject, detail = "CardUuidMismatch", "another one was named"
    elif gpu.health != "ok":
        reject, detail = "CardNotHealth", gpu.health
    elif asked > gpu.memory_bytes:  # with overcommit as well: one container never gets more than there is
        total = gpu.memory_bytes / (1 << 20)
        reject, detail = "CardInsufficientMemory", f"asked {asked / (1 << 20):g} MiB, the GPU has {total:g} MiB"
    elif asked > free:
        reject, detail = "CardInsufficientMemory", memory
    elif ask.cores_percent > free_cores:
        reject, detail = "CardInsufficientCore", cores
    elif not free_cores:
        reject, detail = "CardComputeUnitsExhausted", f"all of its cores are reserved, {room.used_cores} percent"
    score = None
    if reject is None:
        filled = (room.used_bytes + asked) / room.total_bytes
        filled_cores = (room.used_cores + ask.cores_percent) / room.total_cores
        full = (filled + filled_cores) / 2
        score = round(full if how == "binpack" else 1 - full, 6)
    return Candidate(ask=number, index=gpu.index, uuid=gpu.uuid, score=score, reject=reject, detail=detail)


def _preference(item: Candidate) -> tuple[float, int]:
    return (-(item.score or 0.0), item.index)


def _servable(rows: Sequence[Sequence[Candidate]], taken: set[str]) -> bool:
    """Whether each row can get a GPU of its own among those that fit it and are not taken (augmenting paths)."""
    owner: dict[str, int] = {}

    def assign(row: int, tried: set[str]) -> bool:
        for item in rows[row]:
            if item.score is None or item.uuid in taken or item.uuid in tried:
                continue
            tried.add(item.uuid)
            if item.uuid not in owner or assign(owner[item.uuid], tried):
                owner[item.uuid] = row
                return True
        return False

    return all(assign(row, set()) for row in range(len(rows)))
