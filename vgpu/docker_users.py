"""Which of Docker's containers name our runtime: they could not start once it is gone."""

from __future__ import annotations

import json
from pathlib import Path

from oci_hook.errors import HostError, VgpuError, shown
from runtime_config.engines import RUNTIME
from vgpu import docker_process, engine_docker

_SHOWN = 5


def require_none(host: str, path: str, text: str) -> None:
    """Raises VGPU-CFG-008 with their names. path, text: of the daemon.json that our runtime goes out of."""
    users = containers(host, path, text)
    if not users:
        return
    names = ", ".join(users[:_SHOWN]) + (f" and {len(users) - _SHOWN} more" if len(users) > _SHOWN else "")
    raise HostError(
        "VGPU-CFG-008",
        f"{len(users)} container{'s' if len(users) > 1 else ''} of Docker could not start any more without the runtime "
        f"{RUNTIME}: {names}",
        remedy="remove them with docker rm, or repeat the command with --force",
    )


def containers(host: str, path: str, text: str) -> list[str]:
    """Names of the containers, running or not, that were created with our runtime, sorted.

    From the daemon behind `host` if it is the one that reads `path`; else from its files, as when it is stopped.
    """
    listener = engine_docker.listener(host)
    mine = [start for start in docker_process.running() if start.reads(path)]
    if any(start.pid == listener or listener == 1 for start in mine):
        try:
            return engine_docker.with_runtime(host, RUNTIME)
        except VgpuError:
            pass  # it does not answer; its files are there all the same
    root = next((found for start in mine if (found := start.value("--data-root"))), None) or _data_root(text)
    return sorted(name for file in Path(root).glob("containers/*/hostconfig.json") if (name := _name(file)))


def _data_root(text: str) -> str:
    try:
        root = json.loads(text.removeprefix("\ufeff") or "{}").get("data-root")
    except ValueError:
        root = None
    return root if isinstance(root, str) and root else "/var/lib/docker"


def _name(file: Path) -> str:
    """The container's name if it has our runtime, else ""."""
    try:
        if json.loads(file.read_bytes()).get("Runtime") != RUNTIME:
            return ""
        named = json.loads(file.with_name("config.v2.json").read_bytes()).get("Name", "")
    except (OSError, ValueError, AttributeError):
        return ""
    return shown(str(named).lstrip("/") or file.parent.name)[1:-1]
