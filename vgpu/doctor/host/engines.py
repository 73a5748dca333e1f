"""Docker and containerd: is our runtime in their configuration, is that what they read, and is it in force?"""

from __future__ import annotations

import os
from collections.abc import Iterator

from oci_hook.errors import VgpuError
from runtime_config.engines import LAUNCHER_NAME, RUNTIME, containerd, docker
from vgpu import engine_docker
from vgpu.configure import Editor
from vgpu.doctor.finding import CannotSee, Result, Seen, Unseen, found
from vgpu.doctor.host.machine import Host, NoPolicy, Run, why

_NOT_INSTALLED = "not installed"


def _flag(command: list[str], *names: str) -> str:
    """The value of the first flag of that name, "--name=value" or "--name value"; "" if it is not given."""
    for number, word in enumerate(command):
        for name in names:
            if word == name and number + 1 < len(command):
                return command[number + 1]
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
    return ""


def _dockerd(host: Host) -> list[str] | None:
    """The command line of the daemon behind the socket; where that says nothing, of the oldest; None: none runs."""
    running = dict(host.processes("dockerd"))
    behind = engine_docker.listener(host.docker) if host.ask else None
    return running.get(behind or 0) or next((running[pid] for pid in sorted(running)), None)


def _in_file(host: Host, editor: Editor, engine: str, path: str, text: str) -> Iterator[Result]:
    """What the file says of us. Raises what the editor raises for a file that it would not edit."""
    launcher = editor.find(text, path).launcher
    remedy = f"vgpu configure {engine}" + (" --reload" if engine == "docker" else "")
    if launcher is None:
        yield found("VGPU-ENG-001", path, f"it has no runtime {RUNTIME}", remedy=remedy)
    elif not os.access(host.path(launcher), os.X_OK):
        yield found(
            "VGPU-ENG-002", path, f"its runtime {RUNTIME} is {launcher}, which is no program here", remedy=remedy
        )
    else:
        yield from _of_this_installation(host, path, launcher)


def _of_this_installation(host: Host, path: str, launcher: str) -> Iterator[Result]:
    try:
        ours = f"{host.policy.prefix}/bin/{LAUNCHER_NAME}"
    except NoPolicy:
        return
    if os.path.realpath(launcher) != os.path.realpath(ours):
        evidence = f"its runtime {RUNTIME} is {launcher}, and this installation is {ours}"
        yield found("VGPU-ENG-002", path, evidence, severity="warning")
    else:
        yield Seen(f"{path} has {launcher}")


def docker_is_configured(host: Host) -> Iterator[Result]:
    command = _dockerd(host)
    text = host.read(docker.DEFAULT_PATH)
    if command is None and text is None and host.program("dockerd") is None:
        yield Seen(_NOT_INSTALLED)
        return
    command = command or []
    read = _flag(command, "--config-file") or docker.DEFAULT_PATH
    if read != docker.DEFAULT_PATH and text and docker.find(text).launcher:
        evidence = f"{docker.DEFAULT_PATH} has our runtime, but dockerd reads {read} (--config-file)"
        yield found("VGPU-ENG-003", docker.DEFAULT_PATH, evidence, remedy=f"vgpu configure docker --config {read}")
    text = host.read(read) or ""
    yield from _flags(command, read, text)
    yield from _in_file(host, docker, "docker", read, text)


def _flags(command: list[str], path: str, text: str) -> Iterator[Result]:
    """dockerd refuses to start when a setting is in the file and on its command line."""
    said = docker.find(text, path)
    for flag, in_file in (("--add-runtime", said.launcher), ("--default-runtime", said.default)):
        value = _flag(command, flag)
        if value and in_file:
            evidence = f"dockerd was started with {flag}={value}, and {path} sets the same: its next start fails"
            yield found(
                "VGPU-ENG-003", path, evidence, remedy=f"take {flag} out of dockerd's unit: systemctl edit docker"
            )


def docker_has_it(host: Host) -> Iterator[Result]:
    """By the daemon's own answer."""
    command = _dockerd(host)
    if command is None:
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
    read = _flag(command, "--config-file") or docker.DEFAULT_PATH
    wanted = docker.find(host.read(read) or "", read).launcher
    has = (info.get("Runtimes") or {}).get(RUNTIME, {}).get("path")
    if wanted == has:
        yield Seen(f"dockerd {info.get('ServerVersion')} has the runtime {RUNTIME}" if has else "in force as it stands")
    else:
        evidence = f"dockerd has the runtime {RUNTIME} at {has}, the file says {wanted}"
        remedy = "systemctl reload docker" if wanted else "vgpu configure docker --undo --reload"
        yield found("VGPU-CFG-004", host.docker, evidence, remedy=remedy)


def containerd_is_configured(host: Host) -> Iterator[Result]:
    daemon = next(iter(sorted(host.processes("containerd"))), None)  # the oldest: Docker may have one of its own
    command = daemon[1] if daemon else []
    read = _flag(command, "--config", "-c") or containerd.DEFAULT_PATH
    text = host.read(read)
    if text is None:
        yield Seen(_NOT_INSTALLED if daemon is None else f"{read}: there is none, and Docker needs none")
        return
    if containerd.find(text, read).launcher is None:
        yield Seen(f"{read} has no handler {RUNTIME}; only Kubernetes and ctr need one")
        return
    yield from _in_file(host, containerd, "containerd", read, text)
    if daemon:
        yield from _read_since(host, daemon[0], read)


def _read_since(host: Host, pid: int, path: str) -> Iterator[Result]:
    """containerd reads its file when it starts, and then no more."""
    status = host.stat(path)
    try:
        started = os.stat(host.path(f"/proc/{pid}")).st_ctime
    except OSError as error:
        yield Unseen(f"process {pid}", why(error))
        return
    if status and status.st_mtime > started:
        evidence = f"changed {status.st_mtime - started:.0f} s after containerd (process {pid}) had started"
        yield found("VGPU-CFG-004", path, evidence, remedy="systemctl restart containerd")


CHECKS: tuple[tuple[str, str, Run], ...] = (
    ("engines", "Docker", docker_is_configured),
    ("engines", "Docker's API", docker_has_it),
    ("engines", "containerd", containerd_is_configured),
)
