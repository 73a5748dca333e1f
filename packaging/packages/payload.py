"""A folder that `vgpu install --from` takes, for any Python from 3.11 on: the installing host's own cffi is used."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from oci_hook.errors import HostError
from vgpu.installer import source

ROOT = Path(__file__).resolve().parents[2]
VENDOR = Path(__file__).with_name("vendor.txt")
_LEFT_OUT = ("RECORD", "INSTALLER", "WHEEL", "entry_points.txt")


def write(folder: Path) -> None:
    """Makes `folder` anew. Raises VGPU-INST-001 for what has not been built, VGPU-PKG-002 where pip gets no modules."""
    shutil.rmtree(folder, ignore_errors=True)
    for item in source.from_build(ROOT / "build"):
        if not Path(item.target).name.startswith("_cffi_backend"):
            _put(folder / item.target, item.data, item.mode)
    for wheel in vendored():
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                if not info.is_dir() and Path(info.filename).name not in _LEFT_OUT:
                    _put(folder / "lib/vgpu/vendor" / info.filename, archive.read(info), 0o644)


def vendored() -> list[Path]:
    """The wheels of vendor.txt, kept below build/."""
    folder = ROOT / "build/vendor"
    done = folder / ".complete"
    if not done.exists() or done.read_bytes() != VENDOR.read_bytes():
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", "-r", str(VENDOR), "-d", str(folder)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            said = run.stderr.strip().rpartition("\n")[2]
            raise HostError("VGPU-PKG-002", f"pip gets no modules: {said}", remedy="mend pip's index or its network")
        done.write_bytes(VENDOR.read_bytes())
    return sorted(folder.glob("*.whl"))


def _put(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
