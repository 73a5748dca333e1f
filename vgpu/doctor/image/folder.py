"""A root file tree in a folder: what the start looks at, and a few questions more."""

from __future__ import annotations

import os
from collections.abc import Iterator

from oci_hook.rootview import RootView

_MAX_FILES = 3_000_000  # of one root; more is a loop or a bomb


class Folder(RootView):
    """The same questions as tree.Tree answers. Needs no root where all can be read; `blind` has what could not be."""

    def __init__(self, path: str) -> None:
        super().__init__(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        self.blind: list[str] = []

    def close(self) -> None:
        os.close(self.fd)

    def files(self) -> Iterator[str]:
        """As Tree.files. Other mounts below the root are left out: /proc, say."""
        device = self.identity("/")
        seen: set[tuple[int, int]] = set()
        pending, left = [""], _MAX_FILES
        while pending:
            folder = pending.pop()
            here = self.identity(folder or "/")
            if here is None or device is None or here[0] != device[0]:
                continue
            inside, below = self._listed(folder or "/")
            for name, number in inside:
                left -= 1
                if left < 0:
                    self.blind.append(f"what comes after {_MAX_FILES} files")
                    return
                if (here[0], number) not in seen:
                    seen.add((here[0], number))
                    yield f"{folder}/{name}"
            pending += (f"{folder}/{name}" for name in reversed(below))

    def _listed(self, folder: str) -> tuple[list[tuple[str, int]], list[str]]:
        """Regular files with their inode, and folders; both sorted."""
        found = self.find(folder, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY)
        if found is None:
            return [], []
        try:
            reading = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self.blind.append(f"{folder}: {error.strerror}")
            return [], []
        finally:
            os.close(found)
        files: list[tuple[str, int]] = []
        folders: list[str] = []
        try:
            with os.scandir(reading) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    elif entry.is_file(follow_symlinks=False):
                        files.append((entry.name, entry.inode()))
        finally:
            os.close(reading)
        return sorted(files), sorted(folders)
