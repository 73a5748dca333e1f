"""vgpu wrapper coverage: what the wrapper does with each function that a driver exports."""

from __future__ import annotations

from pathlib import Path

from libcuda_wrap import coverage
from oci_hook import inventory
from oci_hook.errors import HostError
from vgpu import output
from vgpu.config import load

COLUMNS = ("LIBRARY", "VERSION", "EXPORTS", *(kind.upper() for kind in coverage.KINDS))


def run(config: str, library: str | None, *, as_json: bool) -> int:
    """Prints the table, or JSON; the exit code. library: None for those of this host's inventory."""
    found = [coverage.of(Path(library))] if library else _of_this_host(config)
    if as_json:
        output.emit_json({"known_drivers": coverage.branches(), "libraries": [_as_json(one) for one in found]})
    else:
        output.table(COLUMNS, [_row(one) for one in found])
    for one in found:
        if one.exit_code:
            output.message(_unknown(one))
    return max(one.exit_code for one in found)


def _of_this_host(config: str) -> list[coverage.Coverage]:
    found = inventory.load(load(config))
    paths = [item.path for item in found.libraries if item.role in ("cuda", "nvml")]
    if not paths:
        raise HostError("VGPU-HOST-002", "no driver in the inventory", remedy="vgpu inventory --refresh")
    return [coverage.of(Path(path), found.driver_version) for path in paths]


def _row(one: coverage.Coverage) -> tuple[str, ...]:
    counts = [len(one.names[kind]) for kind in coverage.KINDS]
    return (one.library, one.version or "not said", *map(str, (sum(counts), *counts)))


def _as_json(one: coverage.Coverage) -> dict[str, object]:
    return {
        "path": one.path,
        "library": one.library,
        "version": one.version,
        "known": one.known,
        "names": one.names,
    }


def _unknown(one: coverage.Coverage) -> str:
    names = ", ".join(one.names["unknown"])
    if one.known:
        return f"vgpu: {one.library} {one.version}: no row for {names}: vgpu is not complete; report it"
    return (
        f"vgpu: {one.library} {one.version or 'of no version'} is newer than vgpu knows: {names} "
        "will reach the driver as they are; look for a newer vgpu"
    )
