"""vgpu doctor --last-failure: what refused starts have left, also after the engine has removed their containers.

Three places, each written by root alone: <state>/failures, which launcher, shim and hook write; slices whose start is
dead and which nobody has taken back yet; and, where these have nothing, the audit log, which outlives a reboot.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from oci_hook import audit, decision, files, ledger, placement
from oci_hook.errors import HostError, RequestError, VgpuError, shown
from oci_hook.records import Placement, Policy
from oci_hook.values import from_json
from vgpu import audit_log, output, ps
from vgpu.doctor import catalogue
from vgpu.doctor.finding import FAILURE, Check, Finding
from vgpu.doctor.report import Report

_MAX_FILE = 1 << 20
_NAMESPACES = {"moby": "Docker", "k8s.io": "Kubernetes, by containerd"}
GROUP = "last refused start"


@dataclass(frozen=True, slots=True)
class Failure:
    """One refused start. time_ns: Unix time. id: "" where it was no id. engine: "" if that is not known."""

    time_ns: int
    id: str
    code: str
    message: str
    remedy: str
    name: str = ""
    image: str = ""
    engine: str = ""
    part: str = ""


def last(policy: Policy, wanted: str | None, launchers: str = "") -> Failure | None:
    """The newest; of one container if `wanted`: an id, its beginning, or a name. None: no start was refused.

    launchers: the state folder that the launcher goes by, if it may be another than the policy's.
    Raises RequestError VGPU-PLC-005 if nothing is known of `wanted`, VGPU-SET-001 if several ids begin with it.
    """
    for found in (_at_hand(policy, launchers or policy.state_dir), _logged(policy)):
        known = sorted(found, key=lambda one: one.time_ns)
        if wanted is not None:
            known = _about(known, wanted)
        if known:
            return known[-1]
    if wanted is None:
        return None
    raise RequestError(
        "VGPU-PLC-005",
        f"no refused start of {shown(wanted)} is known",
        remedy="give the id, its beginning or the name; without one, vgpu doctor --last-failure shows the last of all",
    )


def _about(known: list[Failure], wanted: str) -> list[Failure]:
    name = wanted.removeprefix("/")
    for matches in (
        [one for one in known if one.id == wanted],
        [one for one in known if one.name and one.name == name],
        [one for one in known if wanted and one.id.startswith(wanted)],
    ):
        if matches:
            break
    ids = {one.id for one in matches}
    if len(ids) > 1 and not any(one.name == name for one in matches):
        raise RequestError(
            "VGPU-SET-001",
            f"{shown(wanted)} fits {len(ids)} containers: {', '.join(sorted(one[:16] for one in ids)[:4])}",
            remedy="write more of the id",
        )
    return matches


def _at_hand(policy: Policy, launchers: str) -> Iterator[Failure]:
    for state_dir in {policy.state_dir, launchers}:
        yield from _kept(state_dir)
    yield from _dead(policy)


def _kept(state_dir: str) -> Iterator[Failure]:
    """<state>/failures. What others could have written is passed over."""
    folder = f"{state_dir}/failures"
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".json")]
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(
            "VGPU-HOST-003", f"{folder} cannot be read (errno {error.errno})", remedy="run the command as root"
        ) from None
    for name in names:
        try:
            raw, status = files.read(f"{folder}/{name}", _MAX_FILE)
            if status.st_uid not in (0, os.geteuid()) or stat.S_IMODE(status.st_mode) & 0o022:
                raise ValueError("others can write it")
            yield _failure(json.loads(raw.decode("utf-8", "replace")), name.removesuffix(".json"))
        except FileNotFoundError:
            continue  # the hundred newest are kept
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            output.message(f"vgpu: {folder}/{name} is passed over: {error}")


def _failure(raw: dict[str, Any], stem: str) -> Failure:
    words = {key: str(raw.get(key) or "") for key in ("code", "message", "remedy", "name", "image", "part")}
    engine = engine_of(str(raw.get("bundle") or "")) or ("Docker" if words["name"] else "")
    return Failure(int(raw["time_ns"]), "" if stem == audit.UNNAMED else stem, engine=engine, **words)


def engine_of(bundle: str) -> str:
    """Who wrote a bundle, by the place where it lies; "" for none that is known."""
    parts = bundle.split("/")
    if "io.containerd.runtime.v2.task" in parts:
        namespace = (parts[parts.index("io.containerd.runtime.v2.task") + 1 :] or [""])[0]
        return _NAMESPACES.get(namespace, f"containerd, namespace {namespace}")
    return "Podman or CRI-O" if "overlay-containers" in parts else ""


def _dead(policy: Policy) -> Iterator[Failure]:
    """Slices that are still being given, by a start that is dead. The next start clears them away."""
    for name in ps.names(policy.state_dir):
        try:
            entry = ledger.read(policy.state_dir, name)
        except VgpuError:
            continue  # not ours to read, or not readable at all: `vgpu doctor` says so
        if entry is None or entry.state != "creating" or ledger.alive(entry):
            continue
        error, part = decision.silence(policy, entry)
        engine = "Docker" if entry.name else ""
        said = error.code, str(error), error.remedy
        yield Failure(entry.created_ns, entry.id, *said, entry.name, entry.image, engine, part)


def _logged(policy: Policy) -> Iterable[Failure]:
    """What the audit log has: of a refusal for room the whole decision, of others code and message."""
    for entry in audit_log.Log(audit_log.paths(policy.log_dir)):
        if entry.get("event") not in ("deny", "fail"):
            continue
        code, message, remedy = entry.get("code"), entry.get("message"), entry.get("remedy")
        if code is None and "placement" in entry:
            told = placement.refusal(from_json(Placement, entry["placement"]))
            code, message, remedy = told.code, str(told), told.remedy
        known = catalogue.entries().get(str(code))
        words = [str(entry.get(key) or "") for key in ("name", "image")]
        yield Failure(entry["time_ns"], entry["id"], str(code), str(message),
                      str(remedy or (known.remedy if known else "")), *words)  # fmt: skip


def report(failure: Failure | None) -> Report:
    """As the doctor shows it: a failure is a finding, so the exit code is 2; none is well."""
    if failure is None:
        return Report("failure", "", (Check(GROUP, "none", ()),))
    code = failure.code if failure.code in catalogue.entries() else "VGPU-BUG-001"
    entry = catalogue.entries()[code]
    who = failure.name or failure.id[:12] or "a container without an id"
    finding = Finding(code, FAILURE, _subject(failure), failure.message or entry.title, failure.remedy or entry.remedy)
    page = {"page": f"docs/{entry.page}", "manual": f"docs/troubleshooting.md#{code.lower()}"}
    return Report("failure", who, (Check(GROUP, who, (finding,)),), {**asdict(failure), **page})


def _subject(failure: Failure) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(failure.time_ns / 1e9))
    words = [failure.name] * bool(failure.name) + [f"id {failure.id[:12]}" if failure.id else "no id", when]
    words += [f"image {failure.image}"] * bool(failure.image) + [f"by {failure.engine}"] * bool(failure.engine)
    return ", ".join(words)
