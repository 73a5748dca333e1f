"""A runtime that keeps a copy of config.json and goes on as another: what an engine wrote, and what runc got to see."""

from __future__ import annotations

from pathlib import Path

_SCRIPT = """#!/bin/sh
# keeps <bundle>/config.json of every create as {kept}/<container id>.{suffix}
for argument; do
    case "$previous" in --bundle | -b) bundle=$argument ;; esac
    case "$argument" in create) create=yes ;; esac
    previous=$argument
done
[ -z "$create" ] || cp "$bundle/config.json" "{kept}/$argument.{suffix}"
exec {runtime} "$@"
"""


def script(path: Path, runtime: Path, kept: Path, suffix: str) -> Path:
    """Writes the runtime `path`, which records in `kept` and then becomes `runtime`: same process, same arguments."""
    kept.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_SCRIPT.format(kept=kept, suffix=suffix, runtime=runtime))
    path.chmod(0o755)
    return path
