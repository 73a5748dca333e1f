"""vgpu why: the decision about one container, as a person would tell it."""

from __future__ import annotations

import time
from typing import Any

from oci_hook.errors import RequestError, shown
from vgpu import audit_log, output
from vgpu.config import load

_MEANING = {
    "binpack": "the fullest GPU that has room wins",
    "spread": "the emptiest GPU wins",
    "topology": "the GPUs that are joined best win",
    "exclusive": "only GPUs without another container count",
    "least-contended": "the GPU that was least busy wins",
    "weighted": "several policies are mixed",
}


def run(config: str, container: str, *, as_json: bool) -> None:
    """Prints the newest decision about `container`: an id, its beginning, or a name. RequestError VGPU-PLC-005."""
    log = audit_log.Log(audit_log.paths(load(config).log_dir))
    entry = find(audit_log.ordered(log), container)
    if as_json:
        output.emit_json({"decision": entry})
        return
    for line in tell(entry):
        print(output.printable(line))


def find(entries: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    wanted = wanted.removeprefix("/")
    for entry in reversed(entries):
        about = wanted and (entry["id"].startswith(wanted) or entry.get("name") == wanted)
        if about and entry.get("event") in ("allocate", "deny"):
            return dict(entry)
    raise RequestError(
        "VGPU-PLC-005",
        f"the audit log has no decision about {shown(wanted)}",
        remedy="give the id, its beginning or the name; a container that asked for no slice was never decided about",
    )


def tell(entry: dict[str, Any]) -> list[str]:
    """The lines."""
    name = entry.get("name") or entry["id"][:12]
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(entry["time_ns"] / 1e9))
    if "inputs" not in entry:
        return [
            f"{name} was refused at {when}, before a GPU was looked for: {entry.get('code')}: {entry.get('message')}"
        ]
    placed = entry["placement"]
    lines = [f"{name} asked at {when} for {_asked(entry['inputs']['request'])}."]
    lines += [f"The admin's policy reduced that: {note}." for note in entry.get("clamped", ())]
    lines.append(f"Policy {placed['policy']}: {_MEANING.get(placed['policy'], 'not one that this version knows')}.")
    if placed["slices"]:
        got = " and ".join(f"GPU {part['index']} ({output.size(part['memory_bytes'])})" for part in placed["slices"])
        lines.append(f"It got {got}.")
    else:
        lines.append("It was refused: no GPU, or too few, could serve it.")
    several = len(entry["inputs"]["request"]["asks"]) > 1
    for item in placed["candidates"]:
        which = f"ask {item['ask']}, " if several else ""
        lines.append(f"  {which}GPU {item['index']}: {_fared(item, placed)}")
    return lines


def _asked(request: dict[str, Any]) -> str:
    words = []
    for ask in request["asks"]:
        memory = f"{ask['memory_percent']} %" if ask["memory_bytes"] is None else output.size(ask["memory_bytes"])
        words.append(memory + (f" and {ask['cores_percent']} % of the cores" if ask["cores_percent"] else ""))
    limits = [f"{name} {request[name]}" for name in ("mutex", "reservation", "numa") if request.get(name) is not None]
    return " + ".join(words) + (f" ({', '.join(limits)})" if limits else "")


def _fared(item: dict[str, Any], placed: dict[str, Any]) -> str:
    if item["reject"]:
        return f"out, {item['reject']}: {item['detail']}"
    parts = ", ".join(f"{name} {value:g}" for name, value in item.get("parts", {}).items())
    slices = placed["slices"]
    chosen = item["ask"] < len(slices) and slices[item["ask"]]["uuid"] == item["uuid"]
    return f"score {item['score']:g}{f' ({parts})' if parts else ''}{', chosen' if chosen else ''}: {item['detail']}"
