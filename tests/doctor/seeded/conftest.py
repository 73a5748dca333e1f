"""One installation for all seeded faults, before real runc and with simulated GPUs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doctor.seeded.ground import Ground
from tests.harness import bundle, installed, leftovers
from tests.harness.installed import Vgpu

_OURS = ("etc/config.yaml", "etc/policy.json", "etc/launcher.conf")


@pytest.fixture(scope="session")
def seeded_vgpu(e2e_folder: Path, needs_root: None, needs_build: None) -> Vgpu:
    folder = e2e_folder / "seeded"
    return installed.install(folder, bundle.low_level("runc", folder))


@pytest.fixture
def ground(seeded_vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> Iterator[Ground]:
    """Afterwards configuration and log are as before, and nothing of the containers is left."""
    paths = [(seeded_vgpu.prefix / name).resolve() for name in _OURS]  # some are links into the version in use
    kept = {path: path.read_bytes() for path in paths}
    yield Ground(seeded_vgpu, c_tree, tmp_path)
    for path, data in kept.items():
        path.write_bytes(data)
        path.chmod(0o644)
    shutil.rmtree(seeded_vgpu.log, ignore_errors=True)  # it is made anew, and each test has its own entries
    assert seeded_vgpu.containers() == []
    assert leftovers.mounts(tmp_path, seeded_vgpu.state) == []
