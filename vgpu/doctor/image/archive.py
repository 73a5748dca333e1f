"""Images as engines pack them: what `docker save` writes, and the OCI image layout, as a folder or in a tar archive.

Source: OCI image specification (image-layout.md, manifest.md, config.md), and Docker's manifest.json.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

from oci_hook.errors import ImageError, shown
from oci_hook.rootview import RootView
from vgpu.doctor.image import layer
from vgpu.doctor.image.layer import Budget, Peeked, Stream, broken
from vgpu.doctor.image.tree import Layer, Tree

_MAX_DOCUMENT = 8 << 20  # bytes of one manifest or configuration
_MAX_LAYERS = 500  # Docker takes 127
_MAX_DEPTH = 3  # of an index in an index
_DIGEST = re.compile(r"(sha256|sha384|sha512):([0-9a-f]{32,128})")
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # as images say it -> as the kernel says it

At = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Config:
    """What the image says about how it is to be started. machine: as os.uname() says it, "" if it does not say."""

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    cwd: str = "/"
    labels: dict[str, str] = field(default_factory=dict)
    machine: str = ""


class Store(Protocol):
    """Where the parts of an image lie. Names are paths in the layout."""

    def document(self, name: str) -> Any | None:
        """A JSON file, None if there is none."""

    def layer(self, name: str) -> Layer | None: ...


def _json(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise broken(f"has {shown(name, 200)}, which is not JSON") from None


class FolderStore:
    """A layout, or the unpacked archive of `docker save`, in a folder that nobody trusts."""

    def __init__(self, folder: str, budget: Budget, at: At) -> None:
        self._root = RootView(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        self._budget, self._at = budget, at

    def close(self) -> None:
        os.close(self._root.fd)

    def document(self, name: str) -> Any | None:
        data = self._root.read(name, _MAX_DOCUMENT)
        return None if data is None else _json(data, name)

    def layer(self, name: str) -> Layer | None:
        descriptor = self._root.open_file(name)
        if descriptor is None:
            return None
        self._at(name)
        with open(descriptor, "rb") as stream:
            return layer.read(stream, self._budget)


class StreamStore:
    """An archive that is read once: every layer and every document in it, before the manifest tells which count."""

    def __init__(self, stream: Stream, budget: Budget, at: At) -> None:
        self._documents: dict[str, Any] = {}
        self._layers: dict[str, Layer] = {}
        self._same: dict[str, str] = {}  # old versions of Docker link layers that are the same
        with layer.reading():
            members = layer.Members(layer.plain(stream), budget)
            for member in members:
                self._read(members, member, budget, at)

    def _read(self, members: layer.Members, member: tarfile.TarInfo, budget: Budget, at: At) -> None:
        name = "/".join(layer.parts(member.name))
        if member.issym() or member.islnk():
            target = posixpath.join(posixpath.dirname(name), member.linkname) if member.issym() else member.linkname
            self._same[name] = posixpath.normpath(target)
        elif member.isreg():
            at(name)
            with members.open(member) as content:
                self._take(name, content, member.size, budget)

    def _take(self, name: str, content: IO[bytes], size: int, budget: Budget) -> None:
        peeked = Peeked(content)
        if peeked.head[:1] in (b"{", b"[") and size <= _MAX_DOCUMENT:
            budget.take("kept", size)
            self._documents[name] = _json(peeked.head + content.read(), name)
        elif layer.is_packed(peeked.head) or layer.is_tar(peeked.head):
            self._layers[name] = layer.read(peeked, budget)

    def document(self, name: str) -> Any | None:
        return self._documents.get(name)

    def layer(self, name: str) -> Layer | None:
        return self._layers.get(self._same.get(name, name))


def load(store: Store, machine: str, reference: str = "") -> tuple[Tree, Config]:
    """The image of a store. machine: which of several is taken, reference: its name in the layout, or "".

    Raises ImageError VGPU-IMG-006 if there is none, -007 if it is broken.
    """
    index = store.document("index.json")
    if index is not None and store.document("oci-layout") is not None:
        manifest = _manifest(store, index, machine, reference)
        names = [_blob(_text(one, "digest")) for one in _list(manifest, "layers")]
        config = _blob(_text(_object(manifest, "config"), "digest"))
    else:
        names, config = _saved(store.document("manifest.json"), reference)
    if len(names) > _MAX_LAYERS:
        raise broken(f"has an image of {len(names)} layers")
    tree = Tree()
    for name in names:
        found = store.layer(name)
        if found is None:
            raise broken(f"lacks the layer {shown(name, 100)}")
        tree.apply(found)
    document = store.document(config)
    if document is None:
        raise broken(f"lacks the configuration {shown(config, 100)}")
    return tree, read_config(document)


def _saved(manifest: Any, reference: str) -> tuple[list[str], str]:
    """Layers and configuration of manifest.json, Docker's own."""
    if not isinstance(manifest, list) or not manifest:
        raise _no_image("it has neither index.json nor manifest.json")
    tags = [(_list(one, "RepoTags") if one.get("RepoTags") else []) for one in manifest if isinstance(one, dict)]
    chosen = next((one for one, names in zip(manifest, tags, strict=False) if reference in names), None)
    if chosen is None and (reference or not isinstance(manifest[0], dict)):
        raise _no_image(f"it has no image {shown(reference)}, but {shown(tags, 200)}")
    image = chosen or manifest[0]
    return ["/".join(layer.parts(_is_text(name))) for name in _list(image, "Layers")], _text(image, "Config")


def _manifest(store: Store, index: Any, machine: str, reference: str, depth: int = 0) -> Any:
    listed = [one for one in _list(index, "manifests") if isinstance(one, dict)]
    if reference:
        key = "org.opencontainers.image.ref.name"
        listed = [one for one in listed if (one.get("annotations") or {}).get(key) == reference]
    if not listed or depth > _MAX_DEPTH:
        raise _no_image(f"its index has no image {shown(reference)}" if reference else "its index is empty")
    fitting = [one for one in listed if _machine((one.get("platform") or {}).get("architecture")) == machine]
    chosen = (fitting or listed)[0]
    name = _blob(_text(chosen, "digest"))
    document = store.document(name)
    if document is None:
        raise broken(f"lacks the manifest {shown(name, 100)}")
    if isinstance(document, dict) and "manifests" in document:
        return _manifest(store, document, machine, "", depth + 1)
    return document


def read_config(document: Any) -> Config:
    """Of an image's configuration, as OCI and Docker have it."""
    inner = document.get("config") if isinstance(document, dict) else None
    inner = inner if isinstance(inner, dict) else {}
    labels = inner.get("Labels")
    architecture = document.get("architecture") if isinstance(document, dict) else None
    return Config(
        env=_texts(inner.get("Env")),
        entrypoint=_texts(inner.get("Entrypoint")),
        cmd=_texts(inner.get("Cmd")),
        cwd=inner["WorkingDir"] if isinstance(inner.get("WorkingDir"), str) and inner["WorkingDir"] else "/",
        labels={str(name): str(value) for name, value in labels.items()} if isinstance(labels, dict) else {},
        machine=_machine(architecture),
    )


def _machine(architecture: Any) -> str:
    return MACHINES.get(architecture, architecture) if isinstance(architecture, str) else ""


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()


def _no_image(why: str) -> ImageError:
    return ImageError(
        "VGPU-IMG-006",
        f"there is no image in the archive: {why}",
        remedy="write it with docker save, podman save or skopeo copy; LAYOUT:NAME names one of several",
    )


def _object(value: Any, key: str) -> Any:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, dict):
        raise broken(f"has a manifest without {key}")
    return found


def _list(value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise broken(f"has a manifest without {key}")
    return found


def _text(value: Any, key: str) -> str:
    return _is_text(value.get(key) if isinstance(value, dict) else None)


def _is_text(value: Any) -> str:
    if not isinstance(value, str):
        raise broken(f"has a manifest with {shown(value)} where a name belongs")
    return value


def _blob(digest: str) -> str:
    """Where a layout keeps it. The digest is part of a path, so it is looked at first."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise broken(f"has the digest {shown(digest, 100)}")
    return f"blobs/{match[1]}/{match[2]}"
