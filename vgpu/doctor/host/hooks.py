"""Hook files of Podman and CRI-O, and CDI specs: whatever they name must be there, or containers do not start."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from oci_hook.errors import VgpuError
from runtime_config import cdi, cdi_check
from vgpu.cdi import expected_text
from vgpu.doctor.finding import Result, Seen, found
from vgpu.doctor.host.driver import module_version
from vgpu.doctor.host.machine import Host, NoPolicy, Run

HOOK_FOLDERS = ("/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d", "/run/containers/oci/hooks.d")
_OUR_SCRIPT = "/vgpu_hook.py"  # ours names an interpreter as its program
_CDI_FOLDERS = ("/etc/cdi", "/run/cdi")  # /var/run is a link to /run


def hook_files(host: Host) -> Iterator[Result]:
    good = 0
    for path in _files(host, HOOK_FOLDERS, ".json"):
        text = host.read(path) or ""
        try:
            hook = json.loads(text)["hook"]
            program, arguments = hook["path"], hook.get("args") or []
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            what = f"no hook file of version 1.0.0 ({type(error).__name__}: {error})"
            yield found("VGPU-ENG-005", path, what, remedy=f"mend it, or: rm {path}")
            continue
        needed = [(program, os.X_OK), *((word, os.R_OK) for word in arguments if str(word).endswith(_OUR_SCRIPT))]
        gone = next((name for name, how in needed if not os.access(host.path(str(name)), how)), None)
        if gone is not None:
            evidence = f"it names {gone}, which is not there or is no program"
            yield found("VGPU-ENG-004", path, evidence, remedy=f"install what {gone} belongs to, or: rm {path}")
        else:
            good += 1
    yield Seen(f"{good} hook files")


def _files(host: Host, folders: tuple[str, ...], *ends: str) -> list[str]:
    return [f"{folder}/{name}" for folder in folders for name in host.names(folder) if name.endswith(ends)]


def cdi_specs(host: Host) -> Iterator[Result]:
    """What `vgpu cdi check` finds, below the host's root."""
    specs = list(cdi.folder_specs([host.path(folder) for folder in _CDI_FOLDERS]))
    root = "" if host.root == "/" else host.root.rstrip("/")
    findings = cdi_check.check(specs, _ours_now(host), module_version(host), root=root)
    for one in findings:
        path, what, remedy = (text.replace(f"{root}/", "/") for text in (one.path, one.what, one.remedy))
        yield found(one.code, path, what, remedy=remedy)
    yield Seen(f"{len(specs) - len({one.path for one in findings})} CDI specs are good")


def _ours_now(host: Host) -> str | None:
    """What our own spec should say; None where that cannot be told."""
    try:
        return expected_text(host.policy, refresh=False)
    except (NoPolicy, VgpuError):
        return None


CHECKS: tuple[tuple[str, str, Run], ...] = (("engines", "hook files", hook_files), ("engines", "CDI", cdi_specs))
