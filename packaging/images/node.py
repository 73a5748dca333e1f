"""Installs vgpu on a node out of a container that has the node's root at /host. Standard library only.

    node.py install [--engine containerd] [--engine-config PATH] [--restart] [-- ARGUMENTS OF vgpu install]
    node.py uninstall [--engine …] [--restart]
    node.py wait        does nothing until it is told to end: the pod of a DaemonSet must stay

On the node: <environment>/<digest>, a virtual environment of the node's own Python with the packages of this image, and
<prefix>, which `vgpu install` makes from there. All programs run in the node's root (chroot); none needs a network.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SITE = Path("/opt/vgpu-site")
MARK = ".complete"  # the last file of an environment that is written
CHANGES = 2  # exit code of --dry-run where there is something to do
UNITS = {"k3s": "k3s*.service", "rke2": "rke2-*.service"}  # of a server or an agent


class NodeError(Exception):
    """The node cannot be installed on; the text has the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class Node:
    """host: the node's root as this container sees it. prefix, environments, python: paths on the node."""

    host: Path
    prefix: str
    environments: str
    python: str
    site: Path = SITE

    def run(self, *command: str, codes: Sequence[int] = (0,)) -> int:
        """A program of the node, in its root. Raises NodeError with what it said."""

        def enter() -> None:
            os.chroot(self.host)
            os.chdir("/")

        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        done = subprocess.run(
            command, preexec_fn=enter, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        said = done.stdout.decode(errors="replace").strip()
        if done.returncode not in codes:
            raise NodeError(f"{' '.join(command)}: exit {done.returncode}: {said}")
        if said:
            print(said, flush=True)
        return done.returncode

    def on_host(self, path: str) -> Path:
        """Where this container sees `path` of the node. An absolute link of the node would lead into this container."""
        here = self.host / path.lstrip("/")
        if not here.resolve().is_relative_to(self.host.resolve()):
            raise NodeError(f"{path} leads over a link of the node; name the folder that it leads to")
        return here

    def environment(self) -> str:
        """Makes, if it is not there, the environment of this image's packages; returns its path on the node."""
        path = f"{self.environments}/{_digest(self.site)}"
        here = self.on_host(path)
        if (here / MARK).exists():
            return path
        if not os.access(self.on_host(self.python), os.X_OK):
            raise NodeError(
                f"the node has no {self.python}; install Python 3.11 or later there, or name it with --python"
            )
        shutil.rmtree(here, ignore_errors=True)  # of a run that was killed
        self.run(self.python, "-m", "venv", "--without-pip", path)
        [packages] = here.glob("lib/python3*/site-packages")
        shutil.copytree(self.site, packages, dirs_exist_ok=True)
        (here / MARK).touch()
        return path

    def forget_environments(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.on_host(self.environments))


def _digest(site: Path) -> str:
    """Of the packages' own lists of files, which have a digest of each."""
    digest = hashlib.sha256()
    for record in sorted(site.glob("*.dist-info/RECORD")):
        digest.update(record.read_bytes())
    return digest.hexdigest()[:16]


def install(node: Node, options: argparse.Namespace) -> None:
    environment = node.environment()
    python = f"{environment}/bin/python"
    common = ("--prefix", node.prefix, "--python", node.python, "--cli-python", python)
    node.run(python, "-I", "-m", "vgpu", "install", *common, *options.arguments)
    _configure(node, options)  # GPUs are looked for when the first container asks: a pod may not open them


def uninstall(node: Node, options: argparse.Namespace) -> None:
    if not os.path.lexists(node.on_host(f"{node.prefix}/bin/vgpu")):
        print(f"{node.prefix}: vgpu is not installed there")
        return
    _configure(node, options, "--undo")
    environment = f"{node.environments}/{_digest(node.site)}"
    inside = os.path.exists(node.on_host(f"{environment}/{MARK}"))
    command = [f"{environment}/bin/python", "-I", "-m", "vgpu"] if inside else [f"{node.prefix}/bin/vgpu"]
    node.run(*command, "uninstall", "--prefix", node.prefix, *options.arguments)
    node.forget_environments()


def _configure(node: Node, options: argparse.Namespace, *more: str) -> None:
    """Changes the engine's configuration if it is not as it should be, and then restarts the engine if asked."""
    if options.engine == "none":
        return
    engine = _engine(options)
    command = [f"{node.prefix}/bin/vgpu", "configure", engine, "--prefix", node.prefix, *more]
    if options.engine_config:
        command += ["--config", options.engine_config]
    if node.run(*command, "--dry-run", codes=(0, CHANGES)) == 0:
        return
    node.run(*command)
    if options.restart:
        # the node's own systemd: its mount namespace is that of process 1, which is visible with hostPID
        node.run("/usr/bin/nsenter", "--target", "1", "--mount", "--", "systemctl", *_restart(engine))
    else:
        print(f"restart {engine} on this node for the change to count", flush=True)


def _engine(options: argparse.Namespace) -> str:
    """k3s and RKE2 have a containerd of their own, which is told by the place of its file."""
    inside = [engine for engine in UNITS if f"/{engine}/agent/etc/containerd/" in options.engine_config]
    return inside[0] if inside else str(options.engine)


def _restart(engine: str) -> tuple[str, str]:
    return ("try-restart", UNITS[engine]) if engine in UNITS else ("restart", engine)


def wait() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What stands after `--` is not ours: argparse would take it apart."""
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(prog="node.py", description="install vgpu on a node", epilog="-- more for vgpu")
    parser.add_argument("verb", choices=("install", "uninstall", "wait"))
    parser.add_argument("--host", type=Path, default=Path("/host"), help="the node's root in this container")
    parser.add_argument("--prefix", default="/opt/vgpu", help="on the node")
    parser.add_argument("--environments", default="/opt/vgpu-environments", help="on the node, for Python packages")
    parser.add_argument("--python", default="/usr/bin/python3", help="the node's interpreter")
    parser.add_argument("--engine", choices=("containerd", "docker", "none"), default="containerd")
    parser.add_argument("--engine-config", default="", help="the engine's file on the node, if not the usual one")
    parser.add_argument("--restart", action="store_true", help="restart the engine where its file was changed")
    options = parser.parse_args(arguments[:at])
    options.arguments = list(arguments[at + 1 :])
    return options


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    node = Node(options.host, options.prefix, options.environments, options.python)
    try:
        if options.verb == "wait":
            wait()
        elif not options.host.is_dir():
            raise NodeError(f"{options.host} is not there: mount the node's root at that place")
        else:
            {"install": install, "uninstall": uninstall}[options.verb](node, options)
    except (NodeError, OSError) as error:
        print(f"vgpu-installer: {error}", file=sys.stderr)
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
