"""A prefix with launcher, shim and policy, two simulated GPUs, and a stand-in for runc that says how it is called."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oci_hook import fastjson, inventory
from oci_hook.launcher import build as launcher_build
from oci_hook.records import DeviceFile, Gpu, Inventory, Library, Policy
from oci_hook.values import as_json, replace

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
PYTHON = "/usr/bin/python3"
ID = "c" * 12

# says which arguments and which environment it got, and what config.json held by then
FAKE_RUNC = """#!/bin/sh
here=$(dirname "$0")
for word in "$@"; do printf '%s\\n' "$word"; done > "$here/called"
env > "$here/env"
[ -z "$FAKE_RUNC_SLEEP" ] || exec sleep "$FAKE_RUNC_SLEEP"
exit 0
"""


def gpus() -> tuple[Gpu, ...]:
    return tuple(Gpu(i, f"GPU-{i}", "Simulated GPU", 80 * GIB, f"0000:0{i}:00.0", i) for i in range(2))


def library(path: str, soname: str, role: str, capability: str = "compute") -> Library:
    return Library(path, soname, role, capability, ("libc.so.6",), {"libc.so.6": ("GLIBC_2.2.5",)}, (1, 2, 3, 4))


def simulated_inventory(policy: Policy) -> Inventory:
    sim = f"{policy.prefix}/lib/vgpu/sim"
    return Inventory(
        driver_version="550.54.14",
        simulated=True,
        key=inventory.current_key(policy),
        gpus=gpus(),
        libraries=(
            library(f"{sim}/libcuda.so.550.54.14", "libcuda.so.1", "cuda"),
            library(f"{sim}/libnvidia-ml.so.550.54.14", "libnvidia-ml.so.1", "nvml", "utility"),
            library("/drv/libnvidia-ptxjitcompiler.so.550.54.14", "libnvidia-ptxjitcompiler.so.1", "plain"),
            library("/drv/libnvidia-encode.so.550.54.14", "libnvidia-encode.so.1", "plain", "video"),
        ),
        wrapper=(
            library(f"{policy.prefix}/lib/vgpu/wrapper/libcuda.so.1", "libcuda.so.1", "cuda"),
            library(f"{policy.prefix}/lib/vgpu/wrapper/libnvidia-ml.so.1", "libnvidia-ml.so.1", "nvml", "utility"),
        ),
        devices=(
            DeviceFile(f"{policy.state_dir}/sim/ctl", "/dev/vgpu-sim/ctl", None, "bind"),
            DeviceFile(f"{policy.state_dir}/sim/gpu0", "/dev/vgpu-sim/gpu0", 0, "bind"),
            DeviceFile(f"{policy.state_dir}/sim/gpu1", "/dev/vgpu-sim/gpu1", 1, "bind"),
        ),
        programs=("/usr/bin/nvidia-smi",),
    )


@dataclass(frozen=True)
class Installed:
    """The prefix, and a bundle below it."""

    base: Path
    policy: Policy

    @property
    def launcher(self) -> Path:
        return self.base / "prefix/bin/vgpu-runtime"

    @property
    def runc(self) -> Path:
        return self.base / "runc"

    @property
    def bundle(self) -> Path:
        return self.base / "bundle"

    @property
    def state(self) -> Path:
        return Path(self.policy.state_dir)

    def set_policy(self, **changes: object) -> None:
        (self.base / "prefix/etc/policy.json").write_text(fastjson.dumps(as_json(replace(self.policy, **changes))))

    def set_inventory(self, found: Inventory) -> None:
        path = self.state / "inventory.json"
        path.write_text(fastjson.dumps(as_json(found)))
        path.chmod(0o644)

    def write_config(self, container: str = ID, **changes: Any) -> bytes:
        """A spec as an engine writes it, and its bytes. labels: into a config.v2.json as Docker's."""
        self.bundle.mkdir(exist_ok=True)
        docker = self.base / "docker/containers" / container
        spec: dict[str, Any] = {
            "ociVersion": "1.0.2",
            "process": {"args": ["true"], "env": ["PATH=/bin", *changes.pop("env", [])]},
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/etc/hosts", "type": "bind", "source": f"{docker}/hosts"}],
            "linux": {"resources": {"devices": [{"allow": False, "access": "rwm"}]}},
            "futureField": {"a": [1, 2.5, None]},
        }
        labels = changes.pop("labels", None)
        if labels is not None:
            docker.mkdir(parents=True, exist_ok=True)
            raw = {"Name": "/web", "Config": {"Image": "cuda:12", "Labels": labels}}
            (docker / "config.v2.json").write_text(json.dumps(raw))
            (docker / "config.v2.json").chmod(0o600)
        spec |= changes
        data = json.dumps(spec, indent=1).encode()
        (self.bundle / "config.json").write_bytes(data)
        return data

    def config(self) -> dict[str, Any]:
        spec: dict[str, Any] = json.loads((self.bundle / "config.json").read_text())
        return spec

    def create(self, *words: str, container: str = ID, **more: Any) -> subprocess.CompletedProcess[str]:
        """As containerd calls it."""
        log = self.base / "log.json"
        log.unlink(missing_ok=True)
        call = ["--root", "/run/x", "--log", str(log), "--log-format", "json", *words]
        call += ["create", "--bundle", str(self.bundle), "--pid-file", "/x/create", container]
        return self.run(*call, **more)

    def run(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        (self.base / "called").unlink(missing_ok=True)
        command = [str(self.launcher), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **more)

    def called(self) -> list[str] | None:
        """The words that the stand-in for runc got; None if it was not started."""
        path = self.base / "called"
        return path.read_text().splitlines() if path.exists() else None

    def log(self) -> list[dict[str, str]]:
        path = self.base / "log.json"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def audit(self) -> list[dict[str, Any]]:
        path = Path(self.policy.log_dir) / "audit.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def containers(self) -> list[str]:
        folder = self.state / "containers"
        return sorted(os.listdir(folder)) if folder.exists() else []


def built_launcher() -> Path:
    """build/launcher/vgpu-runtime, built anew if its sources are newer."""
    program = ROOT / "build/launcher/vgpu-runtime"
    sources = list((ROOT / "oci_hook/launcher").glob("*.[ch]"))
    newest = max(source.stat().st_mtime for source in sources)
    if not program.exists() or program.stat().st_mtime < newest:
        launcher_build.build(program.parent)
    return program


def install(base: Path) -> Installed:
    prefix = base / "prefix"
    python = prefix / "lib/vgpu/python"
    shutil.copytree(ROOT / "oci_hook", python / "oci_hook", ignore=shutil.ignore_patterns("launcher", "__pycache__"))
    for entry in (ROOT / "oci_hook/entry").glob("*.py"):
        shutil.copy(entry, python)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(python)], check=True, timeout=60)
    for folder in ("bin", "etc"):
        (prefix / folder).mkdir()
    for program in ("vgpu-runtime", "vgpu-hook"):
        shutil.copy(built_launcher().with_name(program), prefix / "bin")
    runc = base / "runc"
    runc.write_text(FAKE_RUNC)
    runc.chmod(0o755)
    policy = Policy(
        runtime=str(runc),
        prefix=str(prefix),
        state_dir=str(base / "state"),
        log_dir=str(base / "log"),
        simulate_gpus=2,
    )
    (base / "state").mkdir()
    (prefix / "etc/launcher.conf").write_text(
        f"# paths\nruntime={runc}\npython={PYTHON}\nshim={python}/vgpu_shim.py\npolicy={prefix}/etc/policy.json\n"
        f"state={policy.state_dir}\n"
    )
    installed = Installed(base, policy)
    installed.set_policy()
    installed.set_inventory(simulated_inventory(policy))
    return installed
