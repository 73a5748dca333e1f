"""vgpu audit: is the log whole, and does today's code decide the same?"""

from __future__ import annotations

import os
from typing import Any

from oci_hook import audit, decision, placement
from oci_hook.errors import VgpuError
from oci_hook.records import Placement
from oci_hook.values import as_json as to_json
from oci_hook.values import from_json
from vgpu import audit_log, output
from vgpu.config import load

_KEPT = ("allocate", "resize")  # after these a container has slices; after release, reap and fail it has none
_GONE = ("release", "reap", "fail")


def run(config: str, log: str | None, *, as_json: bool) -> int:
    """Recomputes all decisions and prints each difference; 1 if there is one."""
    found = audit_log.Log([log] if log else audit_log.paths(load(config).log_dir))
    result = replay(audit_log.ordered(found))
    result["broken_lines"] = found.broken
    if as_json:
        output.emit_json(result)
    else:
        for item in result["differences"]:
            print(output.printable(f"{item['id'][:12]} (seq {item['seq']}): {item['what']}"))
        print(
            f"{result['decisions']} decisions recomputed, {len(result['differences'])} differ; "
            f"{result['not_logged']} starts were killed before their line was written; {found.broken} broken lines"
        )
    return 1 if result["differences"] else 0


def replay(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """entries: in the ledger's order. Each decision is recomputed, and its inputs held against the ledger that the
    lines before it make: a decision that saw something else was not made in this order.
    """
    book: dict[str, Any] = {}
    seen_start = False  # rotation takes the oldest lines: what the first decision sees is the beginning
    decisions, adopted = 0, 0
    differences: list[dict[str, Any]] = []
    boot = None
    for entry in entries:
        event, container = entry.get("event"), entry["id"]
        if entry.get("boot") != boot:  # the ledger does not outlive a boot
            book, seen_start, boot = {}, False, entry.get("boot")
        if "inputs" in entry:
            decisions += 1
            what = _recomputed(entry)
            given = {item["id"]: item["slices"] for item in entry["inputs"].get("given", ())}
            if seen_start:
                what += _order(book, given)
                adopted += len(given.keys() - book.keys())
            book, seen_start = given, True
            differences += [{"id": container, "seq": entry.get("seq"), "what": one} for one in what]
        if event in _KEPT:
            book[container] = _slices(entry)
        elif event in _GONE:
            book.pop(container, None)
    return {"decisions": decisions, "not_logged": adopted, "differences": differences, "ledger": book}


def _slices(entry: dict[str, Any]) -> list[list[Any]]:
    parts = entry["after"] if entry["event"] == "resize" else entry.get("placement", {}).get("slices", ())
    return [[part["index"], part["uuid"], part["memory_bytes"], part["cores_percent"]] for part in parts]


def _order(book: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """In which ways the decision saw another ledger than the log says. One that the log does not know was killed
    between its folder and its line; the other way round is impossible in the ledger's order."""
    missing = [f"it did not see {name[:12]}, which the log has as given out" for name in book.keys() - given.keys()]
    other = [name for name in book.keys() & given.keys() if book[name] != given[name]]
    return missing + [f"it saw another slice of {name[:12]} than the log has" for name in other]


def _recomputed(entry: dict[str, Any]) -> list[str]:
    try:
        inputs = decision.unpack(entry["inputs"])
        then: Placement = from_json(Placement, entry["placement"])
        what = [] if decision.digest(entry["inputs"]) == entry.get("digest") else ["its inputs do not have its digest"]
        now = placement.place(*inputs)
    except VgpuError as error:
        return [f"today it is refused: {error}"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f"its line cannot be understood: {type(error).__name__}: {error}"]
    if now.slices != then.slices:
        what.append(f"then {_words(then)}, today {_words(now)}")
    elif to_json(now.candidates) != to_json(then.candidates):
        pairs = zip(then.candidates, now.candidates, strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), None)
        what.append(f"the same GPUs, but other candidates: then {first and first[0]}, today {first and first[1]}")
    return what


def _words(placed: Placement) -> str:
    return ", ".join(f"GPU {part.index}: {output.size(part.memory_bytes)}" for part in placed.slices) or "refused"


def status(config: str, *, as_json: bool) -> int:
    """Prints the state of the log; 1 if lines were lost or are broken."""
    log_dir = load(config).log_dir
    files = audit_log.paths(log_dir)
    log = audit_log.Log(files)
    count = sum(1 for _ in log)
    lost = audit.lost(log_dir)
    result = {"files": files, "bytes": sum(map(os.path.getsize, files)), "lines": count, "lost": lost,
              "broken_lines": log.broken, "kept_files": audit.KEPT_LOGS, "max_file_bytes": audit.MAX_BYTES}  # fmt: skip
    if as_json:
        output.emit_json(result)
    else:
        print(f"{log_dir}/audit.jsonl: {len(files)} files, {count} lines, {output.size(int(str(result['bytes'])))}")
        print(f"lost: {lost} lines could not be written; {log.broken} lines are broken")
    return 1 if lost or log.broken else 0
