"""What the admin has said about single GPUs, and what was found of them: cordons, sick GPUs, reservations.

<log>/standing.json is a records.Host without load and time; it outlives a reboot. Written under the ledger's lock by
`vgpu cordon`, `vgpu reserve` and their like. Closed: one that cannot be read stops every start, as whom it keeps out is
not known.
"""

from __future__ import annotations

import os
import time

from oci_hook import fastjson, files
from oci_hook.errors import HostError, shown
from oci_hook.records import Allocation, Host, Policy, Request
from oci_hook.values import TYPE_CHECKING, as_json, from_json, replace

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_FILE = 1 << 20


def path(policy: Policy) -> str:
    """The host's, for a user as well."""
    return f"{policy.grant.log_dir if policy.grant else policy.log_dir}/standing.json"


def load(policy: Policy) -> Host:
    """For a user without the reservations: within a grant there are none. Raises HostError VGPU-HOST-010 if the file
    cannot be used.
    """
    host = of_host(policy)
    return replace(host, reservations=()) if policy.grant else host


def of_host(policy: Policy) -> Host:
    """As `load`, with all reservations."""
    try:
        data, found = files.read(path(policy), _MAX_FILE)
        if not files.is_trusted(found.st_uid) or found.st_mode & 0o022:
            raise ValueError("others than root can write it")
        host: Host = from_json(Host, fastjson.loads(data))
        if not all(type(item.expires_ns) is int and item.memory_bytes >= 0 for item in host.reservations):
            raise ValueError("a number in it is none")
    except FileNotFoundError:
        return Host()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise HostError(
            "VGPU-HOST-010",
            f"{path(policy)} cannot be used: {shown(str(error), 120)}",
            remedy=f"mend or remove {path(policy)}; then cordon and reserve again what is to stay so",
        ) from error
    return host


def timed(policy: Policy) -> Host:
    """`load`, with the time."""
    return replace(load(policy), now_ns=time.time_ns())


def now(policy: Policy, request: Request, given: Sequence[Allocation]) -> Host:
    """`load`, with the time, and with the GPUs' load if a policy in play asks for it."""
    host = timed(policy)
    how = request.policy or policy.placement
    if how == "least-contended" or (how == "weighted" and "least-contended" in policy.weights):
        from oci_hook import usage_file

        host = replace(host, load=usage_file.load(policy.state_dir, given))
    return host


def save(policy: Policy, host: Host) -> None:
    """All or nothing; the caller holds the ledger's lock. Raises HostError VGPU-HOST-010."""
    temporary = f"{path(policy)}.new"
    try:
        os.makedirs(policy.log_dir, 0o755, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)
            file.write(fastjson.dumps(as_json(replace(host, load={}, now_ns=0))).encode() + b"\n")
            file.flush()
            os.fsync(descriptor)
        os.rename(temporary, path(policy))
    except OSError as error:
        why = f"{path(policy)} cannot be written (errno {error.errno})"
        raise HostError("VGPU-HOST-010", why, remedy="run the command as root, and make room on the disk") from error
