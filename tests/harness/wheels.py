"""Wheels and source archives of vgpu, built as a release is, and environments that have nothing but a wheel."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"  # Debian's: what an admin has


@dataclass(frozen=True, slots=True)
class Made:
    wheel: Path
    sdist: Path


def build(out: Path, tree: Path = ROOT, environment: Mapping[str, str] | None = None, umask: int = 0o022) -> Made:
    """Both artefacts of the sources in `tree`, by the build backend of this environment. Raises RuntimeError."""
    env = {**os.environ, **(environment or {})}
    env.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    done = subprocess.run(command, cwd=tree, env=env, umask=umask, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the build in {tree} failed:\n{done.stdout}{done.stderr}")
    return Made(next(out.glob("*.whl")), next(out.glob("*.tar.gz")))


def house(name: str, requirements: Sequence[str]) -> Path:
    """A folder below build/ with the wheels of `requirements` and all that they need; downloaded once."""
    digest = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:12]
    folder = ROOT / "build/wheels" / f"{name}-{digest}"
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        # ours: Debian has python3-pip in a package of its own, which nobody needs to have
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--only-binary=:all:"]
        _run([*command, "-d", str(partial), *requirements])
        try:
            partial.rename(folder)
        except OSError:  # another run was quicker
            shutil.rmtree(partial)
    return folder


def environment(folder: Path, artefact: Path, houses: Sequence[Path]) -> Path:
    """A new virtual environment with the artefact and what it depends on, out of `houses` alone: no index is asked.

    Returns its folder of programs.
    """
    _run([PYTHON, "-m", "venv", str(folder)])
    links = [part for house in houses for part in ("--find-links", str(house))]
    install = [str(folder / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index"]
    _run([*install, *links, f"{artefact}[exporter]"])
    return folder / "bin"


def project() -> dict[str, Any]:
    loaded: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return loaded


def dependencies() -> Path:
    """The wheels of what vgpu depends on when it runs, the exporter included."""
    declared = project()["project"]
    return house("run", [*declared["dependencies"], *declared["optional-dependencies"]["exporter"]])


def build_requirements() -> Path:
    """The wheels of what builds vgpu from its sources."""
    return house("build", project()["build-system"]["requires"])


def _run(command: Sequence[str]) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd="/", env=env, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
