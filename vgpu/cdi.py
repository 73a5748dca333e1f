"""vgpu cdi generate, list, check: devices for engines that know the Container Device Interface."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from oci_hook import inventory
from oci_hook.errors import HostError, VgpuError
from oci_hook.records import Inventory, Policy
from runtime_config import cdi, cdi_check, files, launcher_conf
from vgpu import output
from vgpu.config import load
from vgpu.configure import WOULD_CHANGE, difference
from vgpu.installer import layout

FOUND_WRONG = 1
_LIST = ("DEVICE", "DEVICE FILES", "MOUNTS", "HOOKS", "SPEC")
_CHECK = ("SPEC", "FOUND", "TO MEND IT")


def generate(config: str, path: str, *, undo: bool, dry_run: bool, as_json: bool) -> int:
    """The command. path: of the spec, "-" for standard output. Returns 0, or WOULD_CHANGE."""
    text = None if undo else expected_text(load(config), refresh=not dry_run)
    if path == "-":
        print(text or "", end="")
        return 0
    file = files.read(path)
    before = files.decode(file)
    _require_ours(before, path)
    changed = file.data is not None if text is None else before != text
    result: dict[str, Any] = {"file": file.path, "changed": changed, "dry_run": dry_run}
    if dry_run:
        diff = difference(file, before, text)
        if as_json:
            output.emit_json({**result, "diff": diff})
        else:
            print(diff, end="")
        return WOULD_CHANGE if changed else 0
    if changed and text is None:
        files.remove(file)
    elif changed and text is not None:
        os.makedirs(os.path.dirname(file.target), 0o755, exist_ok=True)
        files.replace(file, text.encode())
    names = cdi.parse(text, file.path).names() if text else []
    if as_json:
        output.emit_json({**result, "devices": names})
    else:
        print(f"{file.path}: {('removed' if text is None else 'written') if changed else 'nothing to do'}")
        for name in names:
            print(f"  {name}")
    return 0


def _require_ours(text: str, path: str) -> None:
    """Raises VGPU-CFG-003 for a spec of somebody else's; a file of ours may be broken."""
    try:
        kind = cdi.parse(text, path).kind if text else cdi.KIND
    except VgpuError:
        kind = cdi.KIND if cdi.KIND in text else "unknown"
    if kind != cdi.KIND:
        what = f"{path} is a spec of the kind {kind}, not {cdi.KIND}"
        raise HostError("VGPU-CFG-003", what, remedy="name another file with --output")


def expected_text(policy: Policy, *, refresh: bool) -> str:
    """What our spec should say now. refresh: make the inventory anew if it is stale; else HostError VGPU-HOST-002."""
    prefix = layout.of_home(policy.prefix)  # the file outlives the version, which may be removed
    return cdi.generate(_inventory(policy, refresh=refresh), launcher_conf.python_of(prefix), prefix)


def _inventory(policy: Policy, *, refresh: bool) -> Inventory:
    """The host's; made anew if it is stale and `refresh`."""
    from vgpu.inventory import scan

    try:
        return inventory.of_host(policy)
    except HostError as error:
        if error.code != "VGPU-HOST-002" or not refresh:
            raise
    return scan(policy)


def show_list(folders: Sequence[str], *, as_json: bool) -> None:
    """Every device of every spec; files that are none are said on standard error."""
    found = list(cdi.folder_specs(folders or cdi.FOLDERS))
    specs = [spec for spec in found if isinstance(spec, cdi.Spec)]
    for error in found:
        if isinstance(error, VgpuError):
            output.message(error.line())
    rows = [(spec, name, device) for spec in specs for name, device in zip(spec.names(), spec.devices, strict=True)]
    if as_json:
        devices = [
            {"name": name, "spec": spec.path, "version": spec.version, **_edits(spec, device)}
            for spec, name, device in rows
        ]
        output.emit_json({"devices": devices, "unreadable": [str(one) for one in found if isinstance(one, VgpuError)]})
        return
    output.table(_LIST, [_row(spec, name, device) for spec, name, device in rows])


def _edits(spec: cdi.Spec, device: str) -> dict[str, list[str]]:
    both = (spec.common, spec.devices[device])
    return {
        "device_files": [inside for one in both for _, inside in one.nodes],
        "mounts": [inside for one in both for _, inside in one.mounts],
        "hooks": [hook for one in both for hook in one.hooks],
    }


def _row(spec: cdi.Spec, name: str, device: str) -> tuple[str, ...]:
    edits = _edits(spec, device)
    return (
        name,
        " ".join(edits["device_files"]) or "none",
        str(len(edits["mounts"])),
        str(len(edits["hooks"])),
        spec.path,
    )


def check(config: str, folders: Sequence[str], *, as_json: bool) -> int:
    """Returns 0, or FOUND_WRONG."""
    expected, trouble = None, None
    policy = None
    try:
        policy = load(config)
        expected = expected_text(policy, refresh=False)
    except VgpuError as error:
        trouble = error
    found = list(cdi.folder_specs(folders or cdi.FOLDERS))
    command = f"{policy.vgpu_command} cdi generate" if policy else "vgpu cdi generate"
    findings = cdi_check.check(found, expected, inventory.loaded_driver(), command)
    ours = [spec for spec in found if isinstance(spec, cdi.Spec) and spec.kind == cdi.KIND]
    if trouble is not None and ours:
        findings += [
            cdi_check.Finding(spec.path, f"cannot be compared: {trouble}", trouble.remedy, trouble.code)
            for spec in ours
        ]
    if as_json:
        rows = [{"spec": one.path, "code": one.code, "found": one.what, "remedy": one.remedy} for one in findings]
        output.emit_json({"specs": len(found), "ok": not findings, "findings": rows})
    elif findings:
        output.table(_CHECK, [(one.path, one.what, one.remedy) for one in findings])
    else:
        print(f"{len(found)} {'spec' if len(found) == 1 else 'specs'}, nothing wrong")
    return FOUND_WRONG if findings else 0
