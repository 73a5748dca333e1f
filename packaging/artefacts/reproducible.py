"""python -m artefacts.reproducible [--fresh]: builds wheel and source archive twice, as differently as can be.

Once here, once from the unpacked source archive in another folder, with another umask, time zone, language, home and
temporary folder, file times and moment. --fresh: with an empty compiler cache each time (minutes). Prints the digests;
exit code 1 if one byte differs. SOURCE_DATE_EPOCH is passed on: it is the date of the files in the archives.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from artefacts import archive

ROOT = Path(__file__).resolve().parents[2]
ENDINGS = ("*.whl", "*.tar.gz")
ELSEWHERE = {"TZ": "Pacific/Kiritimati", "LANG": "C", "LC_ALL": "C", "PYTHONHASHSEED": "7", "COLUMNS": "40"}
LONG_AGO = 978307200  # seconds; the time of every source file in the second build


def build(tree: Path, out: Path, environment: Mapping[str, str], umask: int) -> None:
    """Raises RuntimeError, with what the build said."""
    env = {**os.environ, **environment}
    env.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    done = subprocess.run(command, cwd=tree, env=env, umask=umask, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the build in {tree} failed:\n{done.stdout}{done.stderr}")


def differences(first: Path, second: Path) -> list[str]:
    """What is not the same in two folders of artefacts: the file, or the files in it."""
    found = []
    for pattern in ENDINGS:
        one, other = next(first.glob(pattern)), next(second.glob(pattern))
        if one.name != other.name:
            found.append(f"{one.name} is called {other.name}")
        if one.read_bytes() == other.read_bytes():
            continue
        left, right = archive.read(one).files, archive.read(other).files
        inner = sorted(path for path in left.keys() | right.keys() if left.get(path) != right.get(path))
        found.append(f"{one.name}: {', '.join(inner) or 'the archive itself: order, dates or modes'}")
    return found


def twice(folder: Path, *, fresh: bool) -> list[str]:
    """Builds into folder/1 and folder/2. Returns `differences`."""
    caches = [{"ZIG_GLOBAL_CACHE_DIR": str(folder / f"cache-{number}")} if fresh else {} for number in (1, 2)]
    first, second = folder / "1", folder / "2"
    build(ROOT, first, caches[0], 0o022)
    tree = _unpacked(next(first.glob("*.tar.gz")), folder / "quite/another place")
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    moved = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")} if fresh else {"TMPDIR": str(folder / "tmp")}
    build(tree, second, {**ELSEWHERE, **moved, **caches[1]}, 0o077)
    return differences(first, second)


def _unpacked(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as source:
        source.extractall(folder)  # our own, a moment ago
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() or path.stat().st_mode & 0o100 else 0o600)
        os.utime(path, (LONG_AGO, LONG_AGO))
    return next(folder.iterdir())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m artefacts.reproducible", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--fresh", action="store_true", help="compile everything anew, twice")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="vgpu-twice-") as name:
        folder = Path(name)
        found = twice(folder, fresh=options.fresh)
        for path in sorted(path for pattern in ENDINGS for path in (folder / "1").glob(pattern)):
            print(hashlib.sha256(path.read_bytes()).hexdigest(), path.name)
    for line in found:
        print(f"differs: {line}", file=sys.stderr)
    if not found:
        print("both builds gave the same bytes")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
