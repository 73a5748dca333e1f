"""One wheel and one source archive for all tests of this folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness import wheels

# minutes, or Helm, which is large: `make artefacts-test` runs them, `make chart` the latter
collect_ignore = (
    [] if os.environ.get("VGPU_LONG_TESTS") else ["test_sdist_install.py", "test_chart.py", "test_arm64.py"]
)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> wheels.Made:
    return wheels.build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def programs(made: wheels.Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that has the wheel and what it depends on, and nothing of this checkout."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    return wheels.environment(folder, made.wheel, [wheels.dependencies()])
