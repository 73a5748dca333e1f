"""Which container a process of the host belongs to. By its control group; where that does not tell, by its mounts.

Engines name the group after the container: `/docker/<id>`, `docker-<id>.scope`, `cri-containerd-<id>.scope`,
`libpod-<id>.scope/container`, `crio-<id>.scope`, `/kubepods/burstable/pod<uid>/<id>`, with version 1 and version 2.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping

_HEX_ID = re.compile(r"[0-9a-f]{64}")
_PREFIXES = ("docker-", "cri-containerd-", "containerd-", "libpod-", "crio-", "nerdctl-", "runc-", "crun-")


def container_of(text: str, known: Collection[str]) -> str:
    """The container that /proc/<pid>/cgroup names, "" for none.

    known: ids of our ledger. One of them wins, the outermost first: what runs in a container in our container is on our
    container's account. Else the innermost name that looks like an engine's id.
    """
    foreign = ""
    for line in text.splitlines():
        path = line.split(":", 2)[-1]  # "0::/path" or "4:memory:/path"
        for part in path.split("/"):
            name = _id_in(part)
            if name in known:
                return name
            if _HEX_ID.fullmatch(name):
                foreign = name
    return foreign


def _id_in(part: str) -> str:
    """The id in one component; of other shapes the component itself, as `libpod-conmon-<id>`, which is Podman's own."""
    name = part.rpartition(":")[2].removesuffix(".scope")  # containerd without scopes: `slice:cri-containerd:<id>`
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name


class Processes:
    """Looks pids up in `proc`. inits: container id -> host pid of its first process."""

    def __init__(self, inits: Mapping[str, int], proc: str = "/proc") -> None:
        self._proc = proc
        self._known = frozenset(inits)
        own = self._mounts("self")
        found = {self._mounts(str(pid)): name for name, pid in inits.items() if pid}
        # a runtime may be told to share the host's mounts: then they tell nothing
        self._by_mounts = {mounts: name for mounts, name in found.items() if mounts and mounts != own}

    def container(self, pid: int) -> str:
        """The id of the container that `pid` is in, "" for none, or if the process has ended."""
        name = container_of(self._text(f"{pid}/cgroup"), self._known)
        if name in self._known:
            return name
        return self._by_mounts.get(self._mounts(str(pid)), name)

    def inner_pid(self, pid: int) -> int:
        """The pid that the process has for itself: the last number of NSpid; 0 if it has ended."""
        found = re.search(r"^NSpid:.*?(\d+)$", self._text(f"{pid}/status"), re.MULTILINE)
        return int(found[1]) if found else 0

    def _text(self, name: str) -> str:
        try:
            with open(f"{self._proc}/{name}", encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:  # it has ended
            return ""

    def _mounts(self, pid: str) -> str:
        try:
            return os.readlink(f"{self._proc}/{pid}/ns/mnt")
        except OSError:
            return ""
