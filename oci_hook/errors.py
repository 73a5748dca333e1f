"""Every refusal: whose fault it is, a stable code, what was found, and what to do.

A code never changes its meaning and is never used again for another. `CODES` is the one list of them;
an error with a code that is not in it is a bug, and raises as one.
"""

from __future__ import annotations

CODES: dict[str, str] = {
    # request: the labels, annotations or environment of a container
    "VGPU-REQ-001": "a memory size that cannot be read",
    "VGPU-REQ-002": "a number that cannot be read or is out of range",
    "VGPU-REQ-003": "a vgpu name that does not exist",
    "VGPU-REQ-004": "two settings that contradict each other",
    "VGPU-REQ-005": "a value that is too long or has characters that no value may have",
    "VGPU-REQ-006": "a choice that does not exist",
    "VGPU-REQ-007": "vgpu's devices without a request for a slice of them",
    # placement: well formed, but not on this host, or not now
    "VGPU-PLC-001": "no GPU has room for the request",
    "VGPU-PLC-002": "a GPU that this host does not have",
    "VGPU-PLC-003": "a placement policy that the admin has not set up",
    "VGPU-PLC-004": "a reservation that does not exist or has expired",
    "VGPU-PLC-005": "a container that the audit log does not know",
    "VGPU-PLC-006": "a slice without the GPU's device file",
    # resizing a container that runs
    "VGPU-SET-001": "a name that no container with a slice has, or several",
    "VGPU-SET-002": "a quota below what is in use",
    "VGPU-SET-003": "a quota above the admin's cap",
    "VGPU-SET-004": "a GPU that the container has no slice of",
    # dependencies: what we mount would not load in this image
    "VGPU-DEP-001": "a library that the driver needs is not in the image",
    "VGPU-DEP-002": "the image's library is too old for the driver",
    "VGPU-DEP-003": "the image has musl instead of glibc",
    "VGPU-DEP-004": "the image has no C library",
    "VGPU-DEP-005": "a driver file on the host is missing or was replaced",
    # image: what the container brings would get in the way of the mounts
    "VGPU-IMG-001": "the image has something that cannot be mounted over",
    "VGPU-IMG-002": "a path of the image leads out of its root",
    "VGPU-IMG-003": "a mount of the container covers a folder that the slice needs",
    "VGPU-IMG-004": "the container ended while it was being set up",
    # bundle: what the engine handed over
    "VGPU-OCI-001": "the bundle's config.json cannot be used",
    "VGPU-OCI-002": "the container state on standard input cannot be used",
    "VGPU-OCI-003": "a container id that no engine gives",
    "VGPU-OCI-004": "a container of this id already has a slice and still runs",
    # host: the admin's
    "VGPU-HOST-001": "the policy is missing or cannot be used",
    "VGPU-HOST-002": "the GPU inventory is missing, stale or cannot be used",
    "VGPU-HOST-003": "the state folder cannot be used",
    "VGPU-HOST-004": "the low-level runtime cannot be started",
    "VGPU-HOST-005": "the kernel refused a mount",
    "VGPU-HOST-006": "a file that others can write is not trusted",
    "VGPU-HOST-007": "the driver cannot be asked",
    "VGPU-HOST-008": "a part of vgpu that cannot be built here",
    "VGPU-HOST-009": "a quota or usage file that this version cannot read",
    "VGPU-HOST-010": "the file of cordons and reservations cannot be used",
    "VGPU-HOST-011": "the audit log cannot be read",
    "VGPU-HOST-012": "an engine without root's rights asks for a slice",
    # configuration files that the operator's commands edit
    "VGPU-CFG-001": "a configuration file that cannot be read or parsed",
    "VGPU-CFG-002": "a configuration file that cannot be written",
    "VGPU-CFG-003": "a setting that does not exist or has a value that it cannot have",
    "VGPU-CFG-004": "the engine does not show the runtime",
    # what shows and explains: nothing that enforces depends on it
    "VGPU-MON-001": "the monitor's history is missing or cannot be used",
    "VGPU-MON-002": "another monitor already watches this host",
    "VGPU-MON-003": "a container that is not known, or a name that several have",
    "VGPU-MON-004": "the metrics cannot be served or written",
    # vgpu simulate
    "VGPU-SIM-001": "a cluster file that cannot be used",
    "VGPU-SIM-002": "a trace of jobs that cannot be used",
    "VGPU-SIM-003": "a simulation that cannot be run as it was asked for",
}


class VgpuError(Exception):
    """A refusal the user can act on. Anything else that escapes is a bug, shows its traceback and exits 1."""

    exit_code = 1

    def __init__(self, code: str, message: str, *, remedy: str) -> None:
        if code not in CODES:
            raise AssertionError(f"{code} is not in errors.CODES")
        super().__init__(message)
        self.code = code
        self.remedy = remedy

    def line(self) -> str:
        """One line for people: engines pass only one on. Control characters of a hostile value are shown, not sent."""
        text = f"vgpu: {self.code}: {self}; to mend it: {self.remedy}"
        return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class RequestError(VgpuError):
    """The container's author can mend it: a label or a value is malformed."""

    exit_code = 3


class PlacementError(VgpuError):
    """Well formed, but does not fit this host now."""

    exit_code = 4


class HostError(VgpuError):
    """The admin's: driver, engine, permissions, configuration."""

    exit_code = 5


class ImageError(VgpuError):
    """The image's author can mend it: a missing library, or a file in the way."""

    exit_code = 6


def shown(value: object, limit: int = 64) -> str:
    """`value` as it may stand in a message: quoted, escaped, cut at `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(str(value))} characters)"
