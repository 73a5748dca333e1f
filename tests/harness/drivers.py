"""NVIDIA's own driver libraries, from Debian's non-free archive: read and loaded by tests, never installed."""

from __future__ import annotations

from pathlib import Path

from tests.harness import debian

# driver branch -> suite, and what stands between "lib" and the end of the packages' names
PACKAGES = {
    470: ("bookworm", ("nvidia-tesla-470-cuda1", "nvidia-tesla-470-ml1")),
    525: ("bookworm", ("nvidia-tesla-cuda1", "nvidia-tesla-ml1")),
    535: ("bookworm", ("cuda1", "nvidia-ml1")),
    550: ("trixie", ("cuda1", "nvidia-ml1")),
    555: ("experimental", ("cuda1", "nvidia-ml1")),
}


def libraries(branch: int) -> tuple[Path, ...]:
    """libcuda and libnvidia-ml of that driver, downloaded at the first call (4 MB). Raises debian.NotOffered."""
    folder = debian.DEBIAN / f"driver-{branch}"
    if not folder.exists():
        suite, packages = PACKAGES[branch]
        debian.unpack(suite, "non-free", tuple(f"lib{name}" for name in packages), folder)
    found = [path for path in sorted(folder.rglob("lib*.so.*")) if path.is_file() and not path.is_symlink()]
    return tuple(path for path in found if path.name.startswith(("libcuda.so", "libnvidia-ml.so")))
