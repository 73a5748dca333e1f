"""What `make gpu-check-bundle` makes, unpacked, for a box of the tests' own."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.gpu import bundle


@pytest.fixture(scope="session")
def carried() -> Iterator[Path]:
    """The folder vgpu-gpu-check. Outside pytest's own folder, because another user must be able to reach it."""
    out = Path(tempfile.mkdtemp(prefix="vgpu-bundle-"))
    out.chmod(0o755)
    place = out / "place"
    place.mkdir()
    place.chmod(0o777)
    archive = bundle.make(out, platform.machine(), place / "box")
    subprocess.run(["tar", "-C", out, "-xzf", archive], check=True, timeout=60)
    yield out / bundle.NAME
    shutil.rmtree(out)
