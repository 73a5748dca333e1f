"""gpu_check's results for people: a line as each part ends, and a page of evidence with its JSON beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

MIB = 1 << 20

METHOD = """\
The wrapper stands before the driver by `LD_LIBRARY_PATH`, with the quota and usage files that a container would have.
Each client is a process of its own that allocates in steps of 64 MiB, then 2 MiB, until it is refused; while it holds
all, the driver's own NVML is asked how much more the GPU holds than before. Speeds: driver alone and behind the
wrapper in turn, the median of three rounds. `make gpu-check` does it again.
"""


def line(name: str, part: dict[str, Any]) -> str:
    """One line, such as "torch     held      taken 4096 of 4096 MiB, the GPU holds 4510 MiB"."""
    if "why" in part:
        return f"{name:10}{part['status']:9}{part['why']}"
    text = f"{name:10}{part['status']:9}{'; '.join(_figures(part))}"
    return text if not part["missed"] else f"{text}; missed: {', '.join(part['missed'])}"


def _figures(part: dict[str, Any]) -> list[str]:
    if "families" in part:
        return [f"{name} {_memory(found)}" for name, found in part["families"].items()]
    if "shares" in part:
        return [f"{name}: {one['mean_percent']:g}" for name, one in part["shares"].items()]
    if "account_bytes" in part:
        process = part["process_bytes"]
        told = "the driver does not tell" if process is None else f"{process / MIB:g} MiB"
        return [_memory(part), f"the account says {part['account_bytes'] / MIB:g} MiB, of the process {told}"]
    if "taken" in part:
        return [_memory(part)]
    unit, table = next(((unit, part[unit]) for unit in ("ns_a_call", "us") if unit in part), ("", {}))
    unit = unit.partition("_")[0]
    found = [
        f"{kind} {row['direct']:.1f} -> {row['wrapped']:.1f} {unit} ({row['ratio']:.2f})" for kind, row in table.items()
    ]
    return found or [str(part.get("query", ""))]


def _memory(found: dict[str, Any]) -> str:
    sizes = (found["taken"] / MIB, found["quota_bytes"] / MIB, found["nvml_bytes"] / MIB)
    return "taken {:g} of {:g} MiB, the GPU holds {:g} MiB".format(*sizes)


def write(folder: Path, machine: dict[str, Any], parts: dict[str, Any]) -> Path:
    """The page and the JSON file in `folder`; the page's path. machine: of a real GPU."""
    assert not machine["simulated"], "a simulated GPU proves nothing about a real one"
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", f"gpu-{machine['gpu']}-{machine['date']}".lower()).strip("-")
    (folder / f"{name}.json").write_text(json.dumps({"schema": 1, "machine": machine, "parts": parts}, indent=2) + "\n")
    page = [
        f"# {machine['gpu']}, {machine['date']}",
        "",
        f"Driver {machine['driver']}, CUDA {machine['cuda']}, a slice of {machine['quota_bytes'] // MIB} MiB.",
        "",
        METHOD,
        "| part | result | figures |",
        "|---|---|---|",
    ]
    for part, result in parts.items():
        figures = result.get("why") or "<br>".join(_figures(result) + [f"missed: {m}" for m in result["missed"]])
        page.append(f"| {part} | {result['status']} | {figures.replace('|', '/')} |")
    page += ["", f"Every figure: [{name}.json]({name}.json)."]
    (folder / f"{name}.md").write_text("\n".join(page) + "\n")
    return folder / f"{name}.md"
