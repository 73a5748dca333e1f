"""The folders of a prefix, and the two links that say which version is in use.

    <prefix>/versions/<name>/{bin,lib,share,etc,manifest.json}   one version; complete, as if it were alone
    <prefix>/current, previous -> versions/<name>
    <prefix>/bin, lib, share -> current/...                      what engines and people name: it never changes
    <prefix>/etc/config.yaml                                     the admin's, for all versions
    <prefix>/etc/policy.json, launcher.conf -> ../current/etc/...

A new `current` link is made beside the old one and renamed over it: there is no moment without one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oci_hook.errors import HostError, VgpuError, shown

SYSTEM_PREFIX = "/opt/vgpu"
MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1
CURRENT, PREVIOUS = "current", "previous"
LINKS = {
    **{name: f"{CURRENT}/{name}" for name in ("bin", "lib", "share")},
    **{f"etc/{name}": f"../{CURRENT}/etc/{name}" for name in ("policy.json", "launcher.conf")},
}
UNFINISHED = ".new-"
_OWN_PLACE = ("lib", "vgpu", "cli", "vgpu", "installer")
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+~-]*-[0-9a-f]{12}")


def refuse(message: str, remedy: str, code: str = "VGPU-INST-001") -> VgpuError:
    return HostError(code, message, remedy=remedy)


@dataclass(frozen=True, slots=True)
class Version:
    """One installed version. files: path below its folder -> SHA-256. reads: file kind -> layouts that it understands.

    wrapper: SHA-256 of its libcuda, the first twelve digits.
    """

    home: Path
    release: str
    files: dict[str, str] = field(default_factory=dict)
    reads: dict[str, list[int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.home.name

    @property
    def wrapper(self) -> str:
        return self.files.get("lib/vgpu/wrapper/libcuda.so.1", "")[:12]


@dataclass(frozen=True, slots=True)
class Prefix:
    """Where vgpu is, or will be, installed. path: absolute."""

    path: Path

    @property
    def versions(self) -> Path:
        return self.path / "versions"

    @property
    def config(self) -> Path:
        return self.path / "etc/config.yaml"

    def home(self, link: str) -> Path | None:
        """The version's folder that `current` or `previous` names, None if there is none."""
        try:
            target = os.readlink(self.path / link)
        except OSError:
            return None
        home = self.path / target
        return home if home.parent == self.versions and home.is_dir() else None

    def current(self) -> Version | None:
        home = self.home(CURRENT)
        return None if home is None else read(home)

    def previous(self) -> Version | None:
        home = self.home(PREVIOUS)
        return None if home is None or home == self.home(CURRENT) else read(home)

    def installed(self) -> list[Version]:
        """All versions, by name. Raises VGPU-INST-001 for one that this command cannot read."""
        try:
            names = sorted(os.listdir(self.versions))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [read(self.versions / name) for name in names if _NAME.fullmatch(name)]

    def has(self, link: str) -> bool:
        """Whether `link` is there, and is one that an installer of ours has made: /bin -> usr/bin is not."""
        try:
            target = os.readlink(self.path / link)
        except OSError:
            return False
        return target == LINKS[link] if link in LINKS else target.startswith("versions/")

    def require_room(self) -> None:
        """Raises VGPU-INST-001 where something of somebody else is in the place of one of our links."""
        for link in (CURRENT, PREVIOUS, *LINKS):
            path = self.path / link
            if os.path.lexists(path) and not self.has(link):
                remedy = f"choose another --prefix, one that is vgpu's alone; or move {path} away"
                raise refuse(f"{path} is not of vgpu's making", remedy)

    def point(self, link: str, target: str) -> bool:
        """Makes `link` lead to `target` in one step; False if it does so already. What it is now is ours."""
        path = self.path / link
        if path.is_symlink() and os.readlink(path) == target:
            return False
        temporary = path.parent / f"{UNFINISHED}{path.name}"
        temporary.unlink(missing_ok=True)  # of one that was killed; the lock is ours
        temporary.symlink_to(target)
        os.rename(temporary, path)
        sync(path.parent)
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One installer at a time. The folder itself is the lock: nothing of it is left behind."""
        folder(self.path)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise refuse(f"another installer is at work in {self.path}", "wait for it to end") from None
            yield
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What the system refuses is told as a refusal, with the path that it is about."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename}: {(error.strerror or '').lower()}"
        remedy = "run it as root, with room on the file system, or choose another --prefix; nothing is half done"
        raise HostError("VGPU-CFG-002", what, remedy=remedy) from None


def of(path: str) -> Prefix:
    return Prefix(Path(os.path.abspath(path)))


def own_home() -> Path | None:
    """The installed version, or the package's payload, that this command is part of; None in a checkout or a venv."""
    package = Path(__file__).resolve().parent
    return Path(*package.parts[:-5]) if package.parts[-5:] == _OWN_PLACE else None


def own_prefix() -> str:
    """The prefix that this command belongs to, else the system's."""
    home = own_home()
    return of_home(str(home)) if home is not None and home.parent.name == "versions" else SYSTEM_PREFIX


def of_home(home: str) -> str:
    """The prefix of a version's folder: what outlives the version names that. Another folder: itself."""
    path = Path(home)
    return str(path.parents[1]) if path.parent.name == "versions" else home


def read(home: Path) -> Version:
    """Raises VGPU-INST-001: a manifest that is missing, damaged or of a newer vgpu."""
    path = home / MANIFEST
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        schema = int(found["schema"])
        if schema > MANIFEST_SCHEMA:
            newer = f"{path} is of layout {schema}, this vgpu knows {MANIFEST_SCHEMA}"
            raise refuse(newer, f"use the newer one's own command, {home}/bin/vgpu")
        files = {str(name): str(digest) for name, digest in found["files"].items()}
        reads = {str(kind): [int(number) for number in numbers] for kind, numbers in found["reads"].items()}
        return Version(home, str(found["version"]), files, reads)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise refuse(
            f"{path} cannot be read: {shown(str(error), 120)}", "remove that folder and install again"
        ) from None


def folder(path: Path) -> None:
    """`path` and what is above it, readable by all and writable by us alone, whatever the umask."""
    missing = []
    for one in (path, *path.parents):
        if one.exists():
            break
        missing.append(one)
    for one in reversed(missing):
        one.mkdir()
        one.chmod(0o755)


def put(path: Path, data: bytes, mode: int = 0o644) -> bool:
    """Makes `data` the content of the file at `path`, all or nothing; False if it is there already, as it should be.

    Who has the old file open or mounted keeps it.
    """
    folder(path.parent)
    with contextlib.suppress(OSError):
        if not path.is_symlink() and path.read_bytes() == data and path.stat().st_mode & 0o7777 == mode:
            return False
    descriptor, temporary = tempfile.mkstemp(prefix=UNFINISHED, dir=path.parent)
    try:
        with open(descriptor, "wb") as stream:
            os.fchmod(descriptor, mode)
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return True


def sync(path: Path) -> None:
    """What was renamed into the folder `path` survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_empty(path: Path) -> None:
    """Takes the folder away, unless something of somebody else is in it."""
    with contextlib.suppress(OSError):
        path.rmdir()
