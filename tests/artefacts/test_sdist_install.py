"""The source archive builds the wheel in a clean environment, from declared build requirements alone. Minutes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.harness import wheels


@pytest.mark.timeout(900)
def test_pip_builds_the_source_archive_without_the_checkout(made: wheels.Made, tmp_path: Path) -> None:
    houses = [wheels.dependencies(), wheels.build_requirements()]
    programs = wheels.environment(tmp_path / "venv", made.sdist, houses)
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [programs / "vgpu", "version"], capture_output=True, text=True, check=True, cwd="/", env=environment
    )
    assert done.stdout == f"{wheels.project()['project']['version']}\n"
    site = next(programs.parent.glob("lib/python3*/site-packages"))
    assert (site / "vgpu/parts/wrapper/libcuda.so.1").read_bytes() == _wrapper(made)


def _wrapper(made: wheels.Made) -> bytes:
    from artefacts import archive

    return archive.read(made.wheel).files["vgpu/parts/wrapper/libcuda.so.1"]
