"""The file tree that an image's layers make, in memory: names, links and what a loader asks of an ELF file.

Nothing is written to a disk, so no name and no link of a hostile layer can lead anywhere: paths are followed below the
tree's own root, as the kernel does it for a process in a container.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from oci_hook import ldcache
from oci_hook.elf import Elf, ElfError
from oci_hook.errors import ImageError, shown

FOLDER, FILE, LINK, OTHER = "folder", "file", "link", "other"
_MAX_LINKS = 40  # as the kernel's
_MAX_STEPS = 100_000_000  # names that are followed in all: a minute. A large image has ten million
_MAX_PATH = 4096  # bytes, as the kernel's
_MAX_NAME = 255
_numbers = count(1)

Parts = tuple[str, ...]


@dataclass(slots=True)
class Node:
    """One file. elf: what a loader asks of it, or the reason why none would take it; data: its first bytes, as far as
    they are wanted; size: bytes. target: where a link leads. names: what is in a folder."""

    kind: str
    mode: int = 0o755
    size: int = 0
    target: str = ""
    elf: Elf | str = ""
    data: bytes = b""
    names: dict[str, Node] = field(default_factory=dict)
    number: int = field(default_factory=lambda: next(_numbers))


@dataclass(slots=True)
class Layer:
    """entries: in their order; for a hard link the other name instead of a node. gone: what it takes out of the layers
    below; emptied: folders that hide those below. Parts: a path's names, without "/"; none is ".."."""

    entries: list[tuple[Parts, Node | Parts]] = field(default_factory=list)
    gone: list[Parts] = field(default_factory=list)
    emptied: list[Parts] = field(default_factory=list)


def _path(parts: Parts) -> str:
    return "/" + "/".join(parts)


class Tree:
    """As oci_hook.rootview.RootView, for a tree that is in no folder."""

    def __init__(self, layers: Sequence[Layer] = ()) -> None:
        self.root = Node(FOLDER)
        self._steps = 0
        for layer in layers:
            self.apply(layer)

    def apply(self, layer: Layer) -> None:
        """One more layer on top. Links that are on the way to a name are followed, as an engine does."""
        for parts in layer.emptied:
            folder = self.node(_path(parts))
            if folder is not None:
                folder.names.clear()
        for parts in layer.gone:
            folder = self.node(_path(parts[:-1]))
            if folder is not None and parts:
                folder.names.pop(parts[-1], None)
        for parts, new in layer.entries:
            node = self.node(_path(new), follow=False) if isinstance(new, tuple) else new
            if node is not None and not (isinstance(new, tuple) and node.kind == FOLDER):
                self._put(parts, node)

    def _put(self, parts: Parts, node: Node) -> None:
        if not parts:
            return
        folder = self._folder(parts[:-1])
        there = folder.names.get(parts[-1])
        if there is not None and there.kind == node.kind == FOLDER:
            there.mode = node.mode
        else:
            folder.names[parts[-1]] = node

    def _folder(self, parts: Parts) -> Node:
        """Made where it is missing; what is there and is no folder is replaced by one."""
        at = self.root
        for position, name in enumerate(parts):
            below = at.names.get(name)
            if below is not None and below.kind == LINK:
                below = self.node(_path(parts[: position + 1]))
            if below is None or below.kind != FOLDER:
                below = Node(FOLDER)
                at.names[name] = below
            at = below
        return at

    def node(self, path: str, *, follow: bool = True) -> Node | None:
        """What the path leads to, None if to nothing. follow: also where its last name is a link."""
        found = self._walk(path, follow)
        return None if found is None else found[0]

    def _walk(self, path: str, follow: bool) -> tuple[Node, list[str]] | None:
        """The node, and the names on the way to it without links."""
        if not path or "\0" in path or len(path.encode("utf-8", "surrogatepass")) >= _MAX_PATH:
            return None
        pending, links = path.split("/")[::-1], 0
        way, named = [self.root], [""]
        self._count(len(pending))
        while pending:
            name = pending.pop()
            if way[-1].kind != FOLDER:
                return None
            if name == "..":
                del way[max(1, len(way) - 1) :], named[max(1, len(named) - 1) :]
            if name in ("", ".", ".."):
                continue
            below = way[-1].names.get(name)
            if below is None or len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME:
                return None
            if below.kind != LINK or not (follow or pending):
                way.append(below)
                named.append(name)
                continue
            links += 1
            if links > _MAX_LINKS or not below.target:
                return None
            if below.target.startswith("/"):
                del way[1:], named[1:]
            more = below.target.split("/")[::-1]
            self._count(len(more))
            pending.extend(more)
        return way[-1], named

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MAX_STEPS:
            raise ImageError(
                "VGPU-IMG-007",
                f"the image's links lead on and on: {_MAX_STEPS} names were followed",
                remedy="look at the image's links before anything else",
            )

    def _file(self, path: str) -> Node | None:
        node = self.node(path)
        return node if node is not None and node.kind == FILE else None

    def is_file(self, path: str) -> bool:
        return self._file(path) is not None

    def elf(self, path: str) -> Elf | None:
        """As RootView.elf."""
        node = self._file(path)
        if node is None:
            return None
        if isinstance(node.elf, str):
            raise ElfError(node.elf)
        return node.elf

    def names(self, folder: str, seen: set[tuple[int, int]] | None = None) -> list[str]:
        """As RootView.names."""
        node = self.node(folder)
        if node is None or node.kind != FOLDER or (0, node.number) in (seen or ()):
            return []
        if seen is not None:
            seen.add((0, node.number))
        return list(node.names)

    def identity(self, path: str) -> tuple[int, int] | None:
        node = self.node(path)
        return None if node is None else (0, node.number)

    def read(self, path: str, limit: int) -> bytes | None:
        """As RootView.read; of files that layer.py keeps."""
        node = self._file(path)
        if node is None:
            return None
        if node.size > limit:
            raise ImageError(
                "VGPU-IMG-001",
                f"the image's {shown(path, 256)} has more than {limit} bytes",
                remedy="remove it from the image",
            )
        return node.data

    def loader_cache(self, machine: int) -> dict[str, tuple[str, ...]]:
        """As RootView.loader_cache."""
        return ldcache.read(self.read("/etc/ld.so.cache", ldcache.MAX_BYTES), machine)

    def head(self, path: str, size: int) -> bytes | None:
        """The first bytes of a program that is no ELF file; None if there is no such file."""
        node = self._file(path)
        return None if node is None else node.data[:size]

    def is_program(self, path: str) -> bool:
        node = self._file(path)
        return node is not None and node.mode & 0o111 != 0

    def real(self, path: str) -> str:
        """The path without links of what it leads to; "" if that is nothing."""
        found = self._walk(path, follow=True)
        return "" if found is None else "/".join(found[1]) or "/"

    def files(self) -> Iterator[str]:
        """The paths of all regular files, each file under its first name; no link is followed."""
        seen: set[int] = set()
        pending = [("", self.root)]
        while pending:
            path, node = pending.pop()
            if node.kind == FILE and node.number not in seen:
                seen.add(node.number)
                yield path
            pending += ((f"{path}/{name}", below) for name, below in sorted(node.names.items(), reverse=True))
