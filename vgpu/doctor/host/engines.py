"""The engines: is our runtime in their configuration, is that what they read, and is it in force?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from oci_hook.errors import VgpuError
from runtime_config.engines import LAUNCHER_NAME, RUNTIME, containerd, crio, docker, podman
from vgpu import docker_process, engine_docker
from vgpu.configure import Editor
from vgpu.docker_process import Start
from vgpu.doctor.finding import CannotSee, Result, Seen, Unseen, found, refused
from vgpu.doctor.host.machine import Host, NoPolicy, Run, why


@dataclass(frozen=True, slots=True)
class Engine:
    """name: as in `vgpu configure NAME`. path: of the file that we write into. program: what is installed or not."""

    name: str
    program: str
    editor: Editor
    path: str

    @property
    def command(self) -> str:
        return f"vgpu configure {self.name}" + (" --reload" if self.name == "docker" else "")


DOCKER = Engine("docker", "dockerd", docker, docker.DEFAULT_PATH)
CONTAINERD = Engine("containerd", "containerd", containerd, containerd.DEFAULT_PATH)
PODMAN = Engine("podman", "podman", podman, podman.DEFAULT_PATH)
CRIO = Engine("crio", "crio", crio, crio.DEFAULT_PATH)


def any_is_configured(host: Host) -> Iterator[Result]:
    """One engine that knows us is enough: which one is the admin's choice."""
    installed = [one for one in (DOCKER, PODMAN, CRIO, CONTAINERD) if host.program(one.program)]
    having = [one.name for one in installed if _has_runtime(host, one)]
    if having:
        yield Seen(f"runtime {RUNTIME} is set up for {', '.join(having)}")
    elif installed:
        names = ", ".join(one.name for one in installed)
        evidence = f"none of {names} has the runtime {RUNTIME}"
        yield found("VGPU-ENG-001", "engines", evidence, remedy=installed[0].command)
    else:
        yield Seen("no engine is installed")


def _has_runtime(host: Host, engine: Engine) -> bool:
    start = _running(host, engine)
    path = (start and start.value("--config-file" if engine is DOCKER else "--config")) or engine.path
    try:
        return engine.editor.find(host.read(path) or "", path).launcher is not None
    except (VgpuError, CannotSee):
        return False  # the engine's own check tells


def _running(host: Host, engine: Engine) -> Start | None:
    """The daemon that runs: Docker's the one behind the socket, else the oldest of that name."""
    running = dict(host.processes(engine.program))
    if engine is CONTAINERD:
        running = {pid: words for pid, words in running.items() if not _is_dockers(host, pid)}
    if not running:
        return None
    behind = engine_docker.listener(host.docker) if engine is DOCKER and host.ask else None
    pid = behind if behind in running else min(running)
    return Start(f"process {pid}", tuple(running[pid]), pid)


def _is_dockers(host: Host, pid: int) -> bool:
    """A containerd that dockerd has started for itself, with a file of its own: Docker's own says what is started."""
    status = host.read(f"/proc/{pid}/status") or ""
    parent = next((line.split()[1] for line in status.splitlines() if line.startswith("PPid:")), "0")
    return (host.read(f"/proc/{parent}/comm") or "").rstrip("\n") == DOCKER.program


def _in_file(host: Host, engine: Engine, path: str, text: str) -> Iterator[Result]:
    """What the file says of us. Raises what the editor raises for a file that it would not edit."""
    launcher = engine.editor.find(text, path).launcher
    undo = engine.command.replace(engine.name, f"{engine.name} --undo", 1)
    again = f"{undo} && {engine.command}"
    if launcher is None:
        yield Seen(f"{path} has no runtime {RUNTIME}")
    elif not os.access(host.path(launcher), os.X_OK):
        evidence = f"its runtime {RUNTIME} is {launcher}, and that is no program"
        yield found("VGPU-ENG-002", path, evidence, remedy=again)
    elif launcher != (ours := _ours(host) or launcher) and os.path.realpath(launcher) != os.path.realpath(ours):
        evidence = f"its runtime {RUNTIME} is {launcher}, and this installation is {ours}"
        yield found("VGPU-ENG-002", path, evidence, remedy=again, severity="warning")
    else:
        yield Seen(f"{path} has {launcher}")


def _ours(host: Host) -> str:
    try:
        return f"{host.policy.prefix}/bin/{LAUNCHER_NAME}"
    except NoPolicy:
        return ""


def docker_is_good(host: Host) -> Iterator[Result]:
    start = _running(host, DOCKER)
    if start is None and host.read(DOCKER.path) is None and host.program(DOCKER.program) is None:
        yield Seen("not installed")
        return
    starts = [*([start] if start else []), *docker_process.units(host.root)]
    read = next((path for one in starts if (path := one.value("--config-file"))), DOCKER.path)
    shadowed = host.read(DOCKER.path) or ""
    if read != DOCKER.path and docker.find(shadowed).launcher:
        evidence = f"{DOCKER.path} has our runtime, but dockerd reads {read} (--config-file)"
        yield found("VGPU-ENG-003", DOCKER.path, evidence, remedy=f"vgpu configure docker --config {read}")
    text = host.read(read) or ""
    yield from _flags(starts, read, text)
    yield from _in_file(host, DOCKER, read, text)


def _flags(starts: Sequence[Start], path: str, text: str) -> Iterator[Result]:
    """dockerd refuses to start when a setting is in the file and on its command line."""
    launcher = docker.find(text, path).launcher or ""  # raises what the file cannot be used for
    try:
        docker_process.require_no_conflict(text, path, launcher, starts=starts)
    except VgpuError as error:
        yield refused(error, path)


def docker_has_it(host: Host) -> Iterator[Result]:
    """By the daemon's own answer."""
    start = _running(host, DOCKER)
    if start is None:
        yield Seen("dockerd does not run")
        return
    path = host.docker.removeprefix("unix://")
    if not host.ask:
        raise CannotSee("dockerd", "not asked: --offline")
    if not os.access(path, os.R_OK | os.W_OK):
        raise CannotSee(path, "its socket is not there, or may not be used: run the doctor as root, or name it with -H")
    try:
        info = engine_docker.info(host.docker)
    except VgpuError as error:
        raise CannotSee(host.docker, str(error)) from None
    read = start.value("--config-file") or DOCKER.path
    wanted = docker.find(host.read(read) or "", read).launcher
    has = (info.get("Runtimes") or {}).get(RUNTIME, {}).get("path")
    if wanted == has:
        yield Seen(
            f"dockerd {info.get('ServerVersion')} has {f'the runtime {RUNTIME}' if has else 'what its file says'}"
        )
    else:
        evidence = f"dockerd has the runtime {RUNTIME} at {has}, the file says {wanted}"
        remedy = "systemctl reload docker" if wanted else "vgpu configure docker --undo --reload"
        yield found("VGPU-CFG-004", host.docker, evidence, remedy=remedy)


def containerd_is_good(host: Host) -> Iterator[Result]:
    yield from _reads_at_its_start(host, CONTAINERD, "--config")


def crio_is_good(host: Host) -> Iterator[Result]:
    yield from _reads_at_its_start(host, CRIO, "")


def podman_is_good(host: Host) -> Iterator[Result]:
    """It reads its files at each call: what stands there is in force."""
    text = host.read(PODMAN.path)
    if text is None:
        yield Seen("not set up" if host.program(PODMAN.program) else "not installed")
    else:
        yield from _in_file(host, PODMAN, PODMAN.path, text)


def _reads_at_its_start(host: Host, engine: Engine, flag: str) -> Iterator[Result]:
    """A daemon that reads its file when it starts, and then no more. flag: that names another file."""
    start = _running(host, engine)
    path = (start.value(flag) if start and flag else None) or engine.path
    text = host.read(path)
    if text is None or engine.editor.find(text, path).launcher is None:
        yield Seen("not set up" if start or host.program(engine.program) else "not installed")
        return
    yield from _in_file(host, engine, path, text)
    status = host.stat(path)
    if start is None or status is None:
        return
    try:
        began = os.stat(host.path(f"/proc/{start.pid}")).st_ctime
    except OSError as error:
        yield Unseen(start.where, why(error))
        return
    if status.st_mtime > began:
        evidence = f"changed {status.st_mtime - began:.0f} s after {engine.program} ({start.where}) had started"
        yield found("VGPU-CFG-004", path, evidence, remedy=f"systemctl restart {engine.program}")


CHECKS: tuple[tuple[str, str, Run], ...] = (
    ("engines", "engines", any_is_configured),
    ("engines", "Docker", docker_is_good),
    ("engines", "Docker's API", docker_has_it),
    ("engines", "containerd", containerd_is_good),
    ("engines", "Podman", podman_is_good),
    ("engines", "CRI-O", crio_is_good),
)
