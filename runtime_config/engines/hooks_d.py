"""Files of hooks.d, which Podman and CRI-O read: hooks for containers by their annotations. Pure: text in, text out.

One file is one hook, and one program with the same arguments at all its stages, so ours are two files. An engine skips
a file whose program is missing and starts the container without it: they go first when vgpu goes. Source: oci-hooks(5).
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from typing import Any, ClassVar

from oci_hook.bundle import HOOK_ENV, HOOK_TIMEOUT_S
from oci_hook.errors import HostError
from runtime_config.cdi import STAGE, hook_command
from runtime_config.engines.drop_in import Found

FOLDER = "/usr/share/containers/oci/hooks.d"  # the one that Podman and CRI-O read unless they are told otherwise
STAGES = {STAGE: "direct", "poststop": "poststop"}  # OCI stage -> word of our hook
ANNOTATIONS = r"^vgpu\..*$"


class _OwnFile:
    """A file that is ours alone: it is written as a whole, and goes as a whole."""

    __slots__ = ()

    def text(self) -> str:
        """The whole file."""
        raise NotImplementedError

    def find(self, text: str, path: str = "") -> Found:
        """Raises VGPU-CFG-001 for a file of that name that is not ours."""
        raise NotImplementedError

    def add(self, text: str, launcher: str, *, set_default: bool = False, path: str = "") -> str:
        """The whole file. launcher, set_default: of no meaning here. Raises as `find`."""
        self.find(text, path)
        return self.text()

    def remove(self, text: str, original: str | None, path: str = "") -> str | None:
        """No file, whatever ours says by now. Raises as `find`."""
        self.find(text, path)
        return None


@dataclass(frozen=True, slots=True)
class HookFile(_OwnFile):
    """The file of one stage. python: the interpreter of the hook. prefix: of the installation."""

    stage: str
    python: str
    prefix: str

    @property
    def name(self) -> str:
        return f"vgpu-{self.stage}.json"

    def text(self) -> str:
        command = hook_command(STAGES[self.stage], self.python, self.prefix)
        hook = {"path": command[0], "args": command, "env": list(HOOK_ENV), "timeout": HOOK_TIMEOUT_S}
        when = {"annotations": {ANNOTATIONS: ".*"}}
        return json.dumps({"version": "1.0.0", "hook": hook, "when": when, "stages": [self.stage]}, indent=2) + "\n"

    def find(self, text: str, path: str = "") -> Found:
        """Raises VGPU-CFG-001 for a file of that name that is no hook of ours."""
        if not text:
            return Found(None, False)
        try:
            args: list[Any] = json.loads(text)["hook"]["args"]
            script = next(word for word in args if word.endswith("/vgpu_hook.py"))
        except (ValueError, TypeError, KeyError, AttributeError, StopIteration):
            remedy = "remove it, or name another folder with --hooks-dir"
            raise HostError("VGPU-CFG-001", f"{path}: not a hook of vgpu's", remedy=remedy) from None
        return Found(script, False)


@dataclass(frozen=True, slots=True)
class FolderFile(_OwnFile):
    """A drop-in of containers.conf, ours alone, that has a user's Podman read `folder`: without one it reads none."""

    folder: str
    NAME: ClassVar[str] = "vgpu-hooks.conf"

    def text(self) -> str:
        said = "# vgpu: added by `vgpu configure podman --hooks`, which also takes it out"
        return f"{said}\n[engine]\nhooks_dir = [{json.dumps(self.folder)}]\n"

    def find(self, text: str, path: str = "") -> Found:
        """Raises VGPU-CFG-001 for a file of that name that is not ours."""
        if not text:
            return Found(None, False)
        try:
            [folder] = tomllib.loads(text)["engine"]["hooks_dir"]
        except (ValueError, TypeError, KeyError):
            remedy = "remove it, or name another file of that folder with --config"
            raise HostError("VGPU-CFG-001", f"{path}: not a file of vgpu's", remedy=remedy) from None
        return Found(str(folder), False)
