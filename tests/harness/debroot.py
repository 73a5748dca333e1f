"""A whole Debian to install packages in, laid over one that stays as it is: by debootstrap, or this machine itself.

with debroot.opened("trixie", folder) as root:
    root("dpkg", "--install", "/vgpu.deb")
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.harness import debian, leftovers

CACHE = Path(__file__).resolve().parents[2] / "build/debroot"
MACHINE = "machine"
NEEDED = (
    "python3", "python3-cffi", "python3-yaml", "python3-rich", "python3-click", "python3-requests",
    "python3-typing-extensions", "runc", "python3-ply",
)  # fmt: skip  # the last: debootstrap does not see that it is what python3-pycparser needs
# what the package manager itself, and runc, keep
NOT_OURS = ("var/lib/dpkg", "var/log", "var/cache", "var/lib/apt", "root/.rpmdb", "var/lib/dnf", "proc", "sys", "dev",
            "tmp", "run/runc", "run/lock")  # fmt: skip
# a root of its own, so that runc can pivot; the network of nobody, unless it is asked for
_ENTER = """
mount --rbind /sys "$1/sys" && mount --rbind /dev "$1/dev" && mount --bind /proc "$1/proc"
cd "$1" && mkdir -p .before && pivot_root . .before && umount -l /.before && rmdir /.before
shift; exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Root:
    """path: where it is mounted. lower: the Debian below. Calling it runs a program in it, as root."""

    path: Path
    lower: Path

    def __call__(
        self, *command: str, check: bool = True, network: bool = False, **env: str
    ) -> subprocess.CompletedProcess[str]:
        namespaces = ["--mount", "--propagation=slave", *([] if network else ["--net"])]
        enter = ["unshare", *namespaces, "sh", "-e", "-c", _ENTER, "sh", str(self.path)]
        settings = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [*enter, *command], env={**settings, **env}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def paths(self) -> dict[str, tuple[int, int]]:
        """Path -> (mode, size; 0 of a folder) of all that the Debian below does not have, but for NOT_OURS."""
        upper, found = self.path.with_name("upper"), {}
        for folder, prefix in ((upper, ""), (self.path / "run", "run/")):
            for path in folder.rglob("*"):
                name, status = f"{prefix}{path.relative_to(folder)}", path.lstat()
                was_there = path.is_dir() and (self.lower / name).is_dir()
                if not name.startswith(NOT_OURS) and not was_there:
                    found[name] = (status.st_mode, 0 if path.is_dir() else status.st_size)
        return found


def base(suite: str) -> Path:
    """The Debian below: unpacked once, below build/. Raises debian.NotOffered where it cannot be had."""
    if suite == MACHINE:
        return Path("/")
    folder = CACHE / suite
    if not (folder / ".complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(NEEDED)}", suite, str(folder)]
        try:
            subprocess.run([*command, debian.archive()], check=True, capture_output=True, text=True, timeout=900)
        except (OSError, subprocess.SubprocessError) as error:
            raise debian.NotOffered(f"debootstrap makes no {suite}: {error}") from None
        (folder / ".complete").touch()
    return folder


@contextlib.contextmanager
def opened(suite: str, folder: Path) -> Iterator[Root]:
    """The root, and the end of it. folder: where what is written in it goes; it must be empty."""
    lower = base(suite)
    for name in ("upper", "work", "merged"):
        (folder / name).mkdir()
    options = f"lowerdir={lower},upperdir={folder}/upper,workdir={folder}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, f"{folder}/merged"], check=True)
    root = Root(folder / "merged", lower)
    try:
        # as on any host; and the locks of the accounts in it do not hold across an overlay
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", f"{folder}/merged/run"], check=True)
        if suite == MACHINE:
            install = ("apt-get", "install", "-q", "-y", "--no-install-recommends", *NEEDED)
            if root(*install, check=False, network=True).returncode:
                root("apt-get", "update", "-q", network=True)
                root(*install, network=True)
        yield root
    finally:
        for mountpoint in reversed(leftovers.mounts(folder)):
            subprocess.run(["umount", "--lazy", mountpoint], check=False)
