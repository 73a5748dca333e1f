"""vgpu installed into a prefix of its own, on simulated GPUs, with state and log beside it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Vgpu:
    """One installation. Calling it runs the operator's command: vgpu("ps", "--json")."""

    prefix: Path
    state: Path
    log: Path

    @property
    def runtime(self) -> Path:
        """What an engine is told to run."""
        return self.prefix / "bin/vgpu-runtime"

    def command(self, *args: str) -> list[str]:
        return [str(self.prefix / "bin/vgpu"), *args]

    def __call__(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.command(*args), text=True, capture_output=True, timeout=60, check=False)
        if check and done.returncode:
            raise RuntimeError(f"vgpu {' '.join(args)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def containers(self) -> list[str]:
        """Names in the folder that is the ledger, unfinished and half-deleted ones included."""
        folder = self.state / "containers"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def allocation(self, container_id: str) -> dict[str, Any]:
        """allocation.json of one container."""
        text = (self.state / "containers" / container_id / "allocation.json").read_text()
        allocation: dict[str, Any] = json.loads(text)
        return allocation

    def given_out(self) -> dict[int, int]:
        """GPU index -> bytes given out, summed over the container folders."""
        total: dict[int, int] = {}
        for name in self.containers():
            if not name.startswith("."):
                for part in self.allocation(name)["placement"]["slices"]:
                    total[part["index"]] = total.get(part["index"], 0) + part["memory_bytes"]
        return total

    def failures(self) -> list[dict[str, Any]]:
        """The records of refused starts, oldest first."""
        paths = sorted((self.state / "failures").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        return [json.loads(path.read_text()) for path in paths]

    def audit(self) -> list[dict[str, Any]]:
        """The audit log's entries, oldest first."""
        path = self.log / "audit.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @contextlib.contextmanager
    def configured(self, yaml: str) -> Iterator[None]:
        """The admin's config.yaml with `yaml` added, in force until the end of the block."""
        path = self.prefix / "etc/config.yaml"
        original = path.read_text()
        path.write_text(f"{original}\n{yaml}\n")
        try:
            self("config", "apply")
            yield
        finally:
            path.write_text(original)
            self("config", "apply")


def install(folder: Path, runtime: Path, gpus: int = 2, memory: str = "80GiB", state: Path | None = None) -> Vgpu:
    """Installs what `make build` built into `folder`/vgpu. runtime: the low-level runtime that stands behind ours."""
    vgpu = Vgpu(folder / "vgpu", state or folder / "state", folder / "log")
    subprocess.run(install_command(vgpu, runtime, gpus, memory), check=True, capture_output=True, text=True, cwd=ROOT)
    vgpu("inventory", "--refresh")
    return vgpu


def install_command(vgpu: Vgpu, runtime: Path, gpus: int, memory: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "packaging/install.py"), "--prefix", str(vgpu.prefix), "--runtime", str(runtime),
        "--simulate-gpus", str(gpus), "--simulate-memory", memory,
        "--state-dir", str(vgpu.state), "--log-dir", str(vgpu.log),
    ]  # fmt: skip


def uninstall(vgpu: Vgpu) -> None:
    """Takes the installation and its state away."""
    subprocess.run(
        [sys.executable, str(ROOT / "packaging/install.py"), "--prefix", str(vgpu.prefix), "--uninstall"],
        check=True, capture_output=True, cwd=ROOT,
    )  # fmt: skip
    for folder in (vgpu.prefix, vgpu.state, vgpu.log):
        shutil.rmtree(folder, ignore_errors=True)  # whatever is left would be told by the tests of the installer
