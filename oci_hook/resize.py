"""A slice that changes while its container runs: the ledger's entry, and the quota file that its programs have mapped.

The entry is what counts, the quota file follows it. The two cannot be written at once, so the file goes first to the
smaller of old and new, then the entry to new, then the file to new: wherever the writer dies, no program may use more
than the ledger has given out. A mark in the ledger (`Ledger.mark`) says that this is going on; whoever next takes the
lock and finds it sets the file to what the entry says.
"""

from __future__ import annotations

import os

from oci_hook import ledger, neighbours, quota_file
from oci_hook.errors import HostError, PlacementError, RequestError, VgpuError, shown
from oci_hook.policies_more import kept_for_others
from oci_hook.policy import mib
from oci_hook.records import Allocation, Gpu, Host, Policy, Slice
from oci_hook.values import TYPE_CHECKING, dataclass, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NOTHING = Host()


@dataclass(frozen=True)
class Change:
    """What is to be different; None stays as it is. gpu: the host's index, None for all GPUs of the container.

    cores_percent: 1 to 100. burst: "hard" or "soft"; it holds for the whole container, whatever `gpu` says.
    """

    memory_bytes: int | None = None
    cores_percent: int | None = None
    gpu: int | None = None
    burst: str | None = None


def changed(before: Allocation, change: Change) -> Allocation:
    """The allocation after the change. Raises RequestError VGPU-SET-004 for a GPU that it has no slice of."""
    indices = [part.index for part in before.placement.slices]
    if change.gpu is not None and change.gpu not in indices:
        raise RequestError(
            "VGPU-SET-004",
            f"--gpu={change.gpu}: container {shown(before.name or before.id)} has a slice of GPU "
            + ", ".join(map(str, indices)),
            remedy="name one of these, or leave --gpu out to change all of them",
        )

    def new(part: Slice) -> Slice:
        if change.gpu not in (None, part.index):
            return part
        memory = part.memory_bytes if change.memory_bytes is None else change.memory_bytes
        cores = part.cores_percent if change.cores_percent is None else change.cores_percent
        return replace(part, memory_bytes=memory, cores_percent=cores)

    slices = tuple(new(part) for part in before.placement.slices)
    asked = before.request if change.burst is None else replace(before.request, burst=change.burst)
    return replace(before, placement=replace(before.placement, slices=slices), request=asked)


def grows(before: Allocation, after: Allocation) -> bool:
    """Whether any GPU has to give more than now."""
    pairs = zip(before.placement.slices, after.placement.slices, strict=True)
    return any(new.memory_bytes > old.memory_bytes or new.cores_percent > old.cores_percent for old, new in pairs)


def check_caps(change: Change, policy: Policy) -> None:
    """Raises RequestError VGPU-SET-003 for a size or share above the admin's caps."""
    limit = policy.max_memory_bytes
    if change.burst == "soft" and policy.grant is not None and policy.max_cores_percent < 100:
        raise RequestError(
            "VGPU-SET-003",
            "--burst: soft asked, and within a grant of cores nothing can be borrowed",
            remedy="leave --burst out, or have root grant cores without a limit (vgpu grant without --cores)",
        )
    if change.memory_bytes is not None and limit is not None and change.memory_bytes > limit:
        asked, most, setting = mib(change.memory_bytes), mib(limit), "max.memory"
    elif change.cores_percent is not None and change.cores_percent > policy.max_cores_percent:
        asked, most, setting = f"{change.cores_percent} %", f"{policy.max_cores_percent} %", "max.cores"
    else:
        return
    raise RequestError(
        "VGPU-SET-003",
        f"--{setting.removeprefix('max.')}: {asked} asked, the policy allows {most}",
        remedy=f"ask for {most} at most, or have the admin raise {setting} in config.yaml",
    )


def check_room(
    before: Allocation,
    after: Allocation,
    gpus: Sequence[Gpu],
    given: Sequence[Allocation],
    policy: Policy,
    host: Host = _NOTHING,
) -> None:
    """Raises PlacementError VGPU-PLC-001, with the reason as HAMi names it, if a GPU has no room for what grows.

    given: all allocations, this container's among them. host: for what is reserved for others.
    """
    others = [part for entry in given if entry.id != before.id for part in entry.placement.slices]
    known = {gpu.uuid: gpu for gpu in gpus}
    kept = kept_for_others(replace(before.request, reservation=None), given, _without(before, host))
    for old, new in zip(before.placement.slices, after.placement.slices, strict=True):
        gpu = known.get(new.uuid)
        beside = [part for part in others if part.uuid == new.uuid]
        beside += [Slice(new.index, new.uuid, *kept[new.uuid])] if new.uuid in kept else []
        reject = _reject(old, new, gpu, beside, policy)
        if reject is not None:
            raise PlacementError(
                "VGPU-PLC-001",
                f"no room: GPU {new.index}: {reject}",
                remedy="ask for less, or wait until one of the containers that `vgpu ps` lists ends",
            )


def _without(entry: Allocation, host: Host) -> Host:
    """The host without the reservation that the container uses itself."""
    others = tuple(item for item in host.reservations if item.name != entry.request.reservation)
    return replace(host, reservations=others)


def _reject(old: Slice, new: Slice, gpu: Gpu | None, beside: Sequence[Slice], policy: Policy) -> str | None:
    """HAMi's reason and the figures, or None. What does not grow is not judged: it has been given out already."""
    more_memory, more_cores = new.memory_bytes > old.memory_bytes, new.cores_percent > old.cores_percent
    if not (more_memory or more_cores):
        return None
    if gpu is None or gpu.health != "ok":
        return f"CardNotHealth ({gpu.health if gpu else 'the host does not have it any more'})"
    # with overcommit as well, one container never gets more than there is
    left = int(gpu.memory_bytes * policy.overcommit_memory) - sum(part.memory_bytes for part in beside)
    memory = min(left, gpu.memory_bytes)
    if more_memory and new.memory_bytes > memory:
        return f"CardInsufficientMemory (asked {mib(new.memory_bytes)}, it can have {mib(max(memory, 0))} in all)"
    cores = int(gpu.cores_percent * policy.overcommit_cores) - sum(part.cores_percent for part in beside)
    if more_cores and new.cores_percent > cores:
        return f"CardInsufficientCore (cores asked {new.cores_percent}, it can have {max(cores, 0)} in all)"
    return None


def apply(
    book: ledger.Ledger, before: Allocation, after: Allocation, in_use: Callable[[], Sequence[int]] | None
) -> int:
    """Makes `after` hold, from the next call of the container's programs; returns the quota file's new generation.

    book: locked. in_use: bytes in use per GPU of the container, or None to go below that (--force). Raises RequestError
    VGPU-SET-002, and HostError; all is then as it was.
    """
    with LiveQuota(book.state_dir, before) as live:
        if in_use is not None:
            _check_use(after, in_use())  # first without touching anything: a refusal is to disturb nobody
        book.mark(before.id)
        live.store(_smaller(before, after))
        try:
            if in_use is not None:
                _check_use(after, in_use())  # from here on nothing more gets in: what is in use now is all
            book.rewrite(after)
        except VgpuError:
            live.store(before)
            book.unmark(before.id)
            raise
        generation = live.store(after)
        live.tell_neighbours(book.state_dir, after)
        book.unmark(before.id)
    return generation


def repair(book: ledger.Ledger, container: str) -> None:
    """Ends what a killed `apply` has begun. Never raises: the file says less than the entry at most, so no start has to
    wait for it, and the mark stays for another try.
    """
    try:
        entry = ledger.read(book.state_dir, container) if ledger.is_id(container) else None
        if entry is not None:
            with LiveQuota(book.state_dir, entry) as live:
                live.store(entry)
                live.tell_neighbours(book.state_dir, entry)
    except VgpuError:
        return
    book.unmark(container)


def _smaller(before: Allocation, after: Allocation) -> Allocation:
    """The smaller of the two, size by size; burst is left alone until the entry says what it is to be."""
    pairs = zip(before.placement.slices, after.placement.slices, strict=True)
    slices = tuple(
        replace(
            old,
            memory_bytes=min(old.memory_bytes, new.memory_bytes),
            cores_percent=min(old.cores_percent or 100, new.cores_percent or 100),
        )
        for old, new in pairs
    )
    left_alone = replace(before.request, burst=None)
    return replace(before, placement=replace(before.placement, slices=slices), request=left_alone)


def _check_use(after: Allocation, in_use: Sequence[int]) -> None:
    for part, used in zip(after.placement.slices, in_use, strict=False):
        if used > part.memory_bytes:
            raise RequestError(
                "VGPU-SET-002",
                f"--memory={mib(part.memory_bytes)}: {mib(used)} of GPU {part.index} are in use",
                remedy=f"give {mib(used)} or more, or add --force: allocations then fail until the use is below",
            )


class LiveQuota:
    """The live fields of a container's quota file, written while programs have it mapped.

    `with LiveQuota(state_dir, allocation) as live`. Raises HostError VGPU-HOST-009 for a file that is not this
    allocation's. Each field is one aligned store, as the header asks.
    """

    def __init__(self, state_dir: str, allocation: Allocation) -> None:
        self._path = f"{ledger.folder(state_dir, allocation.id)}/box/quota"
        self._expected = quota_file.identity(allocation.id, allocation.placement.slices)

    def __enter__(self) -> LiveQuota:
        import mmap  # needed here only: the start path imports this module after a killed `vgpu set`

        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_size != quota_file.QUOTA_BYTES:
                    raise _unusable(self._path, f"{os.fstat(descriptor).st_size} bytes")
                self._map = mmap.mmap(descriptor, quota_file.QUOTA_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unusable(self._path, f"errno {error.errno}") from None
        if quota_file.read_identity(self._map[:]) != self._expected:
            self._map.close()
            raise _unusable(self._path, "it is of another version, or of another container")
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()

    def store(self, allocation: Allocation) -> int:
        """What the allocation says, then the next generation, which is returned. request.burst None: as it is."""
        with memoryview(self._map) as raw, raw.cast("Q") as wide, raw.cast("I") as narrow:
            for number, part in enumerate(allocation.placement.slices):
                at = quota_file.gpu_at(number)
                wide[(at + quota_file.MEMORY_AT) // 8] = part.memory_bytes
                narrow[(at + quota_file.CORES_AT) // 4] = part.cores_percent or 100
                if allocation.request.burst is not None:
                    flags = (at + quota_file.FLAGS_AT) // 4
                    soft = quota_file.FLAG_SOFT if allocation.request.burst == "soft" else 0
                    narrow[flags] = narrow[flags] & ~quota_file.FLAG_SOFT | soft
            wide[quota_file.GENERATION_AT // 8] += 1
            return wide[quota_file.GENERATION_AT // 8]

    def charge(self, number: int, permille: int, until_s: int) -> None:
        """What the container's GPU `number` is charged of what is measured, until then (CLOCK_BOOTTIME, seconds)."""
        with memoryview(self._map) as raw, raw.cast("I") as narrow:
            at = (quota_file.gpu_at(number) + quota_file.CHARGE_AT) // 4
            narrow[at], narrow[at + 1] = permille, until_s

    def tell_neighbours(self, state_dir: str, allocation: Allocation) -> None:
        """What is kept for the container, and whether it borrows, as its neighbours see it. Raises HostError."""
        try:
            box = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                neighbours.enter(state_dir, box, allocation.placement.slices, self._map[:])
            finally:
                os.close(box)
        except FileNotFoundError:
            return  # started by a version that had no share files: it neither lends nor borrows
        except OSError as error:
            raise ledger.state_error(state_dir, error) from error


def _unusable(path: str, why: str) -> HostError:
    return HostError(
        "VGPU-HOST-009",
        f"the quota file {path} cannot be changed: {why}",
        remedy="use the vgpu that started this container, or start the container again",
    )
