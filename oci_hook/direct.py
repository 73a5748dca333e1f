"""The hook of a container that no shim has seen: it came by CDI (`--device vgpu.dev/gpu=all`) or hooks.d.

Does what the shim does, as far as that can be done when the spec is read already: request, placement, the container's
folder; then what our hook does after every shim. The device files are the engine's: only a GPU whose file is there
can be given, and those of other GPUs are taken out again (hide.py). Closed: who has our device and asks for no slice,
or asks for a slice and has no device, does not start. Who has neither is left alone: a pod's annotations bring the hook
by hooks.d to its sandbox, and to containers that they do not mean.
"""

from __future__ import annotations

import os
import stat

from oci_hook import audit, hook, ledger, pods, policy, request, shim
from oci_hook.bundle import Bundle, Docker
from oci_hook.errors import PlacementError, RequestError, VgpuError
from oci_hook.records import DeviceFile
from oci_hook.values import TYPE_CHECKING, replace

if TYPE_CHECKING:
    from typing import Any

    from oci_hook.records import Inventory, Policy, Request

CDI_ALL = "vgpu.dev/gpu=all"


def main(policy_path: str) -> int:
    """The state on standard input. Returns the exit code; a refusal is one line on standard error."""
    os.umask(0o022)
    try:
        settings = hook.load_policy(policy_path)
        raw = hook.read_state(0)
        state = hook.parse_state(raw, starting=True)
        if _is_ours_already(settings, state) or not _place(settings, state):
            return 0
    except VgpuError as error:
        os.write(2, error.line().encode("utf-8", "backslashreplace") + b"\n")
        return error.exit_code
    code, armed = hook.answer(settings, raw)
    hook.tell(settings, armed)
    return code


def _is_ours_already(settings: Policy, state: hook.State) -> bool:
    """By a shim, whose own hook comes later in the list; or by the same hook, where CDI and hooks.d both name it."""
    entry = ledger.read(settings.state_dir, state.id)
    if entry is None or not ledger.alive(entry):
        return False
    return entry.state == "creating" or entry.init == ledger.process(state.pid)


def _place(settings: Policy, state: hook.State) -> bool:
    """The container's folder and its place in the ledger; False: it is none of ours. A refusal is kept, as this process
    alone knows of it."""
    facts = {"part": "hook", "bundle": state.bundle}
    try:
        bundle = Bundle(state.bundle)
        bundle.close()  # it is read, and nothing is written
        docker = bundle.docker(state.id)
        facts |= {"name": docker.name, "image": docker.image}
        asked = _asked(settings, bundle, docker)
        have = shim.inventory_now(settings)
        present = _present(bundle.spec, have)
        if asked is None:
            _require_no_gpu(present)
            return False
        _require_gpu(present, have)
        creator = ledger.process(os.getpid())
        assert creator is not None, "we are alive"
        shim.grant(settings, state.id, docker, asked, have, creator, present)
        return True
    except VgpuError as error:
        if not isinstance(error, shim.Refused):
            audit.append(settings.log_dir, "deny", state.id, code=error.code, message=str(error)[:4096])
        audit.failure(settings.state_dir, state.id, error, **facts)
        raise
    except Exception as error:
        audit.bug(settings.state_dir, state.id, error, **facts)
        raise


def _asked(settings: Policy, bundle: Bundle, docker: Docker) -> Request | None:
    """None: it asks for nothing."""
    annotations = bundle.annotations
    if pods.is_sandbox(annotations):
        return None
    asked = request.parse(annotations, docker.labels, bundle.env, settings.sources)
    believed = docker.labels if "label" in settings.sources else {}
    return asked and replace(asked, labels=policy.kept_labels({**believed, **annotations}, settings))


def _present(spec: dict[str, Any], have: Inventory) -> list[DeviceFile]:
    """The device files that the engine has put in, by their path in the container."""
    linux = spec.get("linux") or {}
    nodes = [(entry.get("path"), entry.get("major"), entry.get("minor")) for entry in linux.get("devices") or []]
    binds = [(mount.get("destination"), mount.get("source")) for mount in spec.get("mounts") or []]
    present = []
    for device in have.devices:
        number = _number(device.source)
        paths = [path for path, *found in nodes if number is not None and tuple(found) == number]
        paths += [path for path, source in binds if source == device.source]
        present += [DeviceFile(device.source, str(path), device.gpu, device.kind) for path in paths]
    return present


def _require_no_gpu(present: list[DeviceFile]) -> None:
    """Raises RequestError VGPU-REQ-007: nobody has a device without a slice of it."""
    if present:
        raise RequestError(
            "VGPU-REQ-007",
            "the container has devices of vgpu's and asks for no slice of them",
            remedy="say how much: --annotation vgpu.memory=8GiB; or leave out --device vgpu.dev/gpu=…",
        )


def _require_gpu(present: list[DeviceFile], have: Inventory) -> None:
    """Raises PlacementError VGPU-PLC-006 if there is no device of any GPU, or one that every GPU needs is missing."""
    there = {device.source for device in present}
    for device in have.devices:
        if device.gpu is None and device.source not in there:
            raise _without(device.target)
    if not any(device.gpu is not None for device in present):
        raise _without("of any GPU")


def _number(path: str) -> tuple[int, int] | None:
    """(major, minor) of a device of the host; None for a file that only stands for one."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (os.major(found.st_rdev), os.minor(found.st_rdev)) if stat.S_ISCHR(found.st_mode) else None


def _without(what: str) -> PlacementError:
    return PlacementError(
        "VGPU-PLC-006",
        f"the container asks for a slice and has no device file {what}",
        remedy=f"start it with --device {CDI_ALL}, or with --runtime vgpu; `vgpu cdi check` looks at the devices' file",
    )
