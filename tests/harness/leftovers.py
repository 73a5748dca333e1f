"""What we left on the machine: asked after every test that starts containers, and at the end of the demo.

Others work on the machine too, so nothing is compared as a whole: only what mentions our own folders counts.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# folders that Docker, containerd or vgpu make for themselves when they run as the machine's own
_MACHINE = [
    Path(name)
    for name in (
        "/run/containerd", "/run/containerd/s", "/run/containerd/fifo",
        "/run/docker", "/run/docker/plugins", "/run/vgpu", "/var/lib/vgpu", "/var/lib/docker", "/var/lib/containerd",
        "/etc/docker", "/etc/vgpu", "/opt/vgpu", "/opt/containerd", "/opt/containerd/bin", "/opt/containerd/lib",
        "/etc/cni", "/opt/cni", "/run/runc",
    )
]  # fmt: skip


def mounts(*folders: Path) -> list[str]:
    """Mount points in this mount namespace that lie in, or show something of, one of `folders`; outermost first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        root, point = line.split()[3:5]
        if any(_inside(path, folder) for path in (root, point) for folder in folders):
            found.append(point.encode().decode("unicode_escape"))
    return found


def unmount_runcs_own(folder: Path) -> None:
    """For tests that kill runc: at its start it binds itself in its state folder and takes that away again; a runc that
    is killed between the two leaves it (1.1, with and without vgpu)."""
    for point in mounts(folder):
        if re.fullmatch(r"runc\.\w{6}", Path(point).name):
            subprocess.run(["umount", point], check=True)


def processes(*folders: Path) -> list[tuple[str, int]]:
    """(command line, pid) of every process whose command line names a path in one of `folders`; not ourselves."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if any(f"{folder}/" in command for folder in folders):
                found.append((command, int(entry.name)))
    return sorted(found)


def cgroups(parent: str) -> list[Path]:
    """Control groups below `parent` ("/name") in every hierarchy."""
    return [path for root in _cgroup_roots(parent) for path in sorted(root.glob("*/"))]


def remove_cgroups(parent: str) -> None:
    """Removes `parent` and all below it: runtimes remove a container's own group, never the parent."""
    for root in _cgroup_roots(parent):
        for folder in sorted(root.glob("**/"), reverse=True):
            with contextlib.suppress(OSError):  # in use: `cgroups` tells
                folder.rmdir()


def machine_folders() -> set[Path]:
    """Which of the folders that engines make for themselves are there now."""
    return {path for path in _MACHINE if path.exists()}


def remove_empty_folders(before: set[Path]) -> None:
    """Removes those that were not there `before` and are empty."""
    for path in sorted(machine_folders() - before, reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir()


def _inside(path: str, folder: Path) -> bool:
    return path == str(folder) or path.startswith(f"{folder}/")


def _cgroup_roots(parent: str) -> list[Path]:
    hierarchies = [CGROUPS, *CGROUPS.glob("*/")]  # cgroup2 alone, or one folder per controller
    return [root for hierarchy in hierarchies if (root := hierarchy / parent.lstrip("/")).is_dir()]
