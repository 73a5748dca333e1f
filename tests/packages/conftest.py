"""The two packages, and those of a release that comes after, made once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from packages import build

from vgpu import __version__


@dataclass(frozen=True, slots=True)
class Made:
    """tree: the files as they lie below /. later, later_rpm: of release 0.2.0."""

    tree: Path
    deb: Path
    rpm: Path
    later: Path
    later_rpm: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, needs_build: None) -> Made:
    folder = tmp_path_factory.mktemp("packages")
    build.tree(folder / "tree")
    shutil.copytree(folder / "tree", folder / "later")
    number = folder / "later" / build.PAYLOAD / "lib/vgpu/cli/vgpu/__init__.py"
    number.write_text(number.read_text().replace(f'"{__version__}"', '"0.2.0"'))
    return Made(
        folder / "tree",
        build.make(folder / "tree", "deb", __version__, folder / "dist"),
        build.make(folder / "tree", "rpm", __version__, folder / "dist"),
        build.make(folder / "later", "deb", "0.2.0", folder / "dist"),
        build.make(folder / "later", "rpm", "0.2.0", folder / "dist"),
    )
