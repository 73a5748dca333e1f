"""One private Docker daemon: its own data, sockets and control groups. A daemon of the machine is not touched.

with dockerd.running(folder, runtimes={"vgpu": prefix / "bin/vgpu-runtime"}) as docker:
    docker("run", "--rm", "--runtime=vgpu", IMAGE, "true")
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.harness import engines, leftovers


@dataclass(frozen=True, slots=True)
class Docker:
    """A client of one daemon. Calling it runs `docker ARGS`."""

    engine: engines.Engine
    folder: Path  # all of the daemon's files
    sockets: Path  # short: a Unix socket's path ends at 108 bytes

    @property
    def host(self) -> str:
        return f"unix://{self.sockets}/docker.sock"

    @property
    def config(self) -> Path:
        """The daemon's daemon.json."""
        return self.folder / "daemon.json"

    @property
    def pid(self) -> int:
        return int((self.folder / "dockerd.pid").read_text())

    @property
    def cgroup(self) -> str:
        return f"/{self.sockets.name}"

    def environment(self) -> dict[str, str]:
        return {**self.engine.environment(), "DOCKER_HOST": self.host, "DOCKER_CONFIG": str(self.folder / "client")}

    def command(self, *args: str) -> list[str]:
        return [str(self.engine.program("docker")), *args]

    def __call__(self, *args: str, timeout: float = 120, check: bool = False) -> subprocess.CompletedProcess[str]:
        """`docker ARGS`, its output as text. With check=True a failure raises and shows what docker said."""
        done = subprocess.run(
            self.command(*args), env=self.environment(), text=True, errors="replace", capture_output=True,
            timeout=timeout, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"docker {' '.join(args)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def log(self) -> str:
        """What the daemon wrote, for a failed test."""
        return (self.folder / "dockerd.log").read_text(errors="replace")


@contextlib.contextmanager
def running(
    folder: Path,
    runtimes: Mapping[str, Path],
    engine: engines.Engine | None = None,
    flags: Sequence[str] = (),
    **settings: object,
) -> Iterator[Docker]:
    """Starts a daemon whose files are all in `folder` (absent or empty), and ends it with every container it had.

    engine: another than the machine's release has. flags: further ones of dockerd. settings: further keys of
    daemon.json, `default_runtime` as "default-runtime"."""
    engine = engine or engines.docker()
    folder.mkdir(parents=True, exist_ok=True)
    before = leftovers.machine_folders()
    sockets = Path(tempfile.mkdtemp(prefix="vgpu-docker-"))
    docker = Docker(engine, folder, sockets)
    config = {
        **({"runtimes": {name: {"path": str(path)} for name, path in runtimes.items()}} if runtimes else {}),
        "deprecated-key-path": str(folder / "key.json"),  # else it is written to /etc/docker
        **{key.replace("_", "-"): value for key, value in settings.items()},
    }
    docker.config.write_text(json.dumps(config, indent=4) + "\n")
    with open(folder / "dockerd.log", "ab") as log:
        daemon = subprocess.Popen(
            [*_command(docker), *flags], env=engine.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        _wait_ready(docker, daemon)
        yield docker
    finally:
        _stop(docker, daemon)
        leftovers.remove_cgroups(docker.cgroup)
        shutil.rmtree(sockets)
        leftovers.remove_empty_folders(before)


def _command(docker: Docker) -> list[str]:
    folder = docker.folder
    return [
        str(docker.engine.program("dockerd")),
        f"--config-file={docker.config}",
        f"--host={docker.host}",
        f"--data-root={folder}/data",
        f"--exec-root={docker.sockets}/exec",
        f"--pidfile={folder}/dockerd.pid",
        f"--cgroup-parent={docker.cgroup}",
        "--exec-opt=native.cgroupdriver=cgroupfs",
        f"--storage-driver={storage_driver(folder)}",
        "--bridge=none",
        "--iptables=false",
        "--ip6tables=false",
        "--ip-forward=false",
        "--ip-masq=false",
        "--userland-proxy=false",
        "--shutdown-timeout=5",
    ]


def storage_driver(folder: Path) -> str:
    """overlay2 where the kernel can lay one over `folder`, else vfs, which copies."""
    with tempfile.TemporaryDirectory(dir=folder) as trial:
        for name in ("lower", "upper", "work", "merged"):
            Path(trial, name).mkdir()
        options = f"lowerdir={trial}/lower,upperdir={trial}/upper,workdir={trial}/work"
        mount = ["mount", "-t", "overlay", "overlay", "-o", options, f"{trial}/merged"]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            return "vfs"
        subprocess.run(["umount", f"{trial}/merged"], check=True)
        return "overlay2"


def _wait_ready(docker: Docker, daemon: subprocess.Popen[bytes], timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while docker("version").returncode:
        if daemon.poll() is not None:
            raise RuntimeError(f"dockerd ended at once with {daemon.returncode}:\n{docker.log()[-3000:]}")
        if time.monotonic() > end:
            raise TimeoutError(f"dockerd does not answer after {timeout} s:\n{docker.log()[-3000:]}")
        time.sleep(0.1)


def _stop(docker: Docker, daemon: subprocess.Popen[bytes]) -> None:
    if daemon.poll() is None:
        if ids := docker("ps", "--all", "--quiet").stdout.split():
            docker("rm", "--force", "--volumes", *ids)
        daemon.terminate()
        try:
            daemon.wait(30)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    for _, pid in leftovers.processes(docker.folder, docker.sockets):
        with contextlib.suppress(ProcessLookupError):  # a shim or containerd whose daemon was killed
            os.kill(pid, signal.SIGKILL)
    for mountpoint in reversed(leftovers.mounts(docker.folder, docker.sockets)):
        subprocess.run(["umount", "--lazy", mountpoint], check=False)
