"""Container engines unpacked from Debian packages below build/: nothing is installed and no service is started.

apt-get checks what it downloads against Debian's keys; `dpkg -x` runs none of a package's scripts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"
# with the libraries that a minimal Debian 12 lacks; `_missing_libraries` tells if that list has become too short
DOCKER = ("docker.io", "containerd", "runc", "tini", "libdevmapper1.02.1")


@dataclass(frozen=True, slots=True)
class Engine:
    """folder: an unpacked tree with usr/bin and usr/sbin. Its programs must be started with `environment()`.

    fitted: they know where their libraries are (suites.py).
    """

    folder: Path
    fitted: bool = False

    def environment(self) -> dict[str, str]:
        """This process's environment with the engine's programs and libraries first."""
        path = f"{self.folder}/usr/bin:{self.folder}/usr/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        if self.fitted:
            return {**os.environ, "PATH": path}
        libraries = ":".join(str(folder) for folder in sorted(self.folder.glob("usr/lib/*-linux-gnu")))
        libraries += "".join(f":{folder}" for folder in sorted(self.folder.glob("lib/*-linux-gnu")))
        return {**os.environ, "PATH": path, "LD_LIBRARY_PATH": libraries.strip(":")}

    def program(self, name: str) -> Path:
        for folder in ("usr/bin", "usr/sbin"):
            if (self.folder / folder / name).exists():
                return self.folder / folder / name
        raise FileNotFoundError(f"{name} is not in {self.folder}")


def docker() -> Engine:
    """The machine's own Debian release of Docker; downloaded at the first call (65 MB), then kept below build/."""
    folder = BUILD / "engines" / f"docker-{_release()}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        _unpack(DOCKER, partial)
        if missing := _missing_libraries(Engine(partial)):
            raise RuntimeError(f"dockerd needs {', '.join(missing)}: name their Debian packages in {__file__}")
        keep(partial, folder)
    return Engine(folder)


def prometheus() -> Engine:
    """prometheus and promtool, likewise (19 MB); they need glibc alone."""
    folder = BUILD / "engines" / f"prometheus-{_release()}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        _unpack(("prometheus",), partial)
        keep(partial, folder)
    return Engine(folder)


def keep(partial: Path, folder: Path) -> None:
    """Puts a finished tree in its place; whoever comes second takes what is there."""
    try:
        partial.rename(folder)
    except OSError:  # another run was quicker
        shutil.rmtree(partial)


def _release() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_ID="):
            return "debian" + line.partition("=")[2].strip('"')
    return "debian"


def _unpack(packages: tuple[str, ...], folder: Path) -> None:
    downloads = folder / "downloads"
    downloads.mkdir(parents=True)
    # as root, apt drops to a user of its own, which may not write here
    fetch = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *packages]
    if subprocess.run(fetch, cwd=downloads, capture_output=True, check=False).returncode:
        subprocess.run(["apt-get", "-q", "update"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(fetch, cwd=downloads, check=True, stdout=subprocess.DEVNULL)
    for package in sorted(downloads.glob("*.deb")):
        subprocess.run(["dpkg", "-x", package, folder], check=True)
    shutil.rmtree(downloads)


def _missing_libraries(engine: Engine) -> list[str]:
    listed = subprocess.run(
        ["ldd", engine.program("dockerd")], env=engine.environment(), capture_output=True, text=True, check=True
    ).stdout
    return [line.split()[0] for line in listed.splitlines() if line.endswith("not found")]
