"""A host root of real files, and one installation for all tests here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # prepared.py

import prepared

from tests.harness import bundle, installed


@pytest.fixture
def tree(tmp_path: Path, needs_root: None) -> prepared.Tree:
    return prepared.tree(tmp_path / "root")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, needs_root: None, needs_build: None) -> prepared.Installation:
    folder = tmp_path_factory.mktemp("doctor")
    return prepared.Installation(installed.install(folder, bundle.low_level("runc", folder)))


@pytest.fixture
def here(made: prepared.Installation) -> Iterator[prepared.Installation]:
    """The installation, with a fresh inventory, and nothing given out before and after."""
    made.refresh()
    yield made
    assert made.vgpu.containers() == []
