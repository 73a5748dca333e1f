"""Where an image is: a folder, a layout, an archive, or an engine's store. `opened` tells which and hands it over."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from oci_hook.errors import ImageError, shown
from vgpu.doctor.image import archive, layer
from vgpu.doctor.image.archive import At, Config
from vgpu.doctor.image.folder import Folder
from vgpu.doctor.image.layer import Budget
from vgpu.doctor.image.tree import Tree

_MARKS = ("manifest.json", "index.json")  # an archive with one of these is an image, else it is a file tree


@dataclass(frozen=True, slots=True)
class Image:
    """An image that can be looked at. kind: "folder", "layout", "archive", "tree" (a tar of files) or "docker"."""

    name: str
    kind: str
    root: Folder | Tree
    config: Config


class _Chunks:
    """What Docker's client gives piece by piece, as a stream."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def read(self, size: int = -1, /) -> bytes:
        while not self._rest:
            try:
                self._rest = next(self._chunks)
            except StopIteration:
                return b""
        data, self._rest = (self._rest, b"") if size < 0 else (self._rest[:size], self._rest[size:])
        return data


@contextlib.contextmanager
def opened(name: str, machine: str, docker: str, at: At) -> Iterator[Image]:
    """name: a path, LAYOUT:NAME, or what Docker knows the image by. machine: which of several processors' is taken.

    docker: its socket's address. at: told what is being read. Raises ImageError VGPU-IMG-006 or -007.
    """
    path, reference = _split(name)
    try:
        if os.path.isdir(path):
            yield from _of_folder(name, path, reference, machine, at)
        elif os.path.lexists(path):
            yield _of_file(name, path, reference, machine, at)
        elif name.startswith(("/", "./", "../")):
            raise _not_there(name, "there is no such file or folder")
        else:
            yield _of_docker(name, machine, docker, at)
    except OSError as error:
        raise _not_there(name, error.strerror or str(error)) from None


def _split(name: str) -> tuple[str, str]:
    """PATH or PATH:NAME, where there is such a path; a path may have colons itself."""
    ends = [len(name), *(place for place, char in enumerate(name) if char == ":")]
    return next(((name[:end], name[end + 1 :]) for end in ends if end and os.path.lexists(name[:end])), ("", ""))


def _not_there(name: str, why: str) -> ImageError:
    return ImageError(
        "VGPU-IMG-006",
        f"{shown(name, 200)} cannot be read: {why}",
        remedy="name a folder, an archive of docker save or an OCI layout by its path, or an image that Docker has",
    )


def _of_folder(name: str, path: str, reference: str, machine: str, at: At) -> Iterator[Image]:
    packed = os.path.isfile(f"{path}/oci-layout") or (
        os.path.isfile(f"{path}/manifest.json") and not os.path.isdir(f"{path}/usr")
    )
    if packed:
        with contextlib.closing(archive.FolderStore(path, Budget(), at)) as store:
            yield Image(name, "layout", *archive.load(store, machine, reference))
    else:
        with contextlib.closing(Folder(path)) as folder:
            yield Image(name, "folder", folder, Config())


def _of_file(name: str, path: str, reference: str, machine: str, at: At) -> Image:
    """An archive is read once to see what it is, and once more for what is in it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO does not block
    with open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _not_there(name, "it is neither a folder nor a regular file")
        with layer.reading():
            head = layer.plain(stream).head
        if not layer.is_tar(head):
            raise _not_there(name, "it is no tar archive")
        stream.seek(0)
        at("what the archive is")
        members = layer.Members(layer.plain(stream), Budget(status.st_size))
        packed = any("/".join(layer.parts(member.name)) in _MARKS for member in members)
        stream.seek(0)
        budget = Budget(status.st_size)
        if not packed:
            return Image(name, "tree", Tree([layer.read(stream, budget)]), Config())
        return Image(name, "archive", *archive.load(archive.StreamStore(stream, budget, at), machine, reference))


def _of_docker(name: str, machine: str, address: str, at: At) -> Image:
    import docker
    from docker.errors import DockerException, ImageNotFound

    at("asking Docker")
    client: Any = None
    try:
        client = docker.DockerClient(base_url=address, timeout=120)
        found = client.images.get(name)
        chunks = found.save(chunk_size=1 << 20)
        store = archive.StreamStore(_Chunks(iter(chunks)), Budget(), at)
    except ImageNotFound:
        raise ImageError(
            "VGPU-IMG-006", f"Docker has no image {shown(name, 200)}", remedy=f"docker pull {name}, or name a folder"
        ) from None
    except (DockerException, ValueError) as error:
        raise _not_there(name, f"Docker at {address} does not give it: {shown(str(error), 200)}") from None
    finally:
        if client is not None:
            client.close()
    return Image(name, "docker", *archive.load(store, machine))
