"""The files of an artefact: a wheel, a source archive, a .deb, an .rpm, or a folder such as an installed prefix."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from oci_hook.errors import HostError

_MAX_BYTES = 1 << 30  # of one artefact, unpacked: ours have a few megabytes


@dataclass(frozen=True, slots=True)
class Artefact:
    """name: of its file or folder. files: path inside -> content; a link is told apart, in links: path -> target."""

    name: str
    files: Mapping[str, bytes]
    links: Mapping[str, str]


def read(path: Path) -> Artefact:
    """Raises VGPU-PKG-001 for what is no artefact, cannot be read, or is larger than anything that we make."""
    try:
        files, links = _reader(path)(path)
    except (
        OSError,
        ValueError,
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        subprocess.CalledProcessError,
    ) as error:
        raise _refused(path, f"it cannot be read: {error}") from None
    if sum(map(len, files.values())) > _MAX_BYTES:
        raise _refused(path, "it holds more than 1 GiB")
    return Artefact(path.resolve().name, files, links)


_Content = tuple[dict[str, bytes], dict[str, str]]


def _reader(path: Path) -> Callable[[Path], _Content]:
    if path.is_dir():
        return _folder
    readers = {".whl": _zip, ".tar.gz": _tar, ".deb": _deb, ".rpm": _rpm}
    for ending, reader in readers.items():
        if path.name.endswith(ending):
            return reader
    raise _refused(path, "it is no artefact of a kind that is known")


def _refused(path: Path, why: str) -> HostError:
    return HostError(
        "VGPU-PKG-001", f"{path}: {why}", remedy="name a .whl, .tar.gz, .deb, .rpm, or an installed prefix"
    )


def _folder(path: Path) -> _Content:
    files, links = {}, {}
    for found in _below(path):
        name = str(found.relative_to(path))
        if found.is_symlink():
            links[name] = os.readlink(found)
        elif found.is_file():
            files[name] = found.read_bytes()
    return files, links


def _below(path: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(path):
        for name in sorted((*names, *(name for name in folders if Path(folder, name).is_symlink()))):
            yield Path(folder, name)


def _zip(path: Path) -> _Content:
    with zipfile.ZipFile(path) as archive:
        names = [info for info in archive.infolist() if not info.is_dir()]
        if sum(info.file_size for info in names) > _MAX_BYTES:
            raise ValueError("it unpacks to more than 1 GiB")
        return {info.filename: archive.read(info) for info in names}, {}


def _tar(path: Path) -> _Content:
    with tarfile.open(path) as archive:
        return _members(archive)


def _members(archive: tarfile.TarFile) -> _Content:
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    for member in archive:
        name = member.name.removeprefix("./")
        if member.issym():
            links[name] = member.linkname
        elif member.isfile() and (stream := archive.extractfile(member)) is not None:
            files[name] = stream.read()
    return files, links


def _deb(path: Path) -> _Content:
    return _members(tarfile.open(fileobj=io.BytesIO(_output("dpkg-deb", "--fsys-tarfile", str(path)))))


def _rpm(path: Path) -> _Content:
    with tarfile.open(fileobj=io.BytesIO(_output("rpm2archive", "-n", "-", stdin=path.read_bytes()))) as archive:
        return _members(archive)


def _output(program: str, *arguments: str, stdin: bytes | None = None) -> bytes:
    try:
        return subprocess.run([program, *arguments], input=stdin, check=True, capture_output=True, timeout=300).stdout
    except FileNotFoundError:
        raise ValueError(f"that needs the program {program}") from None
