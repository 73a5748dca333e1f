"""Every refusal: whose fault it is, a stable code, what was found, and what to do.

A code never changes its meaning and is never used again for another. The one list of them, with titles and causes, is
vgpu/doctor/catalogue.yaml; no start reads it, and a test holds every code that is raised anywhere to it.
"""

from __future__ import annotations


class VgpuError(Exception):
    """A refusal the user can act on. Anything else that escapes is a bug, shows its traceback and exits 1."""

    exit_code = 1

    def __init__(self, code: str, message: str, *, remedy: str) -> None:
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
