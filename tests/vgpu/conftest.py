"""What the operator's command and the installer need of a build: not the container's programs."""

from __future__ import annotations

from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "build"


@pytest.fixture(scope="session")
def needs_build() -> None:
    parts = ("launcher/vgpu-runtime", "wrapper/libcuda.so.1", "wrapper/libnvidia-ml.so.1", "sim/libcuda.so.1", "python")
    missing = [part for part in parts if not (BUILD / part).exists()]
    if missing:
        pytest.skip(f"run `make build` first: {', '.join(missing)}")


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """As much of an installation as an engine's configuration names: a program at the launcher's place."""
    launcher = tmp_path / "prefix/bin/vgpu-runtime"
    launcher.parent.mkdir(parents=True)
    launcher.write_text("#!/bin/sh\n")
    launcher.chmod(0o755)
    return tmp_path / "prefix"
