"""What the tests ask of the doctor."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from oci_hook import inventory_scan
from tests.harness import debian, drivers
from vgpu.doctor.finding import CannotSee, Check, Finding
from vgpu.doctor.image import command
from vgpu.doctor.image.driver import Driver

NO_DRIVER = CannotSee("the driver", "none was given")
NO_DOCKER = "unix:///nowhere/docker.sock"


def real_driver(branch: int) -> Driver:
    """NVIDIA's own libraries of a branch, of Debian's non-free archive."""
    try:
        paths = drivers.libraries(branch)
    except debian.NotOffered as missing:
        pytest.skip(str(missing))
    names = {"libcuda": "compute", "libnvidia-ml": "utility"}
    found = tuple(inventory_scan.library(str(path), names[path.name.split(".so")[0]]) for path in paths)
    return Driver(paths[0].name.removeprefix("libcuda.so."), found)


def checks(
    image: Path | str, driver: Driver | None, *programs: str, deep: bool = False, docker: str = NO_DOCKER
) -> tuple[Check, ...]:
    return command.checks(str(image), driver or NO_DRIVER, docker, programs, deep=deep, at=lambda _: None)


def findings(
    image: Path | str, driver: Driver | None, *programs: str, deep: bool = False, docker: str = NO_DOCKER
) -> list[Finding]:
    return [one for check in checks(image, driver, *programs, deep=deep, docker=docker) for one in check.findings]


def seen(found: tuple[Check, ...], name: str) -> str:
    """What a check says is well."""
    return "; ".join(next(check for check in found if check.name == name).seen)


def unseen(found: tuple[Check, ...]) -> str:
    return "; ".join(f"{one.subject}: {one.why}" for check in found for one in check.unseen)


def program(path: Path, text: str = "int main(void) { return 0; }", *flags: str) -> Path:
    """A program of this machine's compiler, in a tree."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command_line = ["gcc", "-x", "c", "-", "-x", "none", "-o", str(path), "-Wl,--no-as-needed", *flags]
    subprocess.run(command_line, input=text, text=True, check=True, timeout=60)
    return path
