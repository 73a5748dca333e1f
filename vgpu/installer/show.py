"""vgpu versions: what is installed, what is in use, and which containers stand on what."""

from __future__ import annotations

from typing import Any

from runtime_config import policy_file
from vgpu import output
from vgpu.installer import tenants
from vgpu.installer.layout import CURRENT, PREVIOUS, Prefix


def run(prefix: Prefix, *, as_json: bool) -> None:
    """Prints the versions, and every container that runs on another than the current one."""
    policy = policy_file.read_policy(str(prefix.config), str(prefix.path))
    found = tenants.find(prefix, policy.state_dir)
    current, previous = prefix.home(CURRENT), prefix.home(PREVIOUS)
    versions: list[dict[str, Any]] = [
        {
            "name": one.name,
            "release": one.release,
            "wrapper": one.wrapper,
            "current": one.home == current,
            "previous": one.home == previous,
            "reads": one.reads,
            "containers": [tenant.id for tenant in found if tenant.version == one.name],
        }
        for one in prefix.installed()
    ]
    running = [
        {"id": one.id, "name": one.name, "version": one.version or None, "layouts": one.layouts} for one in found
    ]
    if as_json:
        output.emit_json({"prefix": str(prefix.path), "versions": versions, "containers": running})
        return
    words = {(True, False): "current", (False, True): "previous"}
    rows = [
        (one["name"], words.get((one["current"], one["previous"]), ""), one["wrapper"], str(len(one["containers"])))
        for one in versions
    ]
    output.table(("VERSION", "", "WRAPPER", "CONTAINERS"), rows)
    others = [one for one in found if current is None or one.version != current.name]
    if others:
        print()
        rows = [(one.id[:12], one.name, one.version or "unknown", "") for one in others]
        output.table(("CONTAINER", "NAME", "ON ANOTHER VERSION", ""), rows)
