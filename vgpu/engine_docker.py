"""The running dockerd: have it read its configuration again, and ask it what it has.

The engine's API is asked from the operator's command only, never on the start path, where it would wait for itself.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from oci_hook.errors import HostError, VgpuError, shown

if TYPE_CHECKING:
    from docker import DockerClient

_Answer = TypeVar("_Answer")
_RELOAD_S = 10.0  # dockerd answers SIGHUP within milliseconds; a busy one may take longer
_ANSWER_S = 10
_PID_FILES = ("/run/docker.pid", "/var/run/docker.pid")


def _refuse(message: str, remedy: str) -> VgpuError:
    return HostError("VGPU-CFG-004", message, remedy=remedy)


def info(host: str) -> dict[str, Any]:
    """The daemon's own account of itself (GET /info). Raises VGPU-CFG-004 when it cannot be asked."""
    return _ask(host, lambda client: dict(client.info()))


def with_runtime(host: str, runtime: str) -> list[str]:
    """Names of all its containers, running or not, that were created with `runtime`, sorted. Raises as `info`."""

    def look(client: DockerClient) -> list[str]:
        ids = [container["Id"] for container in client.api.containers(all=True)]
        found = [client.api.inspect_container(identity) for identity in ids]
        return sorted(one["Name"].lstrip("/") for one in found if one["HostConfig"].get("Runtime") == runtime)

    return _ask(host, look)


def _ask(host: str, question: Callable[[DockerClient], _Answer]) -> _Answer:
    import docker
    from docker.errors import DockerException

    try:
        client = docker.DockerClient(base_url=host, timeout=_ANSWER_S)
        try:
            return question(client)
        finally:
            client.close()
    except (DockerException, OSError, ValueError) as error:
        raise _refuse(
            f"dockerd at {host} cannot be asked: {_why(error)}", "start it, or name its socket with -H"
        ) from error


def _why(error: BaseException) -> str:
    """What the system said: libraries wrap it several times."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror.lower()
        inner = inner.__cause__ or inner.__context__
    return shown(str(error), 120)


def verify(host: str, runtime: str, launcher: str | None, *, wait: bool) -> None:
    """Does the daemon have `runtime` at `launcher`, or, with None, not have it? wait: it was told to reload just now.

    Raises VGPU-CFG-004.
    """
    deadline = time.monotonic() + (_RELOAD_S if wait else 0)
    while True:
        entry = info(host).get("Runtimes", {}).get(runtime)
        found = None if entry is None else str(entry.get("path"))
        if found == launcher:
            return
        if time.monotonic() >= deadline:
            break
        time.sleep(0.1)
    has = f"has no runtime {runtime}" if found is None else f"has the runtime {runtime} at {shown(found)}"
    remedy = "reload it: systemctl reload docker; see that it reads this file: systemctl cat docker, --config-file"
    raise _refuse(f"dockerd at {host} {has}", remedy)


def reload(host: str) -> None:
    """SIGHUP to the dockerd behind `host`. Raises VGPU-CFG-004 when it is not clear which process that is."""
    found = listener(host)
    # with socket activation it is systemd that listens, and the daemon is the machine's own
    for pid in map(_from_file, _PID_FILES) if found == 1 else (found,):
        if pid is None:
            continue
        try:
            process = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            if _name(pid) == "dockerd":  # asked after the pidfd is open: it is this process, not a later one
                signal.pidfd_send_signal(process, signal.SIGHUP)
                return
        except PermissionError:
            raise _refuse(f"dockerd (process {pid}) belongs to another user", "run the command as root") from None
        except ProcessLookupError:
            continue
        finally:
            os.close(process)
    raise _refuse(f"the process of dockerd at {host} was not found", "reload it yourself: systemctl reload docker")


def listener(host: str) -> int | None:
    """The process that listens on a Unix socket, as the kernel knows it. systemd's own for a socket that it opened."""
    path = host.removeprefix("unix://")
    if path == host:
        return None
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ANSWER_S)
            connection.connect(path)
            size = struct.calcsize("3i")
            pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    except OSError:
        return None
    return int(pid) or None


def _from_file(path: str) -> int | None:
    try:
        with open(path) as stream:
            return int(stream.read(32))
    except (OSError, ValueError):
        return None


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as stream:
            return stream.read().strip()
    except OSError:
        return ""
