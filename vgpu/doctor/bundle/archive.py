"""The archive itself: bounded, listed before it is written, and there in whole or not at all."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from oci_hook.errors import HostError, shown

FOLDER = "vgpu-support"
LIMIT_BYTES = 8 << 20
_BLOCK = 512  # of a tar: a header, and what a file is rounded up to
_SPARE = 64 << 10  # for contents.txt and the end of the archive


@dataclass(frozen=True, slots=True)
class Item:
    """One file. lines: it may be cut, and its last lines are what counts. note: what was cut or left out, and why."""

    name: str
    data: bytes
    lines: bool = False
    note: str = ""


def fit(items: Iterable[Item], limit: int = LIMIT_BYTES) -> list[Item]:
    """What fits into `limit` bytes together, the first ones first; a cut is noted. No file takes more than half."""
    left, kept = limit - _SPARE, []
    for item in items:
        room = min(left, limit // 2) - _BLOCK
        if len(item.data) > room - room % _BLOCK:
            item = _cut(item, max(0, room - room % _BLOCK))
        kept.append(item)
        left -= _BLOCK + -(-len(item.data) // _BLOCK) * _BLOCK
    return kept


def _cut(item: Item, room: int) -> Item:
    whole = len(item.data)
    if not item.lines or room == 0:
        return replace(item, data=b"", note=f"left out: {whole} bytes do not fit")
    tail = item.data[-room:].partition(b"\n")[2]
    return replace(item, data=tail, note=f"cut: the last {len(tail)} of {whole} bytes")


def contents(items: Sequence[Item]) -> list[str]:
    """The list, as it is shown and as it is part of the archive."""
    width = max(len(item.name) for item in items) if items else 0
    return [f"{item.name:{width}}  {len(item.data):>9}  {item.note}".rstrip() for item in items]


def write(path: str, items: Sequence[Item]) -> None:
    """Mode 0600. Raises HostError VGPU-DOC-001; a file that is there already is never replaced."""
    folder = os.path.dirname(os.path.abspath(path))
    listed = Item("contents.txt", ("\n".join(contents(items)) + "\n").encode()[: _SPARE // 2])
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".vgpu-support-", dir=folder)  # 0600
        with open(descriptor, "wb") as file:
            with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
                _tar(packed, [listed, *(item for item in items if item.data)])
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename it fails where something is
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise HostError(
            "VGPU-DOC-001", f"{shown(path, 200)} cannot be written: {why}", remedy="name another with --output"
        ) from None
    finally:
        if temporary:
            os.unlink(temporary)


def _tar(stream: gzip.GzipFile, items: Iterable[Item]) -> None:
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for item in items:
            entry = tarfile.TarInfo(f"{FOLDER}/{item.name}")
            entry.size, entry.mode = len(item.data), 0o600
            archive.addfile(entry, io.BytesIO(item.data))
