"""Images as engines pack them, made from lists of entries: layers, `docker save`, OCI layouts; also bad ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of an archive. kind: of tarfile, as tarfile.SYMTYPE; target: of a link."""

    name: str
    data: bytes = b""
    kind: bytes = tarfile.REGTYPE
    target: str = ""
    mode: int = 0o755


def folder(name: str) -> Entry:
    return Entry(name, kind=tarfile.DIRTYPE)


def link(name: str, target: str) -> Entry:
    return Entry(name, kind=tarfile.SYMTYPE, target=target)


def hard(name: str, target: str) -> Entry:
    return Entry(name, kind=tarfile.LNKTYPE, target=target)


def of_tree(root: Path) -> list[Entry]:
    """All of a root file tree."""
    found = []
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found.append(link(name, str(path.readlink())))
        elif path.is_dir():
            found.append(folder(name))
        elif path.is_file():
            found.append(Entry(name, path.read_bytes(), mode=path.stat().st_mode & 0o777))
    return found


def layer(entries: Iterable[Entry]) -> bytes:
    """A tar archive."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for entry in entries:
            member = tarfile.TarInfo(entry.name)
            member.type, member.linkname, member.mode = entry.kind, entry.target, entry.mode
            member.size = len(entry.data)
            archive.addfile(member, io.BytesIO(entry.data))
    return raw.getvalue()


def document(layers: Sequence[bytes] = (), /, **config: Any) -> bytes:
    """An image's configuration; `config` as Env=["A=b"]. layers: as they are unpacked, for an engine to run it."""
    unpacked = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    root = {"rootfs": {"type": "layers", "diff_ids": unpacked}} if unpacked else {}
    return json.dumps({"architecture": "amd64", "os": "linux", "config": config, **root}).encode()


def saved(layers: Sequence[bytes], config: bytes, tag: str = "test:latest") -> bytes:
    """As `docker save` writes it; the manifest comes last, after all layers."""
    names = [f"{number:064x}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": names}]
    parts = [Entry(name, data) for name, data in zip(names, layers, strict=True)]
    return layer([*parts, Entry("config.json", config), Entry("manifest.json", json.dumps(manifest).encode())])


def layout(layers: Sequence[bytes], config: bytes, *, packed: bool = True) -> list[Entry]:
    """An OCI layout: its files. packed: layers are gzip archives."""
    blobs = [gzip.compress(data, 1) if packed else data for data in layers]
    manifest = {"schemaVersion": 2, "config": _described(config), "layers": [_described(blob) for blob in blobs]}
    text = json.dumps(manifest).encode()
    described = {**_described(text), "platform": {"architecture": "amd64", "os": "linux"}}
    index = {"schemaVersion": 2, "manifests": [described]}
    found = [Entry("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'), Entry("index.json", json.dumps(index).encode())]
    return found + [Entry(f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob) for blob in (*blobs, config, text)]


def _described(blob: bytes) -> dict[str, Any]:
    return {"digest": f"sha256:{hashlib.sha256(blob).hexdigest()}", "size": len(blob)}


def written(entries: Iterable[Entry], folder: Path) -> Path:
    """The plain files of `entries`, below a folder."""
    for entry in entries:
        path = folder / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(entry.data)
    return folder
