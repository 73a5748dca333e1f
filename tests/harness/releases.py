"""A release that comes after the installed one: the same files with another number, as a package would bring them."""

from __future__ import annotations

import shutil
from pathlib import Path


def later(home: Path, folder: Path, release: str, *changes: tuple[str, str, str]) -> Path:
    """Copies the installed version in `home` to `folder` as `release`. changes: (file, text in it, text instead)."""
    for part in ("bin", "lib", "share"):
        shutil.copytree(home / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    number = f'"{home.name.rpartition("-")[0]}"'
    for name, old, new in (("lib/vgpu/cli/vgpu/__init__.py", number, f'"{release}"'), *changes):
        path = folder / name
        text = path.read_text()
        assert old in text, (path, old)
        path.write_text(text.replace(old, new))
    return folder
