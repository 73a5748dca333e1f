"""CRI-O's crio.conf: the runtime handler `vgpu`, and on request as the default. Pure: text in, text out.

CRI-O reads /etc/crio/crio.conf.d/*.conf over crio.conf when it starts. Source: its crio.conf(5) and pkg/config; not
tried, as no Debian suite has CRI-O. `allowed_annotations` is not for ours: with one that CRI-O does not know it does
not start.
"""

from __future__ import annotations

from oci_hook.errors import shown
from runtime_config import toml_text
from runtime_config.engines import RUNTIME, drop_in
from runtime_config.engines.drop_in import Block, Found

DEFAULT_PATH = "/etc/crio/crio.conf.d/99-vgpu.conf"
_BLOCK = Block("crio")
_RUNC_ROOT = "/run/runc"  # where CRI-O looks for runc's state, which ours becomes


def find(text: str, path: str = DEFAULT_PATH) -> Found:
    """Raises VGPU-CFG-001 (not TOML) or -003 (a handler `vgpu` that is not ours, or no table where one belongs)."""
    data = toml_text.parse(text, path)
    runtime = drop_in.table(data, path, "crio", "runtime")
    launcher = None
    if RUNTIME in drop_in.table(data, path, "crio", "runtime", "runtimes"):
        handler = drop_in.table(data, path, "crio", "runtime", "runtimes", RUNTIME)
        launcher = drop_in.require_ours(handler.get("runtime_path"), path, RUNTIME)
    return Found(launcher, runtime.get("default_runtime") == RUNTIME)


def add(text: str, launcher: str, *, set_default: bool = False, path: str = DEFAULT_PATH) -> str:
    """`text` with the handler `vgpu` at `launcher` (absolute). Once the default, it stays that. Raises as `find`."""
    found = find(text, path)
    if found.launcher == launcher and (found.is_default or not set_default):
        return text
    default = set_default or found.is_default
    lines = ["[crio.runtime]", f'default_runtime = "{RUNTIME}"'] if default else []
    lines += [
        f"[crio.runtime.runtimes.{RUNTIME}]",
        f'runtime_path = "{launcher}"',
        'runtime_type = "oci"',
        f'runtime_root = "{_RUNC_ROOT}"',
    ]
    new = _BLOCK.put(text, lines, path)
    if find(new, path) != Found(launcher, default):
        drop_in.refuse(
            path, f"the handler {RUNTIME} is also elsewhere in it: {shown(found.launcher)}", "remove it there"
        )
    return new


def remove(text: str, original: str | None, path: str = DEFAULT_PATH) -> str | None:
    """`text` without what `add` did; None for no file. Raises as `find`."""
    new = _BLOCK.take_out(text, original)
    if find(new or "", path).launcher is not None:
        drop_in.refuse(path, f"the handler {RUNTIME} is not where we have put it", "remove its table by hand")
    return new
