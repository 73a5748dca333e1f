"""Docker, containerd, runc and crun of other Debian releases, made to run on this machine's kernel.

Their programs want another C library than the machine has. Each is given its own release's loader and libraries for
good (patchelf: interpreter and RPATH), so that no environment variable is needed that containers' programs would see.
Nothing is installed; all of it lies below build/.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.harness import debian, engines
from tests.harness.engines import Engine

_ELF = b"\x7fELF"


@dataclass(frozen=True, slots=True)
class Packages:
    """Of one Debian suite; libraries that another suite has to lend come from `base`."""

    names: tuple[str, ...]
    libraries: tuple[str, ...] = ()
    base: str = ""


_ENGINE = ("docker.io", "containerd", "runc", "crun", "tini")
_SHARED = ("libc6", "libgcc-s1", "libsystemd0", "libseccomp2", "libcap2")
_OLDER = ("libyajl2", "libdevmapper1.02.1", "libselinux1", "libpcre2-8-0", "libudev1", "libgcrypt20", "libgpg-error0",
          "liblz4-1", "liblzma5", "libzstd1")  # fmt: skip
SUITES = {
    "bookworm": Packages(_ENGINE, (*_SHARED, *_OLDER)),
    "trixie": Packages((*_ENGINE, "docker-cli"), (*_SHARED, "libyajl2")),
    "forky": Packages((*_ENGINE, "docker-cli"), (*_SHARED, "libblake3-0", "libjson-c5")),
}
# low-level runtimes that come without an engine of their own
RUNTIMES = {
    "bullseye": Packages(("runc", "crun"), ("libc6", "libgcc-s1", "libseccomp2", "libcap2", "libyajl2", "libsystemd0",
                                            "libgcrypt20", "libgpg-error0", "liblz4-1", "liblzma5", "libzstd1")),
    "experimental": Packages(("runc",), ("libc6", "libseccomp2"), base="forky"),
}  # fmt: skip


def engine(suite: str) -> Engine:
    """That suite's Docker and containerd with its own runc and crun. Raises debian.NotOffered."""
    return _tree(suite, SUITES[suite])


def runtime(suite: str, name: str) -> Path:
    """That suite's runc or crun. Raises debian.NotOffered."""
    return _tree(suite, {**RUNTIMES, **SUITES}[suite]).program(name)


def version(program: Path) -> str:
    """What a program says of itself: "26.1.5", "1.0.0-rc93"."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.search(r"(?:^|\s)v?(\d[\d.]*(?:[~-]rc\d+)?)", said)
    assert found is not None, said
    return found[1].replace("~", "-")


def _tree(suite: str, packages: Packages) -> Engine:
    folder = engines.BUILD / "engines" / f"suite-{suite}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        debian.unpack(suite, "main", packages.names, partial)
        debian.unpack(packages.base or suite, "main", packages.libraries, partial / "libraries")
        _fit(partial, folder)
        engines.keep(partial, folder)
    return Engine(folder, fitted=True)


def _fit(tree: Path, place: Path) -> None:
    """Ties every program in `tree` to the libraries beside it, as if the tree were at `place` already."""
    own = tree / "libraries"
    folders = [*own.glob("usr/lib/*-linux-gnu"), *own.glob("lib/*-linux-gnu")]
    loader = next(loader for folder in folders for loader in sorted(folder.glob("ld-linux-*.so.*")))
    rpath = ":".join(str(place / folder.relative_to(tree)) for folder in folders)
    interpreter = str(place / loader.relative_to(tree))
    for path in [*(tree / "usr/bin").iterdir(), *(tree / "usr/sbin").iterdir()]:
        if path.is_symlink() or not path.is_file() or path.read_bytes()[:4] != _ELF:
            continue
        if subprocess.run([_patchelf(), "--print-interpreter", path], capture_output=True, check=False).returncode:
            continue  # static
        command = [_patchelf(), "--set-interpreter", interpreter, "--force-rpath", "--set-rpath", rpath, str(path)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)


def _patchelf() -> str:
    installed = shutil.which("patchelf")
    if installed:
        return installed
    folder = debian.DEBIAN / "patchelf-bookworm"
    if not folder.exists():
        debian.unpack("bookworm", "main", ("patchelf",), folder)
    return str(folder / "usr/bin/patchelf")
