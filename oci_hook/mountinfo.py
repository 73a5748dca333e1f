"""/proc/self/mountinfo: which mounts there are in this process's namespace. Source: proc(5)."""

from __future__ import annotations

from oci_hook.values import dataclass


@dataclass(frozen=True)
class OneMount:
    """device: "major:minor" of the filesystem. kind: its type. shared: mounts on it show in other namespaces.

    point: where it is, blanks and the like as \\ooo.
    """

    point: str
    device: str
    kind: str
    shared: bool


class MountInfo:
    """Mount id -> OneMount."""

    def __init__(self, text: str) -> None:
        self.mounts: dict[int, OneMount] = {}
        for line in text.splitlines():
            before, _, after = line.partition(" - ")
            fields = before.split(" ")
            shared = any(field.startswith("shared:") for field in fields[6:])
            self.mounts[int(fields[0])] = OneMount(fields[4], fields[2], after.split(" ")[0], shared)

    @classmethod
    def of_this_namespace(cls) -> MountInfo:
        with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            return cls(file.read())

    def get(self, mount_id: int) -> OneMount | None:
        return self.mounts.get(mount_id)

    def below(self, folder: str) -> list[str]:
        """The mount points below a folder, "/proc"; one that is on it is not."""
        start = len(folder.rstrip("/"))
        inside = folder.rstrip("/") + "/"
        return [mount.point[start:] for mount in self.mounts.values() if mount.point.startswith(inside)]

    def devices(self) -> frozenset[str]:
        return frozenset(mount.device for mount in self.mounts.values())
