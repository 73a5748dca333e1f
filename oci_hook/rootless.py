"""Why an engine that a user runs without root's rights cannot give slices. Loaded only when a start has failed.

Slices are counted for the whole host, in one ledger that root alone can write. A user's own ledger would give out the
same GPU once more for each user, so there is none, and the refusal says so instead of what was found first: a folder
that cannot be written, or a file whose owner is not known in the user's namespace.
"""

from __future__ import annotations

import os

from oci_hook.errors import HostError, VgpuError

_FOUND_FIRST = ("VGPU-HOST-001", "VGPU-HOST-003", "VGPU-HOST-006")
_ALL_USERS = ["0", "0", "4294967295"]


def explained(error: VgpuError) -> VgpuError:
    """`error`, or what is behind it."""
    if error.code not in _FOUND_FIRST or _is_host_root():
        return error
    return HostError(
        "VGPU-HOST-012",
        "this engine runs without root's rights, and slices are counted for the whole host, by root alone",
        remedy="start the container with root's engine: sudo podman …; rootless engines cannot have slices",
    )


def _is_host_root() -> bool:
    """Root of a user namespace in which every user is known is as good as the host's."""
    if os.geteuid() != 0:
        return False
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() == _ALL_USERS
    except OSError:
        return True  # a kernel without user namespaces
