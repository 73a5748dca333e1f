"""make demo: the main job on simulated GPUs, with a Docker daemon of our own. What it claims, it has checked.

Everything happens in one temporary folder; it ends by looking for anything that was left elsewhere.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

from rich.console import Console

from tests.harness import bundle, dockerd, images, installed, leftovers, recorder
from tests.harness.dockerd import Docker
from tests.harness.installed import Vgpu

GIB = 1 << 30
ASK = ("--label", "vgpu.memory=8GiB", "--label", "vgpu.cores=30")
IMAGES = {
    "c": "vgpu-demo:c",
    "python": "vgpu-demo:python",
    "no-libpthread": "vgpu-demo:no-libpthread",
    "old-glibc": "vgpu-demo:old-glibc",
}
# of the private daemon, which has no network: says nothing about us
NOISE = "WARNING: IPv4 forwarding is disabled. Networking will not work."

console = Console(highlight=False, soft_wrap=True)


class ClaimError(Exception):
    """Something that the demo says was not so."""


def title(text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def note(text: str) -> None:
    for line in textwrap.wrap(text, 110):
        console.print(f"  [dim]{line}[/dim]")


def claim(text: str, holds: bool) -> None:
    """Prints what was just checked; raises ClaimError when it is not so."""
    console.print(f"  [green]✓[/green] {text}" if holds else f"  [bold red]✗ not so: {text}[/bold red]", markup=True)
    if not holds:
        raise ClaimError(text)


def show(command: list[str], shown: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Prints `shown` as the command, runs `command`, prints its output and, if it is not 0, its exit code."""
    console.print(f"  [cyan]$ {shlex.join(shown)}[/cyan]")
    done = subprocess.run(
        command, env=env, text=True, errors="replace", stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if line != NOISE:
            console.print(f"    {line}", markup=False)
    if done.returncode:
        console.print(f"    [dim](exit code {done.returncode})[/dim]")
    return done


class Demo:
    """The daemon, the installation and the folder that they live in, through all steps."""

    def __init__(self, folder: Path, docker: Docker, vgpu: Vgpu) -> None:
        self.folder, self._docker, self._vgpu = folder, docker, vgpu
        self._original = docker.config.read_bytes()

    def docker(self, *args: str) -> subprocess.CompletedProcess[str]:
        return show(self._docker.command(*args), ["docker", *args], self._docker.environment())

    def vgpu(self, *args: str) -> subprocess.CompletedProcess[str]:
        return show(self._vgpu.command(*args), ["vgpu", *args], {**self._docker.environment(), "COLUMNS": "140"})

    def setup(self) -> None:
        title("Set-up: vgpu tells Docker about itself")
        change = self.vgpu("configure", "docker", "--config", str(self._docker.config), "--reload")
        claim("one key was added to daemon.json, and the daemon has the runtime", change.returncode == 0)
        trees = self.folder / "trees"
        for name, tag in IMAGES.items():
            images.load(self._docker, images.tree(trees, name), tag)
        note(
            "Four small images, made from this machine's own files: glibc, busybox and a C client; Python with "
            "cuda-bindings, pynvml, nvitop and gpustat; and two that the driver cannot load in."
        )
        gpus = self.vgpu("inventory")
        claim("two simulated GPUs of 80 GiB", gpus.stdout.count("80") >= 2 and gpus.returncode == 0)

    def slice(self) -> None:
        title("1. A slice: 8 GiB of a GPU, and 30 % of its compute time")
        note("A C program asks the CUDA driver for all that there is, and then for one byte more.")
        run = ("run", "--rm", "--runtime=vgpu", *ASK)
        fill = self.docker(*run, IMAGES["c"], "cuda_client", "fill")
        claim("it sees a device of 8 GiB, not of 80", str(8 * GIB) in fill.stdout and str(80 * GIB) not in fill.stdout)
        claim("all of it can be had, and one byte above is CUDA_ERROR_OUT_OF_MEMORY",
              fill.returncode == 0 and "CUDA_ERROR_OUT_OF_MEMORY" in fill.stdout)  # fmt: skip
        note("The same by NVIDIA's own Python bindings, cuda-bindings and pynvml, unchanged.")
        python = self.docker(*run, IMAGES["python"], "python3", "/cuda_python.py", str(8 * GIB))
        claim("cuda-bindings: 8 GiB, to the byte", f"total = {8 * GIB}" in python.stdout
              and 'one byte above = "CUDA_ERROR_OUT_OF_MEMORY"' in python.stdout
              and 'all of it = "CUDA_SUCCESS"' in python.stdout
              and 'one byte more = "CUDA_ERROR_OUT_OF_MEMORY"' in python.stdout)  # fmt: skip
        claim("pynvml: 8192 MiB, all in use", f"nvml total, used = [{8 * GIB}, {8 * GIB}]" in python.stdout)
        stat = self.docker(*run, IMAGES["python"], "python3", "-m", "gpustat", "--no-header")
        claim("gpustat: 8192 MB", stat.returncode == 0 and "8192 MB" in stat.stdout)

    def second(self) -> None:
        title("2. More containers: each GPU is filled before the next, and what does not fit is refused")
        for name, memory in (("alice", "60GiB"), ("bob", "60GiB")):
            self.docker("run", "--detach", "--name", name, "--runtime=vgpu", "--label", f"vgpu.memory={memory}",
                        IMAGES["c"], "cuda_client", "hold", "300")  # fmt: skip
        given = self._vgpu.given_out()
        claim(
            "alice has 60 GiB of GPU 0; bob, who does not fit there any more, of GPU 1",
            given == {0: 60 * GIB, 1: 60 * GIB},
        )
        refused = self.docker("run", "--rm", "--runtime=vgpu", "--label", "vgpu.memory=30GiB", IMAGES["c"], "true")
        claim("30 GiB more: refused at start (exit code 125), with the reason of each GPU",
              refused.returncode == 125 and "VGPU-PLC-001" in refused.stdout
              and all(f"GPU {index}" in refused.stdout for index in (0, 1)))  # fmt: skip

    def listing(self) -> None:
        title("3. What runs, with quota and use")
        table = self.vgpu("ps")
        claim("alice and bob, each with 30 of 60 GiB in use", table.stdout.count("30 GiB / 60 GiB") == 2)

    def unloadable(self) -> None:
        title("4. An image in which the driver could not be loaded: refused at start, not in the middle of a job")
        for name, code, library in (
            ("no-libpthread", "VGPU-DEP-001", "libpthread.so.0"),
            ("old-glibc", "VGPU-DEP-002", "libc.so.6"),
        ):
            refused = self.docker("run", "--rm", "--runtime=vgpu", *ASK, IMAGES[name], "busybox", "true")
            claim(f"refused: {code} names {library}, who needs it, and the remedy",
                  refused.returncode == 125 and code in refused.stdout and library in refused.stdout
                  and "to mend it:" in refused.stdout)  # fmt: skip
        misspelt = self.docker("run", "--rm", "--runtime=vgpu", "--label", "vgpu.memroy=8GiB", IMAGES["c"], "true")
        claim("a misspelt label is refused as well, and the right one suggested",
              misspelt.returncode == 125 and "vgpu.memory" in misspelt.stdout)  # fmt: skip

    def untouched(self) -> None:
        title("5. A container that asks for nothing is none of our business")
        note(
            "vgpu-recorded is the same runtime with a recorder before and behind it: what Docker wrote, what runc got."
        )
        self.docker("run", "--rm", "--runtime=vgpu-recorded", "--label", "team=a", IMAGES["c"], "echo", "hello")
        seen = self.folder / "seen"
        written = next(seen.glob("*.by-docker"))
        both = [str(written), str(written.with_suffix(".by-runc"))]
        compared = show(["cmp", *both], ["cmp", "config.json.by-docker", "config.json.by-runc"])
        claim("config.json is byte for byte what Docker wrote", compared.returncode == 0)

    def ending(self) -> None:
        title("6. The containers end")
        self.docker("rm", "--force", "alice", "bob")
        self.vgpu("ps")
        claim("the ledger is empty", self._vgpu.containers() == [])
        claim("no mount of ours is left", leftovers.mounts(self._vgpu.prefix, self._vgpu.state) == [])
        claim("no process of ours is left", leftovers.processes(self._vgpu.prefix, self._vgpu.state) == [])
        undo = self.vgpu("configure", "docker", "--config", str(self._docker.config), "--undo", "--reload")
        restored = self._docker.config.read_bytes() == self._original
        claim("Docker's configuration is what it was, byte for byte", undo.returncode == 0 and restored)


def versions(docker: Docker) -> str:
    asked = docker("version", "--format", "Docker {{.Server.Version}}", check=True).stdout.strip()
    runc = subprocess.run(["runc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return f"{asked}, {runc.replace(' version ', ' ')}, Linux {os.uname().release}"


def steps(folder: Path) -> str:
    """All of the demo in `folder`; returns what was real."""
    runc = recorder.script(folder / "runc", bundle.low_level("runc", folder), folder / "seen", "by-runc")
    vgpu = installed.install(folder, runc)
    recorded = recorder.script(folder / "vgpu-recorded", vgpu.runtime, folder / "seen", "by-docker")
    with dockerd.running(folder / "docker", {"vgpu-recorded": recorded}) as docker:
        real = versions(docker)
        note(f"docker is a client of a private daemon, vgpu is installed in a private prefix; both are below {folder}.")
        demo = Demo(folder, docker, vgpu)
        for step in (demo.setup, demo.slice, demo.second, demo.listing, demo.unloadable, demo.untouched, demo.ending):
            step()
    installed.uninstall(vgpu)
    return real


def main() -> int:
    if os.geteuid() != 0:
        print("make demo needs root: it starts a Docker daemon of its own", file=sys.stderr)
        return 1
    began, before = time.monotonic(), leftovers.machine_folders()
    folder = Path(tempfile.mkdtemp(prefix="vgpu-demo-"))
    folder.chmod(0o755)  # containers' users must be able to reach it
    try:
        real = steps(folder)
    except ClaimError as error:
        print(f"\nThe demo stops here: not so: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder)
    title("What was simulated, what was real, what is left")
    console.print(
        "  simulated  the two GPUs and NVIDIA's driver (libcuda, libnvidia-ml): their figures say nothing of a real GPU"
    )
    console.print(
        f"  real       {real}; launcher, shim, hook and wrapper; cuda-bindings, pynvml and gpustat as published"
    )
    clean = not leftovers.mounts(folder) and not leftovers.processes(folder) and leftovers.machine_folders() == before
    claim(
        "left: no mount, no process, no folder outside this checkout (build/ and .venv/ stay for the next run)", clean
    )
    console.print(f"  {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
