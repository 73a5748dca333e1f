"""A TOML file of our own in an engine's drop-in folder: Podman's and CRI-O's. Pure: text in, text out.

The file is ours alone, so nothing has to be merged; but an admin may have written into it, and that stays, when ours is
added and when it is taken out.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from oci_hook.errors import HostError, shown
from runtime_config.engines import LAUNCHER_NAME


@dataclass(frozen=True, slots=True)
class Found:
    """What the file says of us. launcher: the runtime's program, None if it is not there."""

    launcher: str | None
    is_default: bool


def refuse(path: str, what: str, remedy: str) -> NoReturn:
    raise HostError("VGPU-CFG-003", f"{path}: {what}", remedy=remedy)


def table(data: Mapping[str, Any], path: str, *names: str) -> Mapping[str, Any]:
    """The table at that place, {} if there is none. Raises VGPU-CFG-003 for something else."""
    for number, name in enumerate(names):
        found = data.get(name, {})
        if not isinstance(found, dict):
            refuse(path, f"{'.'.join(names[: number + 1])}={shown(found)} is not a table", "make it a table")
        data = found
    return data


def require_ours(program: object, path: str, name: str) -> str:
    """`program` if it is our launcher. Raises VGPU-CFG-003 for somebody else's runtime of that name."""
    if not isinstance(program, str) or os.path.basename(program) != LAUNCHER_NAME:
        what = f"there is a runtime {name} that is not ours: {shown(program)}"
        refuse(path, what, "give it another name, or remove it")
    return program


@dataclass(frozen=True, slots=True)
class Block:
    """Our lines in the file, between two comments. engine: as in `vgpu configure ENGINE`."""

    engine: str

    @property
    def begin(self) -> str:
        return f"# vgpu: added by `vgpu configure {self.engine}`, which also takes it out"

    @property
    def end(self) -> str:
        return "# vgpu: end"

    def put(self, text: str, lines: list[str], path: str) -> str:
        """`text` with our block, in the place of an earlier one. Raises VGPU-CFG-003 if that makes it unreadable."""
        rest = self.without(text)
        if rest and not rest.endswith("\n"):
            rest += "\n"
        new = rest + "\n".join([self.begin, *lines, self.end]) + "\n"
        try:
            tomllib.loads(new)
        except tomllib.TOMLDecodeError as error:
            what = f"it has tables that ours would be in the way of ({error})"
            refuse(path, what, "name another file of that folder with --config")
        return new

    def without(self, text: str) -> str:
        return re.sub(rf"^{re.escape(self.begin)}\n.*?^{re.escape(self.end)}\n?", "", text, flags=re.M | re.S)

    def take_out(self, text: str, original: str | None) -> str | None:
        """`text` without our block; None when nothing else is in the file and there was none before us."""
        rest = self.without(text)
        if rest == text:
            return text
        if original is not None and rest in (original, original + "\n"):
            return original  # to the byte, its last line without a line end too
        return rest or None
