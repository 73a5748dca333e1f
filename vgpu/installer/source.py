"""What belongs to a version: out of a checkout's build, out of a package's files, or out of another installation."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vgpu.installer import layout
from vgpu.installer.layout import refuse

CHECKOUT = Path(__file__).resolve().parents[2]
WHEEL = CHECKOUT / "vgpu/parts"  # in an environment that a wheel was installed into: packaging/artefacts/build_hook.py
CLI_PACKAGES = ("vgpu", "runtime_config", "libcuda_wrap")
BUILD_ONLY = {
    "build.py",
    "toolchain.py",
    "sys_build.py",
    "gen",
    "generated",
    "src",
    "launcher",
    "entry",
    "parts",
    "__pycache__",
}
PACKER = "lib/vgpu/python/pack.py"
ENTRY = "lib/vgpu/cli/vgpu_cli.py"
_HOT = "lib/vgpu/python/"
_BACKEND, _SYSTEM_CALLS = f"{_HOT}_cffi_backend", f"{_HOT}oci_hook/_vgsys"
_PARTS = ("bin", "lib", "share")
COMMANDS = {"bin/vgpu": "", "bin/vgpu-doctor": "doctor "}  # script -> the words it puts first
PACKS = ("shim", "hook")
_MADE = (
    *COMMANDS,
    *(f"lib/vgpu/python/{part}.pack" for part in PACKS),
)  # at installation, with the interpreter's path or by it

CLI_ENTRY = '''\
"""The operator's command of the version that this file is part of."""

import os
import sys

here = os.path.dirname(os.path.realpath(__file__))
sys.path[:0] = [here, os.path.join(os.path.dirname(here), "python"), os.path.join(os.path.dirname(here), "vendor")]
sys.dont_write_bytecode = True
home = os.path.normpath(os.path.join(here, "../../.."))
prefix = os.path.normpath(os.path.join(home, "../.."))
if os.path.realpath(os.path.join(prefix, "current")) == home:
    home = prefix  # the version in use goes by the name that stays
if os.path.isdir(os.path.join(home, "etc")):
    os.environ.setdefault("VGPU_CONFIG", os.path.join(home, "etc/config.yaml"))

from vgpu.cli import main

main()
'''


@dataclass(frozen=True, slots=True)
class Item:
    """One file: its place below the version's folder, and its content."""

    target: str
    data: bytes
    mode: int = 0o644


def _built(folder: Path, target: str, pattern: str, mode: int = 0o644) -> Iterator[Item]:
    found = sorted(path for path in folder.glob(pattern) if path.is_file() and not path.is_symlink())
    if not found:
        raise refuse(f"{folder}/{pattern} has not been built", "run make build first")
    for path in found:
        yield Item(f"{target}/{path.name}", path.read_bytes(), mode)


def _sources(package: Path, target: str) -> Iterator[Item]:
    """What the package needs at run time."""
    for path in sorted(package.rglob("*")):
        relative = path.relative_to(package.parent)
        if path.suffix in (".py", ".h", ".yaml", ".txt") and not BUILD_ONLY & set(relative.parts):
            yield Item(f"{target}/{relative}", path.read_bytes())


def from_build(build: Path, root: Path = CHECKOUT, also: Path | None = None) -> list[Item]:
    """Of a checkout at `root` and what `make build` made of it. also: the folder `packaging`, if it is elsewhere.

    Raises VGPU-INST-001 for what is missing.
    """
    packaging = also or root / "packaging"
    found = [
        *_built(build / "launcher", "bin", "vgpu-*", 0o755),
        *_built(build / "wrapper", "lib/vgpu/wrapper", "lib*.so.1", 0o755),
        *_built(build / "sim", "lib/vgpu/sim", "lib*.so.*", 0o755),
        *_built(build / "python/oci_hook", "lib/vgpu/python/oci_hook", "_vgsys*.so", 0o755),
        *(_own_backend() if also else _built(build / "python", "lib/vgpu/python", "_cffi_backend*.so", 0o755)),
        *_sources(root / "oci_hook", "lib/vgpu/python"),
        *_built(root / "oci_hook/entry", "lib/vgpu/python", "*.py"),
        Item(PACKER, (packaging / "pack.py").read_bytes()),
        *(item for package in CLI_PACKAGES for item in _sources(root / package, "lib/vgpu/cli")),
        Item(ENTRY, CLI_ENTRY.encode()),
        *_built(packaging / "systemd", "share/systemd", "*.service"),
    ]
    return sorted(found, key=lambda item: item.target)


def from_wheel() -> list[Item]:
    """Of the environment that a wheel was installed into: as of a checkout, but for what lies in vgpu/parts."""
    return from_build(WHEEL, also=WHEEL / "packaging")


def _own_backend() -> Iterator[Item]:
    """Of the cffi that this command runs with; `for_interpreter` finds whether it fits that of containers."""
    import _cffi_backend  # type: ignore[import-untyped,unused-ignore]

    path = Path(_cffi_backend.__file__)
    yield Item(f"lib/vgpu/python/{path.name}", path.read_bytes(), 0o755)


def from_folder(home: Path) -> list[Item]:
    """Of a package's payload, or of an installed version: all but what is made at installation."""
    paths = [path for part in _PARTS for path in (home / part).rglob("*") if path.is_file() and not path.is_symlink()]
    found = []
    for path in sorted(paths):
        target = str(path.relative_to(home))
        if path.suffix != ".pyc" and target not in _MADE:
            mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            found.append(Item(target, path.read_bytes(), mode))
    if not any(item.target == ENTRY for item in found):
        raise refuse(f"{home} holds no vgpu", "name a checkout after make build, or a package's folder, with --from")
    return found


def items(given: str | None, build: str | None) -> list[Item]:
    """What this command installs. given: the folder to take it from, None: where this command itself is.

    build: of a checkout, if not its `build` folder.
    """
    if build is not None:
        return from_build(Path(build))
    home = layout.own_home() if given is None else Path(given).absolute()
    if home is None and WHEEL.is_dir():
        return from_wheel()
    if home is None or (home / "oci_hook/entry").is_dir():
        root = home or CHECKOUT
        return from_build(root / "build", root)
    return from_folder(home)


def hand_over(given: str | None, arguments: Sequence[str]) -> None:
    """Becomes the command of the package in the folder `given`: how its version is installed, it knows best."""
    entry = None if given is None else Path(given).absolute() / ENTRY
    if entry is not None and entry.is_file() and entry.parents[3] != layout.own_home():
        os.execv(sys.executable, [sys.executable, "-I", str(entry), *arguments])


def build_id(found: Iterable[Item], *more: str) -> str:
    """Twelve digits that differ if anything in the version does. more: what it will be compiled by."""
    digest = hashlib.sha256("\0".join(more).encode())
    for item in found:
        digest.update(f"\0{item.target}\0{item.mode:o}\0".encode() + hashlib.sha256(item.data).digest())
    return digest.hexdigest()[:12]


def for_interpreter(python: str, found: Sequence[Item]) -> tuple[str, list[Item]]:
    """(cache tag of the interpreter that containers will start with, `found` with the one cffi backend that it loads).

    The backend is the one that came along, or the interpreter's own. Raises VGPU-INST-001 if it is no interpreter, too
    old, or can load none of them.
    """
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.version_info >= (3, 11) or sys.exit('older than 3.11')\n"
        "import _cffi_backend, oci_hook._vgsys\n"
        "print(sys.implementation.cache_tag, _cffi_backend.__file__, sep='\\n', end='')"
    )
    with tempfile.TemporaryDirectory(prefix="vgpu-install-") as stage:
        Path(stage, "oci_hook").mkdir()
        for item in found:
            if item.target.startswith((_BACKEND, _SYSTEM_CALLS)):
                Path(stage, item.target.removeprefix(_HOT)).write_bytes(item.data)
        try:
            command = [python, "-I", "-E", "-c", code, stage]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            tag, _, backend = done.stdout.partition("\n")
            reason = "" if backend else done.stderr.strip().rpartition("\n")[2] or "it is no Python"
        except OSError as error:
            reason = error.strerror or "it cannot be started"
        if reason:
            remedy = "install python3-cffi-backend for it, or name another interpreter with --python"
            raise refuse(f"{python} cannot load vgpu's modules: {reason}", remedy)
        fits = Item(f"{_HOT}{Path(backend).name}", Path(backend).read_bytes(), 0o755)
    others = [item for item in found if not item.target.startswith(_BACKEND)]
    return tag, sorted([*others, fits], key=lambda item: item.target)
