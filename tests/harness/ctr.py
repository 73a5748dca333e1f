"""`ctr`, containerd's own client, on the containerd that a private dockerd has started."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.harness.dockerd import Docker


@dataclass(frozen=True, slots=True)
class Ctr:
    """In a namespace of its own. runtime: the program that stands in for runc."""

    docker: Docker
    runtime: Path

    def __call__(self, *args: str) -> subprocess.CompletedProcess[str]:
        address = self.docker.sockets / "exec/containerd/containerd.sock"
        command = [str(self.docker.engine.program("ctr")), "--address", str(address), "--namespace", "vgpu-test"]
        return subprocess.run(
            [*command, *args],
            env=self.docker.engine.environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def run(self, tree: Path, annotations: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
        """A container on a copy of the root tree `tree`."""
        asked = [word for name, value in annotations.items() for word in ("--annotation", f"{name}={value}")]
        handler = ["--runtime", "io.containerd.runc.v2", "--runc-binary", str(self.runtime)]
        name = uuid.uuid4().hex
        root = self.docker.folder / f"root-{name}"
        shutil.copytree(tree, root, symlinks=True)
        try:
            return self("run", "--rm", *handler, *asked, "--rootfs", str(root), name, *words)
        finally:
            shutil.rmtree(root)
