"""python -m artefacts.context DIR --wheel FILE: what the images of packaging/images are built from, without a network.

DIR/wheels gets vgpu's wheel, what it depends on, and pip, from pip's usual index; the rest of DIR is packaging/images.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[1] / "images"


def make(out: Path, wheel: Path, others: Sequence[Path] | None = None) -> None:
    """others: wheels of the dependencies and of pip; None: they are downloaded, for the Python that runs this.

    Raises subprocess.CalledProcessError where pip cannot.
    """
    shutil.copytree(IMAGES, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    wheels = out / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir()
    if others is None:
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--only-binary=:all:"]
        subprocess.run([*command, "-d", str(wheels), f"{wheel}[exporter]", "pip"], check=True)
    for path in (wheel, *(others or ())):
        shutil.copy2(path, wheels)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m artefacts.context", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--wheel", type=Path, required=True)
    options = parser.parse_args(arguments)
    make(options.out, options.wheel)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
