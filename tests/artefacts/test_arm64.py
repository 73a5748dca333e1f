"""The wheel for arm64, built on whatever machine this is: complete, loadable there, and the launcher runs."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from artefacts import archive, closure

from oci_hook import elf
from tests.harness import wheels

OTHER = "aarch64"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> archive.Artefact:
    return archive.read(wheels.build(tmp_path_factory.mktemp("arm64"), environment={"VGPU_ARCH": OTHER}).wheel)


def test_it_has_all_parts_for_arm64_and_each_finds_what_it_needs(wheel: archive.Artefact) -> None:
    assert wheel.name.endswith(f"-cp311-abi3-manylinux_2_17_{OTHER}.whl")
    machines = [elf.parse_bytes(data).machine for data in wheel.files.values() if data[:4] == b"\x7fELF"]
    assert machines == [elf.AARCH64] * 8
    assert [finding.line() for finding in closure.check(wheel, closure.rules())] == []


def test_its_launcher_runs(wheel: archive.Artefact, tmp_path: Path) -> None:
    emulator = shutil.which(f"qemu-{OTHER}")
    if emulator is None and platform.machine() != OTHER:
        pytest.skip("qemu-user is not installed: packaging/bootstrap.sh does")
    program = tmp_path / "bin/vgpu-runtime"
    program.parent.mkdir()
    program.write_bytes(wheel.files["vgpu/parts/launcher/vgpu-runtime"])
    program.chmod(0o755)
    command = [*([emulator] if emulator else []), str(program), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 5 and "VGPU-HOST-001" in done.stderr  # it ran, and misses its launcher.conf
