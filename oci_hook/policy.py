"""The admin's policy: loading its compiled form, and holding a request to its caps."""

from __future__ import annotations

import os

from oci_hook import fastjson, files
from oci_hook.errors import HostError, shown
from oci_hook.placement import MIXABLE, POLICIES
from oci_hook.records import Ask, Gpu, Placement, Policy, Request
from oci_hook.values import TYPE_CHECKING, from_json, replace

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_FILE = 1 << 20
_REMEDY = "write it anew with `vgpu config apply`"


def load(path: str) -> Policy:
    """policy.json; for a user who is not root, within what root has granted. Raises HostError VGPU-HOST-001 if it
    cannot be used, VGPU-HOST-006 if others can write it.
    """
    try:
        data, found = files.read(path, _MAX_FILE, follow=True)
        if not files.is_trusted(found.st_uid) or found.st_mode & 0o022:
            why = f"the policy {path} can be written by others than root"
            raise HostError("VGPU-HOST-006", why, remedy=f"`chown root {path} && chmod 644 {path}`")
        policy = from_json(Policy, fastjson.loads(data))
        _check(policy)
    except FileNotFoundError:
        raise HostError("VGPU-HOST-001", f"there is no policy at {path}", remedy=_REMEDY) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        why = f"the policy {path} cannot be used: {shown(str(error), 160)}"
        raise HostError("VGPU-HOST-001", why, remedy=_REMEDY) from error
    if found.st_uid == os.geteuid():
        return policy
    from oci_hook import rootless  # the installation is root's, and we are not

    return rootless.as_user(policy)


def clamp(request: Request, policy: Policy) -> tuple[Request, tuple[str, ...]]:
    """The request within the policy's caps, whoever asked; and what was reduced, in words.

    A share of memory in percent is held to max_memory_bytes when the GPU is known: see `placement.place`.
    """
    notes: list[str] = []
    asks = request.asks
    if policy.max_gpus is not None and len(asks) > policy.max_gpus:
        notes.append(f"count: {len(asks)} GPUs asked, {policy.max_gpus} allowed")
        asks = asks[: policy.max_gpus]
    kept = tuple(_clamp_ask(ask, policy, notes) for ask in asks)
    if request.burst == "soft" and policy.grant is not None and policy.max_cores_percent < 100:
        notes.append("burst: soft asked, hard allowed within a grant of cores")
        request = replace(request, burst="hard")
    return replace(request, asks=kept, devices=request.devices[: len(kept)]), tuple(dict.fromkeys(notes))


def percent_notes(request: Request, placement: Placement, gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """What `place` reduced of shares in percent, in words. request: as it was placed."""
    total = {gpu.uuid: gpu.memory_bytes for gpu in gpus}
    notes = []
    for ask, part in zip(request.asks, placement.slices, strict=False):
        asked = total[part.uuid] * (ask.memory_percent or 0) // 100
        if asked > part.memory_bytes:
            notes.append(f"memory: {ask.memory_percent} % ({mib(asked)}) asked, {mib(part.memory_bytes)} allowed")
    return tuple(dict.fromkeys(notes))


def kept_labels(labels: dict[str, str], policy: Policy) -> dict[str, str]:
    """Those labels that quotas and bills go by. A value beyond 128 characters is cut: it is kept at each decision."""
    names = {*policy.record_labels, *(quota.label.partition("=")[0] for quota in policy.quotas)}
    return {name: labels[name][:128] for name in sorted(names & labels.keys())}


def mib(size_bytes: int) -> str:
    """A size for people, in the unit that the settings use."""
    return f"{size_bytes / (1 << 20):g} MiB" if size_bytes % (1 << 30) else f"{size_bytes >> 30} GiB"


def _clamp_ask(ask: Ask, policy: Policy, notes: list[str]) -> Ask:
    limit = policy.max_memory_bytes
    if limit is not None and ask.memory_bytes is not None and ask.memory_bytes > limit:
        notes.append(f"memory: {mib(ask.memory_bytes)} asked, {mib(limit)} allowed")
        ask = replace(ask, memory_bytes=limit)
    share = policy.max_cores_percent
    if share < (ask.cores_percent or 100):
        asked = f"{ask.cores_percent} %" if ask.cores_percent else "no limit"
        notes.append(f"cores: {asked} asked, {share} % allowed")
        ask = replace(ask, cores_percent=share)
    return ask


def _check(policy: Policy) -> None:
    """The types that the start path relies on; `vgpu config` has checked the rest. Raises ValueError or TypeError."""
    paths = (policy.runtime, policy.prefix, policy.state_dir, policy.log_dir)
    if not all(isinstance(path, str) and path.startswith("/") and "\0" not in path for path in paths):
        raise ValueError("runtime, prefix, state_dir and log_dir must be absolute paths")
    if policy.placement not in POLICIES or policy.burst not in ("hard", "soft"):
        raise ValueError(f"placement {policy.placement!r} or burst {policy.burst!r} does not exist")
    if not all(source in ("annotation", "label", "env") for source in policy.sources):
        raise ValueError(f"sources {policy.sources!r} do not exist")
    if not (policy.overcommit_memory > 0 and policy.overcommit_cores > 0 and 1 <= policy.max_cores_percent <= 100):
        raise ValueError("overcommit_memory and overcommit_cores must be above 0, max_cores_percent 1 to 100")
    if any(cap is not None and not cap > 0 for cap in (policy.max_memory_bytes, policy.max_gpus, policy.max_slices)):
        raise ValueError("max_memory_bytes, max_gpus and max_slices must be above 0, or null")
    if any(name not in MIXABLE or not weight > 0 for name, weight in policy.weights.items()):
        raise ValueError(f"weights {policy.weights!r} cannot be mixed")
    if policy.placement == "weighted" and not policy.weights:
        raise ValueError("placement weighted has no weights")
    if not all(isinstance(quota.label, str) and quota.label for quota in policy.quotas):
        raise ValueError("a quota has no label")
