"""vgpu set: a container's slice, changed while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libcuda_wrap import bindings
from oci_hook import audit, decision, inventory, ledger, request, resize, standing
from oci_hook.errors import RequestError, shown
from oci_hook.records import Allocation, Policy
from vgpu import output
from vgpu.config import load


def change(memory: str | None, cores: str | None, gpu: str | None, burst: str | None) -> resize.Change:
    """The command's options. Raises RequestError VGPU-REQ-001, -002 or -006 for one that cannot be read."""
    size = None if memory is None else request.memory_size(memory)
    if memory is not None and size is None:
        raise RequestError(
            "VGPU-REQ-001",
            f"--memory={shown(memory)}: not a memory size: a whole number with MiB or GiB",
            remedy="write --memory 12GiB or --memory 512MiB",
        )
    if burst not in (None, "hard", "soft"):
        raise RequestError(
            "VGPU-REQ-006", f"--burst={shown(burst)}: there is hard and soft", remedy="write --burst hard"
        )
    return resize.Change(size, _number("--cores", cores, 1, 100), _number("--gpu", gpu, 0, 4095), burst)


def _number(option: str, text: str | None, low: int, high: int) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 6 and low <= int(text) <= high):
        why = f"{option}={shown(text)}: not a whole number from {low} to {high}"
        raise RequestError("VGPU-REQ-002", why, remedy=f"write {option} {max(low, min(high, 50))}")
    return int(text)


def run(config: str, container: str, asked: resize.Change, *, force: bool, as_json: bool) -> None:
    """Changes the slice under the ledger's lock, writes it to the audit log and prints what is now in force."""
    policy = load(config)
    resize.check_caps(asked, policy)
    with ledger.Ledger(policy.state_dir) as book:
        book.reap(
            lambda dead: decision.ended(policy, dead, book.tick(), "reap")
        )  # as a start does: what the dead had is free
        entries = book.entries()
        before = find(container, entries)
        after = resize.changed(before, asked)
        if resize.grows(before, after):
            resize.check_room(before, after, inventory.load(policy).gpus, entries, policy, standing.timed(policy))
        generation = None
        if after != before:
            in_use = None if force else lambda: _in_use(policy, before)
            generation = resize.apply(book, before, after, in_use)
        sequence = book.tick()
    if generation is not None:
        old, new = before.placement.slices, after.placement.slices
        audit.append(policy.log_dir, "resize", after.id, seq=sequence, name=after.name, before=old, after=new,
                     burst=after.request.burst, forced=force, generation=generation)  # fmt: skip
    _print(before, after, generation, as_json=as_json)


def find(wanted: str, entries: list[Allocation]) -> Allocation:
    """The container of this id, name, or beginning of an id. Raises RequestError VGPU-SET-001 for none or several."""
    for matches in (
        [entry for entry in entries if entry.id == wanted],
        [entry for entry in entries if entry.name and entry.name == wanted.removeprefix("/")],
        [entry for entry in entries if wanted and entry.id.startswith(wanted)],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            which = ", ".join(entry.id[:16] for entry in matches[:4])
            raise RequestError(
                "VGPU-SET-001",
                f"{shown(wanted)} fits {len(matches)} containers: {which}",
                remedy="write more of the id, as `vgpu ps --json` shows it",
            )
    raise RequestError(
        "VGPU-SET-001",
        f"no running container {shown(wanted)} has a slice here",
        remedy="name one by its id, the beginning of it, or its name, as `vgpu ps` shows them",
    )


def _in_use(policy: Policy, allocation: Allocation) -> list[int]:
    """Bytes that living processes hold, per GPU. Raises HostError VGPU-HOST-009 where that cannot be read."""
    usage = bindings.read_usage(Path(ledger.folder(policy.state_dir, allocation.id), "box/usage"))
    return [max(0, gpu.used_bytes - gpu.ended_bytes) for gpu in usage.gpus]


def _print(before: Allocation, after: Allocation, generation: int | None, *, as_json: bool) -> None:
    pairs = list(zip(before.placement.slices, after.placement.slices, strict=True))
    if as_json:
        output.emit_json(_facts(after, generation, [(vars(old), vars(new)) for old, new in pairs]))
        return
    for old, new in pairs:
        memory = _step(output.size(old.memory_bytes), output.size(new.memory_bytes))
        cores = _step(_share(old.cores_percent), _share(new.cores_percent))
        print(output.printable(f"{after.name or after.id[:12]} GPU {new.index}: memory {memory}, cores {cores}"))
    if after.request.burst != before.request.burst:
        print(f"burst: {after.request.burst}")
    print("nothing was to be changed" if generation is None else "in force from the next call of its programs")


def _facts(after: Allocation, generation: int | None, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    return {
        "id": after.id,
        "name": after.name,
        "changed": generation is not None,
        "generation": generation,
        "burst": after.request.burst,
        "gpus": [{**new, "before": {key: old[key] for key in ("memory_bytes", "cores_percent")}} for old, new in pairs],
    }


def _step(old: str, new: str) -> str:
    return new if old == new else f"{old} -> {new}"


def _share(percent: int) -> str:
    return f"{percent} %" if percent else "not limited"
