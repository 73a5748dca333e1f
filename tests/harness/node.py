"""A node as Kubernetes has it, without the kubelet: vgpu, a containerd that our command configured, and a client."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.harness import bundle, containerd, cri, engines, installed, recorder, rootfs, suites
from tests.harness.containerd import PAUSE, Containerd
from tests.harness.installed import ROOT, Vgpu

IMAGE = "docker.io/library/vgpu-test:c"  # the tree "c" of harness/images.py
SLEEP = ("/bin/busybox", "sleep", "600")


@dataclass(frozen=True, slots=True)
class Node:
    """suite: of containerd and the low-level runtime, "" for this machine's own. seen: <container id>.by-containerd,
    .by-runtime: config.json as it was written (handler "recorded"), and as the low-level runtime read it. cdi: folder
    of specs, tree: what IMAGE was made from."""

    daemon: Containerd
    client: cri.Client
    vgpu: Vgpu
    suite: str
    runtime: Path
    seen: Path
    cdi: Path
    tree: Path


@contextlib.contextmanager
def running(folder: Path, suite: str, runtime: str, tree: Path, *, cdi: bool = False) -> Iterator[Node]:
    """Starts one in `folder`. runtime: "runc" or "crun". cdi: it has our devices. Raises debian.NotOffered."""
    folder.mkdir()
    engine = suites.engine(suite) if suite else engines.docker()
    program = suites.runtime(suite, runtime) if suite else engine.program(runtime)
    recorded = recorder.script(folder / "behind", bundle.fit(program, folder), folder / "seen", "by-runtime")
    vgpu = installed.install(folder, recorded)
    if cdi:
        vgpu("cdi", "generate", "--output", str(folder / "cdi/vgpu.json"))
    daemon = containerd.made(folder / "containerd", engine, folder / "cdi" if cdi else None)
    _configure(daemon, vgpu)
    before = recorder.script(folder / "before", vgpu.runtime, folder / "seen", "by-containerd")
    daemon.add_handler("recorded", before)
    pause = folder / "pause"
    pause.mkdir()
    rootfs.static_root(pause)
    with containerd.running(daemon):
        daemon.load(pause, PAUSE, SLEEP)
        daemon.load(tree, IMAGE)
        with cri.client(daemon) as client:
            client.await_ready()
            for image in (PAUSE, IMAGE):
                client.await_image(image)
            yield Node(daemon, client, vgpu, suite, program, folder / "seen", folder / "cdi", tree)


def _configure(daemon: Containerd, vgpu: Vgpu) -> None:
    command = [sys.executable, "-m", "vgpu", "configure", "containerd", "--verify", "--config", str(daemon.config)]
    command += ["--prefix", str(vgpu.prefix), "--program", str(daemon.program)]
    done = subprocess.run(
        command, env=daemon.engine.environment(), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise RuntimeError(f"vgpu configure containerd: {done.stdout}{done.stderr}")
