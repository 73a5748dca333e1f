"""Packages of any Debian suite, unpacked below build/ and never installed: no script of theirs runs.

The archive's address is the one that this machine's apt has for Debian; apt checks what it downloads.
"""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
from collections.abc import Iterator
from pathlib import Path

DEBIAN = Path(__file__).resolve().parents[2] / "build" / "debian"
KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"


class NotOffered(Exception):
    """The archive cannot be reached, or no longer has that package; the text says which."""


def archive() -> str:
    """The address from which this machine gets Debian. Raises NotOffered on one that does not."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"]
    try:
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise NotOffered(f"apt does not say where it gets packages from: {error}") from None
    found = [line.split()[1] for line in said.splitlines() if line.startswith("Debian ") and "security" not in line]
    if not found:
        raise NotOffered("apt has no Debian archive on this machine")
    return found[0]


def apt(suite: str, section: str) -> list[str]:
    """apt-get for one suite, with lists and settings of its own. Raises NotOffered if the archive lacks the suite."""
    folder = DEBIAN / f"apt-{suite}-{section}"
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "sources.list").write_text(f"deb [signed-by={KEY}] {archive()} {suite} {section}\n")
    options = {
        "Dir::Etc::SourceList": folder / "sources.list", "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": folder / "lists", "Dir::State::status": "/dev/null",
        "Dir::Cache": folder / "cache", "APT::Sandbox::User": "root",
    }  # fmt: skip
    command = ["apt-get", "-q", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
    with _alone():
        if not any((folder / "lists").glob("*Packages*")):
            _run([*command, "update"], f"Debian {suite} {section}")
    return command


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Two test runs may want the same at the same time."""
    DEBIAN.mkdir(parents=True, exist_ok=True)
    with open(DEBIAN / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unpack(suite: str, section: str, packages: tuple[str, ...], folder: Path) -> None:
    """Packages of a suite as a tree in `folder`; none of their scripts run. Raises NotOffered."""
    command = apt(suite, section)
    with _alone():
        if folder.exists():
            return  # by another run, while we waited
        partial = folder.with_name(f".{folder.name}")
        partial.mkdir(parents=True, exist_ok=True)
        _run([*command, "download", *packages], f"{' '.join(packages)} of Debian {suite}", partial)
        for package in sorted(partial.glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(partial)], package.name)
            package.unlink()
        partial.rename(folder)


def _run(command: list[str], what: str, folder: Path | None = None) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=110, cwd=folder)
    except (OSError, subprocess.SubprocessError) as error:
        raise NotOffered(f"{what}: {error}") from None
