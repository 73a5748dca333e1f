"""Which file of an image a word of its command starts, and what reads that file. Nothing of it runs."""

from __future__ import annotations

import os

from oci_hook.elf import Elf, ElfError
from oci_hook.records import Start
from oci_hook.values import TYPE_CHECKING

if TYPE_CHECKING:
    from oci_hook.preflight import Root

MAX_SCRIPTS = 4  # of a script that is read by a script
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # Docker's, where an image says nothing
_HEAD = 256  # bytes, as the kernel reads of a script's first line


def path_of(root: Root, start: Start) -> str:
    """Where the program lies, "" if it is not there."""
    return next((place for place in _places(start) if root.is_program(place)), "")


def _places(start: Start) -> list[str]:
    word = start.program
    if "/" in word or not word:
        return [os.path.join("/", start.cwd, word)] if word else []
    value = next((one[5:] for one in reversed(start.env) if one.startswith("PATH=")), _PATH)
    return [os.path.join("/", start.cwd, folder, word) for folder in value.split(":")]


def reader(root: Root, path: str) -> str:
    """The program that reads a script, "" for what is none; behind `env` the one that that looks for."""
    head = root.head(path, _HEAD) or b""
    if head[:2] != b"#!":
        return ""
    words = head[2:].split(b"\n")[0].decode("utf-8", "backslashreplace").split()
    if words and os.path.basename(words[0]) == "env":
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word] or words
    return words[0] if words else ""


def loaded(root: Root, start: Start) -> tuple[str, Elf] | None:
    """The path and the facts of the ELF file that is loaded in the end, None if there is none."""
    for _ in range(MAX_SCRIPTS):
        for path in _places(start):
            try:
                found = root.elf(path)
            except ElfError:
                start = Start(start.env, start.cwd, reader(root, path))
                break
            if found is not None:
                return path, found
        else:
            return None
    return None
