"""Root file trees of real systems: Debian's packages, unpacked, in the layout that their base-files would give."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.harness import debian, rootfs

SUITES = ("bullseye", "bookworm", "trixie", "sid")  # the oldest that the archive still has comes first: glibc 2.31
_MERGED = ("bin", "sbin", "lib", "lib64")


def packages(suite: str, *names: str) -> Path:
    """Packages of a suite, unpacked once below build/. Raises debian.NotOffered. Not to be changed."""
    folder = debian.DEBIAN / f"{'+'.join(names)}-{suite}"
    if not folder.exists():
        debian.unpack(suite, "main", names, folder)
    return folder


def root(target: Path, suite: str, *more: str) -> Path:
    """libc6 and more packages of a suite, as a new tree in `target` with everything below /usr."""
    (target / "usr").mkdir(parents=True)
    for name in _MERGED:
        (target / "usr" / name).mkdir()
        (target / name).symlink_to(f"usr/{name}")
    for source in (packages(suite, "libc6"), *(packages(suite, name) for name in more)):
        # tar follows the links at the top, as dpkg does; hard links would share the files with the next test
        command = f"tar -C {source} -c . | tar -C {target} -x --keep-directory-symlink"
        subprocess.run(command, shell=True, check=True, timeout=60)
    loader = target / "usr/lib64/ld-linux-x86-64.so.2"
    if not loader.exists():
        loader.unlink(missing_ok=True)
        loader.symlink_to(f"../lib/{rootfs.MULTIARCH}/ld-linux-x86-64.so.2")
    return target


def musl(target: Path, suite: str = "bookworm") -> Path:
    """Debian's musl and a static busybox: what Alpine looks like to a loader."""
    for source in (packages(suite, "musl"), packages(suite, "busybox-static")):
        subprocess.run(["cp", "-a", f"{source}/.", target], check=True, timeout=60)
    return target
