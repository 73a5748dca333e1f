"""Which running container stands on which version, and which layouts its files have.

Read without the classes of this release: a container of a release that came after it must be seen too.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from oci_hook import ledger, rootless
from oci_hook.records import Process
from vgpu.installer.layout import Prefix, Version, refuse
from vgpu.ps import names

_HEADER = struct.Struct("<II")  # magic, version: how both files begin, in any layout
_LIMIT = 16 << 20


@dataclass(frozen=True, slots=True)
class Tenant:
    """A container with a slice that runs, or may run. version: the name of its version's folder, "" if not known.

    layouts: file kind -> layout, None for one that cannot be read.
    """

    id: str
    name: str
    version: str
    layouts: dict[str, int | None]

    def shown(self) -> str:
        return f"{self.id[:12]} ({self.name})" if self.name else self.id[:12]


def find(prefix: Prefix, state_dir: str) -> list[Tenant]:
    """All of them, those of users' rootless engines as well. A folder that cannot be read counts as one that runs."""
    found = []
    for state in (state_dir, *rootless.folders(state_dir)):
        found += [_tenant(prefix, f"{state}/containers/{name}", name) for name in sorted(names(state))]
    return [tenant for tenant in found if tenant is not None]


def _tenant(prefix: Prefix, folder: str, container: str) -> Tenant | None:
    entry, plan = _json(f"{folder}/allocation.json"), _json(f"{folder}/plan.json")
    if not os.path.lexists(folder):
        return None  # it ended meanwhile
    owner = entry.get("init") or entry.get("creator") or {}
    try:
        known = Process(int(owner["pid"]), int(owner["start_ticks"]))
        if ledger.process(known.pid) != known:
            return None
    except (KeyError, TypeError, ValueError, AttributeError):
        pass  # it cannot be told that it has ended
    schema = entry.get("schema")
    layouts = {
        "ledger": schema if isinstance(schema, int) else None,
        "quota": _layout(f"{folder}/box/quota"),
        "usage": _layout(f"{folder}/box/usage"),
    }
    return Tenant(container, str(entry.get("name", "")), _version(prefix, plan), layouts)


def _json(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as stream:
            found = json.loads(stream.read(_LIMIT))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _layout(path: str) -> int | None:
    try:
        with open(path, "rb") as stream:
            return int(_HEADER.unpack(stream.read(_HEADER.size))[1])
    except (OSError, struct.error):
        return None


def _version(prefix: Prefix, plan: dict[str, Any]) -> str:
    """Out of the paths that were mounted: no record can say otherwise than what is in force."""
    start = f"{prefix.versions}/"
    mounts = plan.get("mounts")
    for mount in mounts if isinstance(mounts, list) else []:
        source = mount.get("source") if isinstance(mount, dict) else None
        if isinstance(source, str) and source.startswith(start):
            return source.removeprefix(start).partition("/")[0]
    return ""


def started_by(launcher: str, proc: str = "/proc") -> set[str]:
    """Ids of the containers, with a slice or without, that an engine started by `launcher` and will end by it.

    containerd's shims have a container's folder as their working folder, with the runtime's path in the file `runtime`;
    Podman's and CRI-O's conmon has it on its command line.
    """
    found: set[str] = set()
    for process in filter(str.isdecimal, os.listdir(proc)):
        try:
            with open(f"{proc}/{process}/comm") as stream:
                name = stream.read().strip()
            if name.startswith("containerd-shim"):
                found |= _of_shim(os.path.dirname(os.readlink(f"{proc}/{process}/cwd")), launcher)
            elif name == "conmon":
                with open(f"{proc}/{process}/cmdline", errors="replace") as stream:
                    words = stream.read().split("\0")
                options = dict(zip(words, words[1:], strict=False))
                if launcher in (options.get("-r"), options.get("--runtime")):
                    found.add(options.get("-c") or options.get("--cid") or f"of process {process}")
        except OSError:  # it has ended, or is another user's
            continue
    return found


def _of_shim(folder: str, launcher: str) -> set[str]:
    """folder: of all containers in one of containerd's namespaces."""
    found = set()
    for container in os.listdir(folder):
        try:
            with open(f"{folder}/{container}/runtime", errors="replace") as stream:
                if stream.read(4096).strip() == launcher:
                    found.add(container)
        except OSError:
            continue
    return found


def using(tenants: Iterable[Tenant], version: Version) -> list[Tenant]:
    """Those on `version`, and those that could be."""
    return [tenant for tenant in tenants if tenant.version in (version.name, "")]


def unreadable(tenants: Iterable[Tenant], reads: dict[str, list[int]]) -> list[str]:
    """A line for each container that a version with these `reads` could not manage."""
    lines = []
    for tenant in tenants:
        for kind, number in tenant.layouts.items():
            known = reads.get(kind, [])
            if number not in known:
                has = "cannot be read" if number is None else f"has layout {number}"
                lines.append(f"{tenant.shown()}: {kind} {has}, {', '.join(map(str, known)) or 'none'} known")
    return lines


def require_readable(tenants: Sequence[Tenant], target: str, reads: dict[str, list[int]], *, force: bool) -> list[str]:
    """The lines of `unreadable`, which are refused (VGPU-INST-002) unless forced: those containers would run on, but
    unseen by ps and not to be resized; if the ledger's layout is not known, no container could start."""
    lines = unreadable(tenants, reads)
    if lines and not force:
        raise refuse(
            f"{target} cannot manage containers that run: {'; '.join(lines)}",
            "end those containers first, or use --force: they run on, but are not seen",
            code="VGPU-INST-002",
        )
    return lines
