"""A private containerd with its CRI plugin, as a node of Kubernetes has it: own data, sockets and control groups.

daemon = containerd.made(folder, engine)
with containerd.running(daemon): ...        # tests/harness/node.py adds vgpu, images and a client
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime_config.engines.containerd import PLUGINS
from tests.harness import dockerd, leftovers, packed, suites
from tests.harness.engines import Engine

PAUSE = "docker.io/library/vgpu-pause:1"  # what holds a pod's namespaces
_IMAGES = 'plugins."io.containerd.cri.v1.images"'  # a plugin of its own since 2.0


@dataclass(slots=True)
class Containerd:
    """One daemon. folder: its data and config.toml; short: its sockets, whose paths end at 108 bytes. version: of
    config.toml, the newest that it reads."""

    engine: Engine
    folder: Path
    short: Path
    version: int
    _process: subprocess.Popen[bytes] | None = None

    @property
    def program(self) -> Path:
        return self.engine.program("containerd")

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def address(self) -> Path:
        return self.short / "c.sock"

    @property
    def cgroup(self) -> str:
        return f"/{self.short.name}"

    def ctr(self, *args: str, within: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """containerd's own client, in the namespace that CRI's containers and images are in. within: words before it,
        as `unshare --mount`."""
        command = [str(self.engine.program("ctr")), "--address", str(self.address), "--namespace", "k8s.io", *args]
        return subprocess.run(
            [*within, *command], env=self.engine.environment(), capture_output=True, text=True, timeout=60, check=False
        )

    def load(self, tree: Path, tag: str, command: Sequence[str] = ()) -> None:
        """Imports a root tree as the image `tag`, a full name with its registry."""
        layer = packed.layer(packed.of_tree(tree))
        config = packed.document([layer], Cmd=list(command), Env=["PATH=/usr/bin:/bin"])
        archive = self.folder / "image.tar"
        archive.write_bytes(packed.saved([layer], config, tag))
        done = self.ctr("images", "import", str(archive))
        archive.unlink()
        if done.returncode:
            raise RuntimeError(f"ctr images import: {done.stdout}{done.stderr}")

    def add_handler(self, name: str, program: Path) -> None:
        """A further runtime handler in config.toml, with the pods' annotations that ours has; before the start."""
        table = f'plugins."{PLUGINS[self.version]}".containerd.runtimes.{name}'
        with self.config.open("a") as text:
            text.write(f'[{table}]\n  runtime_type = "io.containerd.runc.v2"\n  pod_annotations = ["vgpu.*"]\n')
            text.write(f'  [{table}.options]\n    BinaryName = "{program}"\n')

    def start(self, timeout: float = 60) -> None:
        """Also again, after `stop`: containers live on meanwhile."""
        with open(self.folder / "containerd.log", "ab") as log:
            command = [str(self.program), "--config", str(self.config)]
            self._process = subprocess.Popen(
                command, env=self.engine.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = time.monotonic() + timeout
        while self.ctr("version").returncode:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"containerd does not answer:\n{self.log()[-3000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        """What the daemon wrote, for a failed test."""
        return (self.folder / "containerd.log").read_text(errors="replace")


def made(folder: Path, engine: Engine, cdi: Path | None = None) -> Containerd:
    """A daemon that has not been started, with a config.toml that does not know vgpu.

    cdi: the folder of CDI's specs; None leaves CDI as containerd has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    version = 2 if suites.version(engine.program("containerd")).startswith("1.") else 3
    daemon = Containerd(engine, folder, Path(tempfile.mkdtemp(prefix="vgpu-cri-")), version)
    runtime = f'plugins."{PLUGINS[version]}"'
    snapshotter = {"overlay2": "overlayfs", "vfs": "native"}[dockerd.storage_driver(folder)]
    tables: dict[str, list[str]] = {
        "grpc": [f'address = "{daemon.address}"'],
        'plugins."io.containerd.internal.v1.opt"': [f'path = "{folder}/opt"'],
        'plugins."io.containerd.nri.v1.nri"': ["disable = true"],  # its socket would be the machine's
        # a test machine may not let us lower a process's score
        runtime: ["restrict_oom_score_adj = true"],
        f"{runtime}.cni": [f'bin_dir = "{folder}/cni"', f'conf_dir = "{folder}/cni"'],
    }
    if cdi is not None:
        tables[runtime] += ["enable_cdi = true", f'cdi_spec_dirs = ["{cdi}"]']
    if version == 2:
        tables[runtime].append(f'sandbox_image = "{PAUSE}"')
        tables[f"{runtime}.containerd"] = [f'snapshotter = "{snapshotter}"']
    else:
        tables[_IMAGES] = [f'snapshotter = "{snapshotter}"']
        tables[f"{_IMAGES}.pinned_images"] = [f'sandbox = "{PAUSE}"']
    text = f'version = {version}\nroot = "{folder}/root"\nstate = "{daemon.short}/state"\n'
    for table, lines in tables.items():
        text += "\n".join([f"[{table}]", *(f"  {line}" for line in lines)]) + "\n"
    daemon.config.write_text(text)
    return daemon


@contextlib.contextmanager
def running(daemon: Containerd) -> Iterator[None]:
    """Starts the daemon, and ends it with every container that it had."""
    before = leftovers.machine_folders()
    try:
        daemon.start()
        yield
    finally:
        _end(daemon)
        leftovers.remove_cgroups(daemon.cgroup)
        shutil.rmtree(daemon.short)
        leftovers.remove_empty_folders(before)


def _end(daemon: Containerd) -> None:
    for task in daemon.ctr("tasks", "ls", "--quiet").stdout.split():
        daemon.ctr("tasks", "kill", "--all", "--signal", "9", task)
    daemon.stop()
    for _, pid in leftovers.processes(daemon.folder, daemon.short):
        with contextlib.suppress(ProcessLookupError):  # a shim
            os.kill(pid, signal.SIGKILL)
    for mountpoint in reversed(leftovers.mounts(daemon.folder, daemon.short)):
        subprocess.run(["umount", "--lazy", mountpoint], check=False)
