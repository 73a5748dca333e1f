"""What an engine that knows CDI puts into a container's config.json for `--device KIND=NAME`."""

from __future__ import annotations

import json
from typing import Any

from tests.harness.bundle import Container


def give(box: Container, spec: str, name: str) -> list[dict[str, str]]:
    """Hooks and mounts of the device `name` of a CDI spec (its text) go into config.json. Returns the device nodes,
    whose numbers an engine takes from the host."""
    read = json.loads(spec)
    [device] = [one["containerEdits"] for one in read["devices"] if one["name"] == name]
    config = json.loads(box.config.read_text())
    nodes: list[dict[str, Any]] = []
    for edits in (read["containerEdits"], device):
        for hook in edits.get("hooks", ()):
            config.setdefault("hooks", {}).setdefault(hook.pop("hookName"), []).append(hook)
        for mount in edits.get("mounts", ()):
            bound = {"destination": mount["containerPath"], "source": mount["hostPath"], "type": "none"}
            config["mounts"].append({**bound, "options": mount["options"]})
        nodes += edits.get("deviceNodes", ())
    box.config.write_text(json.dumps(config))
    return nodes
