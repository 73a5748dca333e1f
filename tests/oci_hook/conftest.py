"""The hook's system-call module is built once, under build/, and found from there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import oci_hook
from oci_hook import sys_build

PYTHON = Path(__file__).parents[2] / "build" / "python"


def _use_built_module() -> None:
    built = PYTHON / "oci_hook"
    source = Path(sys_build.__file__).stat().st_mtime
    if not any(file.stat().st_mtime > source for file in built.glob("_vgsys*.so")):
        sys_build.build(PYTHON)
    oci_hook.__path__.append(str(built))


_use_built_module()


DRIVER_PACKAGES = (
    "libcuda1", "libnvidia-ml1", "libnvidia-ptxjitcompiler1", "libnvidia-cfg1", "libnvidia-allocator1",
    "nvidia-opencl-icd", "nvidia-smi",
)  # fmt: skip
DRIVER = Path(__file__).parents[2] / "build" / "nvidia-driver"


@pytest.fixture(scope="session")
def real_driver() -> Path:
    """NVIDIA's own libraries in a root of their own: Debian's non-free packages, unpacked and not installed."""
    if not (DRIVER / "complete").exists():
        _fetch_driver()
    return DRIVER / "root"


def _archive(release: str) -> str:
    """The address from which this machine gets that release of Debian."""
    command = ["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"]
    targets = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    found = [line.split()[1] for line in targets.splitlines() if line.startswith(f"{release} ")]
    if not found:
        pytest.skip(f"this machine's apt sources do not have Debian {release}")
    return found[0]


def _fetch_driver() -> None:
    for folder in ("lists/partial", "cache/archives/partial", "debs", "root"):
        (DRIVER / folder).mkdir(parents=True, exist_ok=True)
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (DRIVER / "sources.list").write_text(f"deb [signed-by={key}] {_archive('bookworm')} bookworm non-free\n")
    options = {
        "Dir::Etc::SourceList": DRIVER / "sources.list", "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": DRIVER / "lists", "Dir::Cache": DRIVER / "cache", "APT::Sandbox::User": "root",
    }  # fmt: skip
    apt = ["apt-get", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
    try:
        subprocess.run([*apt, "update"], check=True, capture_output=True, timeout=60)
        command = [*apt, "download", *DRIVER_PACKAGES]
        subprocess.run(command, cwd=DRIVER / "debs", check=True, capture_output=True, timeout=100)
        for package in (DRIVER / "debs").glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, DRIVER / "root"], check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"NVIDIA's libraries cannot be downloaded from Debian's non-free archive: {error}")
    (DRIVER / "complete").touch()
