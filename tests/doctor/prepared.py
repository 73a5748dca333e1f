"""What the tests of seeded faults stand on: a host root of real files, and an installation on simulated GPUs."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from oci_hook import inventory, policy
from oci_hook.errors import HostError
from tests.harness import installed
from vgpu.doctor import host as checks
from vgpu.doctor.finding import Check, Finding
from vgpu.doctor.host.machine import Host
from vgpu.inventory import scan

DRIVER = "550.54.14"
LIBRARIES = Path("usr/lib", f"{os.uname().machine}-linux-gnu")
BUS = "proc/driver/nvidia/gpus/0000:01:00.0/information"


def look(host: Host, name: str) -> Check:
    """The check of that name, run now."""
    (found,) = [one for one in checks.examine(host) if one.name == name]
    return found


def fault(host: Host, name: str, code: str, *evidence: str) -> Finding:
    """The one finding with `code` of a check; `evidence`: words that subject and evidence must have between them."""
    check = look(host, name)
    matching = [one for one in check.findings if one.code == code]
    assert len(matching) == 1, check
    told = f"{matching[0].subject}: {matching[0].evidence}"
    for word in evidence:
        assert word in told, told
    return matching[0]


def mended(host: Host, name: str, code: str) -> None:
    """The check was made, and no longer finds it."""
    check = look(host, name)
    assert [one for one in check.findings if one.code == code] == [], check


@dataclass(frozen=True)
class Tree:
    """A host's root with everything of NVIDIA's driver that the doctor looks at, in good order."""

    root: Path

    @property
    def host(self) -> Host:
        return Host(root=str(self.root), config=str(self.root / "etc/vgpu/config.yaml"), docker="unix:///nowhere")

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def program(self, name: str, prints: str) -> Path:
        """A program that only prints: what the doctor asks of runc and its like is --version."""
        path = self.write(name, f"#!/bin/sh\necho '{prints}'\n")
        path.chmod(0o755)
        return path

    def process(self, pid: int, name: str, *command: str) -> Path:
        self.write(f"proc/{pid}/comm", f"{name[:15]}\n")
        return self.write(f"proc/{pid}/cmdline", "".join(f"{word}\0" for word in (command or (name,))))

    def node(self, name: str, major: int, minor: int, mode: int = 0o666) -> Path:
        """A device node; nobody opens it, so that no such device has to be there."""
        path = self.root / "dev" / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        os.mknod(path, stat.S_IFCHR | mode, os.makedev(major, minor))
        path.chmod(mode)
        return path

    def load(self, version: str) -> None:
        """The kernel module, in that version."""
        self.write("sys/module/nvidia/version", f"{version}\n")
        line = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Wed Feb 21 21:00:00 UTC 2024\n"
        self.write("proc/driver/nvidia/version", line)

    def follow(self, remedy: str) -> None:
        """Does what a remedy says: the command, with this tree's /dev, /etc and /usr for the machine's."""
        for folder in ("/dev/", "/etc/", "/usr/share/"):
            remedy = remedy.replace(f" {folder}", f" {self.root}{folder}")
        subprocess.run(["sh", "-ec", remedy], check=True, capture_output=True, timeout=30)


def tree(root: Path) -> Tree:
    made = Tree(root)
    made.write("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n")
    made.write("proc/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nodev,noexec 0 0\n")
    made.write("proc/devices", "Character devices:\n  1 mem\n195 nvidia\n511 nvidia-uvm\n\nBlock devices:\n254 vd\n")
    made.write("run/systemd/timesync/synchronized", "")
    made.load(DRIVER)
    made.write("sys/module/nvidia_uvm/refcnt", "0\n")
    made.write(BUS, "Model: \t\t Stub\nDevice Minor: \t 0\n")
    for name in ("libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler"):
        made.write(f"{LIBRARIES}/{name}.so.{DRIVER}", "")
    made.node("nvidiactl", 195, 255)
    made.node("nvidia0", 195, 0)
    made.node("nvidia-uvm", 511, 0)
    return made


@dataclass(frozen=True)
class Installation:
    """vgpu in a prefix, on two simulated GPUs. `host` looks at it, and at this machine for the rest."""

    vgpu: installed.Vgpu

    @property
    def config(self) -> str:
        return str(self.vgpu.prefix / "etc/config.yaml")

    @property
    def host(self) -> Host:
        return Host(config=self.config, docker="unix:///nowhere", ask=False)

    def refresh(self) -> None:
        """The inventory, if it is stale: a test may have put a file back as another inode."""
        settings = policy.load(str(self.vgpu.prefix / "etc/policy.json"))
        try:
            inventory.load(settings)
        except HostError:
            scan(settings)

    def follow(self, remedy: str) -> None:
        """Runs the command; `vgpu` is this installation's."""
        environment = {**os.environ, "PATH": f"{self.vgpu.prefix}/bin:{os.environ['PATH']}", "VGPU_CONFIG": self.config}
        subprocess.run(["sh", "-ec", remedy], check=True, capture_output=True, timeout=60, env=environment)

    @contextmanager
    def kept(self, path: Path) -> Iterator[Path]:
        """Whatever the test does to that file or folder, no link, it is as before afterwards."""
        assert not path.is_symlink(), path
        aside = path.with_name(f".kept-{path.name}")
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        copy(path, aside)
        try:
            yield path
        finally:
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            aside.rename(path)
