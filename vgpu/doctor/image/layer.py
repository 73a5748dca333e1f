"""Reads a layer, a tar archive that nobody trusts, from a stream: names and links, and the facts of every ELF file.

One pass, nothing is unpacked. A name that leads upwards, a header that is too long, more entries or bytes than any
image has: the archive is refused (VGPU-IMG-007), as an engine would refuse it.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from typing import IO, Protocol

from oci_hook import elf, ldcache
from oci_hook.errors import ImageError, shown
from vgpu.doctor.image import zstd
from vgpu.doctor.image.tree import FILE, FOLDER, LINK, OTHER, Layer, Node, Parts

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
_ELF_MAX = 8 << 30  # bytes of one library; the largest known has 3 GiB
_IN_MEMORY = 32 << 20  # an ELF file up to this is not written to a temporary file
_MAX_PATH = 4096  # characters; no file system has more
_MAX_HEADER = 1 << 20  # bytes of one long name or one set of attributes
_KEPT = {  # files whose text is wanted, by name, with the most bytes of them
    "ld.so.cache": ldcache.MAX_BYTES,
    "os-release": 1 << 16, "alpine-release": 256, "version.json": 1 << 16, "version.txt": 256,
}  # fmt: skip
_GZIP = b"\x1f\x8b"
_HEAD = 256  # bytes kept of programs that are no ELF file: `#!` and an interpreter
_BROKEN = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError, KeyError, IndexError, zlib.error)


class Stream(Protocol):
    """What an archive is read from; it cannot be wound back."""

    def read(self, size: int = -1, /) -> bytes: ...


def broken(what: str) -> ImageError:
    return ImageError("VGPU-IMG-007", f"the archive {what}", remedy="save the image again, and check its digest")


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Whatever a library says of a broken archive becomes the one error."""
    try:
        yield
    except (*_BROKEN, OSError) as error:
        raise broken(f"cannot be read: {shown(str(error), 100)}") from None


class Budget:
    """What may be taken of one image in all; no image comes near it, and a bomb does not get past it.

    size: bytes of the packed image, 0 if unknown.
    """

    def __init__(self, size: int = 0) -> None:
        self.bytes = max(4 << 30, min(size * 100, 256 << 30)) if size else 256 << 30
        self.entries = 1_000_000
        self.parts = 20_000_000  # of all names
        self.names = 256 << 20  # characters of all names and links
        self.kept = 64 << 20  # bytes of files' text

    def take(self, what: str, amount: int) -> None:
        left = getattr(self, what) - amount
        setattr(self, what, left)
        if left < 0:
            words = {"bytes": "bytes when unpacked", "entries": "files", "parts": "folders", "kept": "text files"}
            raise broken(f"has more {words.get(what, what)} than any image")


class Counted(io.RawIOBase):
    """A stream whose bytes count."""

    def __init__(self, stream: Stream, budget: Budget) -> None:
        self.stream, self.budget = stream, budget

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(min(size, 1 << 20) if size >= 0 else 1 << 20)
        self.budget.take("bytes", len(data))
        return data


class Peeked:
    """A stream whose first bytes have been looked at."""

    def __init__(self, stream: Stream, size: int = 512) -> None:
        self.stream = stream
        self.head = b""
        while len(self.head) < size and (more := stream.read(size - len(self.head))):
            self.head += more
        self._rest = self.head

    def read(self, size: int = -1, /) -> bytes:
        if not self._rest:
            return self.stream.read(size)
        data, self._rest = (self._rest, b"") if size < 0 else (self._rest[:size], self._rest[size:])
        return data


class Member(tarfile.TarInfo):
    """Refuses the headers that tarfile would read into memory whole, whatever they say their size is."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if not self.isreg() and self.size > _MAX_HEADER and self.type not in tarfile.REGULAR_TYPES:
            raise broken(f"has a header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc,no-any-return]  # tarfile's own place for this


def is_packed(head: bytes) -> bool:
    return head.startswith((_GZIP, zstd.MARK))


def is_tar(head: bytes) -> bool:
    """By the mark of POSIX and GNU archives; the end of an archive, 512 zeros, is an empty one."""
    return head[257:262] == b"ustar" or (len(head) == 512 and not any(head))


def plain(stream: Stream) -> Peeked:
    """The archive, unpacked where it is packed. Raises ImageError for a packing that is not known."""
    peeked = Peeked(stream)
    if peeked.head.startswith(zstd.MARK):
        return Peeked(zstd.Unpacked(peeked))
    if peeked.head.startswith(_GZIP):
        return Peeked(gzip.GzipFile(fileobj=peeked, mode="rb"))  # type: ignore[call-overload]  # read() is enough
    for mark, name in ((b"\xfd7zXZ", "xz"), (b"BZh", "bzip2")):
        if peeked.head.startswith(mark):
            raise ImageError(
                "VGPU-IMG-006",
                f"the image is packed with {name}, which is not read here",
                remedy=f"unpack it first ({name} -d), or pull it with Docker and name it by its tag",
            )
    return peeked


class Members:
    """The members of an archive, one after the other; `open` gives the content of the one that came last."""

    def __init__(self, stream: Stream, budget: Budget) -> None:
        self._budget = budget
        counted = Counted(stream, budget)
        with reading():
            self._archive = tarfile.open(fileobj=counted, mode="r|", tarinfo=Member, errorlevel=1)  # noqa: SIM115

    def __iter__(self) -> Members:
        return self

    def __next__(self) -> tarfile.TarInfo:
        with reading():
            member = self._archive.next()
        if member is None:
            raise StopIteration
        self._archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
        self._budget.take("entries", 1)
        return member

    def open(self, member: tarfile.TarInfo) -> IO[bytes]:
        content = self._archive.extractfile(member)
        if content is None:
            raise broken(f"has no content for {shown(member.name)}")
        return content


def parts(name: str) -> Parts:
    """The names on the way. Raises ImageError for one that leads upwards, which no engine takes either."""
    found = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in found or any("\0" in part for part in found):
        raise broken(f"has the name {shown(name, 200)}, which leads out of the image")
    return found


def read(stream: Stream, budget: Budget) -> Layer:
    """A whole layer. Raises ImageError."""
    layer = Layer()
    with reading():
        members = Members(plain(stream), budget)
        for member in members:
            _add(layer, members, member, budget)
    return layer


def _add(layer: Layer, members: Members, member: tarfile.TarInfo, budget: Budget) -> None:
    way = parts(member.name)
    budget.take("parts", len(way))
    budget.take("names", len(member.name) + len(member.linkname))
    if max(len(member.name), len(member.linkname)) > _MAX_PATH:
        raise broken(f"has a name of more than {_MAX_PATH} characters")
    name = way[-1] if way else ""
    if name == OPAQUE:
        layer.emptied.append(way[:-1])
    elif name.startswith(WHITEOUT + WHITEOUT):
        return  # aufs' own
    elif name.startswith(WHITEOUT):
        layer.gone.append((*way[:-1], *parts(name.removeprefix(WHITEOUT))))
        if len(layer.gone[-1]) != len(way):
            raise broken(f"takes out {shown(member.name, 200)}, which is nothing")
    elif member.islnk():
        layer.entries.append((way, parts(member.linkname)))
    elif member.isdir():
        layer.entries.append((way, Node(FOLDER, member.mode)))
    elif member.issym():
        layer.entries.append((way, Node(LINK, target=member.linkname)))
    elif member.isreg():
        layer.entries.append((way, _file(name, members, member, budget)))
    else:
        layer.entries.append((way, Node(OTHER)))


def _file(name: str, members: Members, member: tarfile.TarInfo, budget: Budget) -> Node:
    node = Node(FILE, member.mode, member.size, elf="not an ELF file")
    if member.issparse():
        node.elf = "a file with holes, which is not read here"
        return node
    with members.open(member) as content:
        head = content.read(64)
        if head[:4] == b"\x7fELF":
            node.elf = _facts(head, content, member.size)
            return node
        keep = _KEPT.get(name, _HEAD if head[:2] == b"#!" else 0)
        if keep and member.size > keep > _HEAD:
            return node  # too long to be what it is called; Tree.read says so
        if keep:
            node.data = head + content.read(max(0, keep - len(head)))
            budget.take("kept", len(node.data))
    return node


def _facts(head: bytes, content: IO[bytes], size: int) -> elf.Elf | str:
    if size > _ELF_MAX:
        return f"larger than {_ELF_MAX >> 30} GiB"
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as whole:
        whole.write(head)
        while data := content.read(1 << 20):
            whole.write(data)

        def at(offset: int, amount: int) -> bytes:
            whole.seek(min(offset, size))
            return whole.read(amount)

        try:
            return elf.parse(at, build_id=False)
        except elf.ElfError as error:
            return str(error)
