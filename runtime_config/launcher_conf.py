"""<prefix>/etc/launcher.conf: the few absolute paths that the launcher needs, one `key=value` a line."""

from __future__ import annotations

import os

from oci_hook.errors import HostError
from runtime_config import files


def path_in(prefix: str) -> str:
    return f"{prefix}/etc/launcher.conf"


def text(prefix: str, runtime: str, python: str, state: str) -> str:
    """The whole file. All paths absolute."""
    lines = {
        "runtime": runtime,
        "python": python,
        "shim": f"{prefix}/lib/vgpu/python/vgpu_shim.py",
        "policy": f"{prefix}/etc/policy.json",
        "state": state,
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def agree(prefix: str, runtime: str, state: str) -> bool:
    """Has the launcher start `runtime` and keep refused starts in `state`; False if it does so already.

    Raises VGPU-CFG-001 and -002.
    """
    file = files.read(path_in(prefix))
    if file.data is None:
        raise HostError("VGPU-CFG-001", f"{file.path} does not exist", remedy="install vgpu again: vgpu install")
    lines = files.decode(file).splitlines()
    wanted = list(lines)
    for key, value in {"runtime": runtime, "state": state}.items():
        places = [number for number, line in enumerate(wanted) if line.startswith(f"{key}=")]
        for number in places or [len(wanted)]:
            wanted[number : number + 1] = [f"{key}={value}"]
    if wanted == lines:
        return False
    files.replace(file, "".join(f"{line}\n" for line in wanted).encode())
    return True


def python_of(prefix: str) -> str:
    """The interpreter of shim and hook. Raises VGPU-CFG-001."""
    file = files.read(path_in(prefix))
    for line in files.decode(file).splitlines():
        if line.startswith("python="):
            return line.removeprefix("python=")
    raise HostError("VGPU-CFG-001", f"{file.path} names no python", remedy="install vgpu again with its install.py")


def check_runtime(runtime: str, prefix: str) -> None:
    """Is there a program at `runtime` that is not our own launcher? Raises VGPU-CFG-003."""
    try:
        ours = os.path.samefile(runtime, f"{prefix}/bin/vgpu-runtime")
    except OSError:
        ours = False
    if ours:
        what = "is vgpu's own launcher, which would start itself for ever"
    elif not os.path.isfile(runtime) or not os.access(runtime, os.X_OK):
        what = "is not a program"
    else:
        return
    remedy = "write the absolute path of runc or crun, as `command -v runc` shows it"
    raise HostError("VGPU-CFG-003", f"runtime={runtime!r} {what}", remedy=remedy)
