"""Values of the command line, with the option named in the refusal (HostError VGPU-CFG-003)."""

from __future__ import annotations

import re

from oci_hook.errors import HostError, shown

_UNITS = {"KiB": 10, "MiB": 20, "GiB": 30}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _refuse(option: str, text: object, remedy: str) -> HostError:
    return HostError("VGPU-CFG-003", f"{option} {shown(str(text))}", remedy=remedy)


def interval(seconds: float) -> float:
    """Refused if it would load the host, or never come."""
    if not 0.1 <= seconds <= 3600:
        raise _refuse("--interval", f"{seconds:g}", "choose 0.1 to 3600 seconds")
    return seconds


def size(option: str, text: str, *, least: int, most: int) -> int:
    """Bytes of `16MiB`."""
    match = re.fullmatch(r"([0-9]{1,7})(KiB|MiB|GiB)", text)
    count = int(match[1]) << _UNITS[match[2]] if match else -1
    if not least <= count <= most:
        raise _refuse(option, text, f"write {option} 16MiB; from {least >> 10}KiB to {most >> 20}MiB")
    return count


def duration_s(option: str, text: str) -> int:
    """Seconds of `30m`."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    if match is None:
        raise _refuse(option, text, f"write {option} 30m, or 90s, 2h, 1d")
    return int(match[1]) * _SECONDS[match[2]]


def address(option: str, text: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:9411`, `[::1]:9411` or `:9411`, which is all addresses."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]\s]*):([0-9]{1,5})", text)
    if match is None or not int(match[2]) <= 65535:
        raise _refuse(option, text, f"write {option} 127.0.0.1:9411, or :9411 for all addresses")
    return match[1].strip("[]") or "::", int(match[2])
