"""k3s and RKE2: the template from which they make containerd's config.toml at each start. Pure: text in, text out.

What is written into config.toml itself is gone at the next start. A template that is there takes the place of the
built-in one, and can include that by the name "base". It is no TOML: only our own lines in it are understood. Source:
k3s' manual ("advanced") and pkg/agent/containerd; neither was run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime_config.engines import RUNTIME, containerd, drop_in
from runtime_config.engines.drop_in import Block, Found

FILES = {name: f"/var/lib/rancher/{name}/agent/etc/containerd/config.toml" for name in ("k3s", "rke2")}
TEMPLATES = {2: "config.toml.tmpl", 3: "config-v3.toml.tmpl"}  # version of config.toml -> the template's name
BASE = '{{ template "base" . }}'  # since the releases of September 2023
_OURS_ELSEWHERE = re.compile(rf"""\bruntimes\s*\.\s*["']?{RUNTIME}["']?\s*[.\]]""")


def template_of(made: str, path: str) -> str:
    """The path of the template for a config.toml that was made by them: `made` is its text, `path` its place.

    Raises VGPU-CFG-001 and -003 for a text that is none of containerd's.
    """
    return os.path.join(os.path.dirname(path), TEMPLATES.get(containerd.find(made, path).version, TEMPLATES[2]))


@dataclass(frozen=True, slots=True)
class Template:
    """An editor. engine: "k3s" or "rke2". runc: its options in config.toml, of which ours takes some."""

    engine: str
    runc: Mapping[str, Any] = field(default_factory=dict)

    @property
    def _block(self) -> Block:
        return Block(self.engine)

    def find(self, text: str, path: str = "") -> Found:
        """Raises VGPU-CFG-003 if there is a handler `vgpu` that is not ours."""
        rest = self._block.without(text)
        if _OURS_ELSEWHERE.search(rest):
            what = f"there is a runtime handler {RUNTIME} that is not ours"
            drop_in.refuse(path, what, "give it another name, or remove it")
        if rest == text:
            return Found(None, False)
        begin = text.index(self._block.begin)
        lines = text[begin : text.index(self._block.end, begin)].replace(BASE, "")
        found = containerd.find(f"version = {_version(path)}\n{lines}", path)
        return Found(found.launcher, False)

    def add(self, text: str, launcher: str, *, set_default: bool = False, path: str = "") -> str:
        """`text` with the handler `vgpu` at `launcher` (absolute); a new template begins with theirs. Raises as `find`,
        and VGPU-CFG-003 for set_default: the default has a place of its own."""
        if set_default:
            remedy = f"write `default-runtime: {RUNTIME}` into /etc/rancher/{self.engine}/config.yaml"
            drop_in.refuse(path, f"the default runtime is a setting of {self.engine}'s own", remedy)
        if self.find(text, path).launcher == launcher:
            return text
        rest = self._block.without(text)
        base = [] if rest.strip() else [BASE]
        lines = [*base, *containerd.handler_lines(self.runc, _version(path), launcher)]
        if rest and not rest.endswith("\n"):
            rest += "\n"
        return rest + "\n".join([self._block.begin, *lines, self._block.end]) + "\n"

    def remove(self, text: str, original: str | None, path: str = "") -> str | None:
        """`text` without what `add` did; None for no file. Raises as `find`."""
        self.find(text, path)
        return self._block.take_out(text, original)


def _version(path: str) -> int:
    return 3 if os.path.basename(path) == TEMPLATES[3] else 2
