"""The hook's system-call module is built once, under build/, and found from there."""

from __future__ import annotations

from pathlib import Path

import oci_hook
from oci_hook import sys_build

PYTHON = Path(__file__).parents[2] / "build" / "python"


def _use_built_module() -> None:
    built = PYTHON / "oci_hook"
    source = Path(sys_build.__file__).stat().st_mtime
    if not any(file.stat().st_mtime > source for file in built.glob("_vgsys*.so")):
        sys_build.build(PYTHON)
    oci_hook.__path__.append(str(built))


_use_built_module()
