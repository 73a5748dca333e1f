"""Called by hatchling when it builds the wheel: compiles the parts, adds them, and adds the bill of materials.

An editable installation (`pip install -e`) gets nothing: it uses what `make build` made.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PARTS = "vgpu/parts"  # in the wheel: `build/` and the files of packaging/ that an installation needs
ALSO = ("packaging/pack.py", "packaging/systemd", "packaging/monitoring")
PYTHON = "cp311-abi3"  # cffi's extension modules use the stable interface; 3.11 is what our own code needs
GLIBC = "manylinux_2_17"


class PartsHook(BuildHookInterface):  # type: ignore[type-arg]  # of hatchling's own configuration class
    """hatchling finds it as the only one of its kind in this file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        sys.path[:0] = [self.root, f"{self.root}/packaging"]
        from artefacts import parts, sbom
        from oci_hook.errors import VgpuError

        self._folder = tempfile.TemporaryDirectory(prefix="vgpu-wheel-")
        out = Path(self._folder.name)
        try:
            arch = parts.architecture()
            parts.build(out, arch)
        except VgpuError as error:
            self.app.abort(error.line())
        build_data["pure_python"] = False
        build_data["tag"] = f"{PYTHON}-{GLIBC}_{arch}"
        include = build_data["force_include"]
        for path in parts.built(out):
            include[str(out / path)] = f"{PARTS}/{path}"
            if path.parts[0] == "python":  # and once more, where the command itself imports it
                own = shutil.copy2(out / path, out / path.name)
                include[str(own)] = str(path.relative_to("python"))
        for name in ALSO:
            include[os.path.join(self.root, name)] = f"{PARTS}/{name}"
        bill = out / "vgpu-runtime.cdx.json"
        bill.write_text(sbom.text(sbom.bill(f"wheel for {arch}", self._content(include))))
        build_data["sbom_files"].append(str(bill))

    def _content(self, include: dict[str, str]) -> dict[str, bytes]:
        """path in the wheel -> content, of all but its .dist-info."""
        builder = self.build_config.builder
        files = [*builder.recurse_selected_project_files(), *builder.recurse_forced_files(include)]
        return {file.distribution_path: Path(file.path).read_bytes() for file in files}

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_folder"):
            self._folder.cleanup()
