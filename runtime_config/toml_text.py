"""TOML of an engine's: read, or refused with the file's name."""

from __future__ import annotations

import tomllib
from typing import Any

from oci_hook.errors import HostError


def parse(text: str, path: str) -> dict[str, Any]:
    """Raises VGPU-CFG-001."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        remedy = "mend it, or name the right file with --config"
        raise HostError("VGPU-CFG-001", f"{path}: not TOML: {error}", remedy=remedy) from None
