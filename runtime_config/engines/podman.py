"""Podman's containers.conf: the runtime `vgpu`, and on request as the default. Pure: text in, text out.

Podman reads /etc/containers/containers.conf.d/*.conf over containers.conf at each call; there is no daemon. Tables of
all files are merged, so ours needs no other file's text. Source: containers.conf(5); tried with 4.3, 5.4 and 5.8.
"""

from __future__ import annotations

from oci_hook.errors import shown
from runtime_config import toml_text
from runtime_config.engines import RUNTIME, drop_in
from runtime_config.engines.drop_in import Block, Found

DEFAULT_PATH = "/etc/containers/containers.conf.d/vgpu.conf"
_BLOCK = Block("podman")


def find(text: str, path: str = DEFAULT_PATH) -> Found:
    """Raises VGPU-CFG-001 (not TOML) or -003 (a runtime `vgpu` that is not ours, or no table where one belongs)."""
    data = toml_text.parse(text, path)
    engine = drop_in.table(data, path, "engine")
    programs = drop_in.table(data, path, "engine", "runtimes").get(RUNTIME)
    launcher = None
    if programs is not None:
        first = programs[0] if isinstance(programs, list) and len(programs) == 1 else programs
        launcher = drop_in.require_ours(first, path, RUNTIME)
    return Found(launcher, engine.get("runtime") == RUNTIME)


def add(text: str, launcher: str, *, set_default: bool = False, path: str = DEFAULT_PATH) -> str:
    """`text` with the runtime `vgpu` at `launcher` (absolute). Once the default, it stays that. Raises as `find`."""
    found = find(text, path)
    if found.launcher == launcher and (found.is_default or not set_default):
        return text
    default = set_default or found.is_default
    lines = ["[engine]", f'runtime = "{RUNTIME}"'] if default else []
    lines += ["[engine.runtimes]", f'{RUNTIME} = ["{launcher}"]']
    new = _BLOCK.put(text, lines, path)
    if find(new, path) != Found(launcher, default):
        drop_in.refuse(
            path, f"the runtime {RUNTIME} is also elsewhere in it: {shown(found.launcher)}", "remove it there"
        )
    return new


def remove(text: str, original: str | None, path: str = DEFAULT_PATH) -> str | None:
    """`text` without what `add` did; None for no file. Raises as `find`."""
    new = _BLOCK.take_out(text, original)
    if find(new or "", path).launcher is not None:
        drop_in.refuse(path, f"the runtime {RUNTIME} is not where we have put it", "remove its line by hand")
    return new
