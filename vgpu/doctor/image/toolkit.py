"""CUDA versions: what the driver offers, what the image was built with, and what NVIDIA_REQUIRE_* asks for.

Source of the versions: cuda_drivers.yaml. Of NVIDIA_REQUIRE_*: NVIDIA's container toolkit documentation, "Environment
variables": a space is "or", a comma is "and", and every such variable has to hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

Version = tuple[int, ...]

_CONSTRAINT = re.compile(r"(cuda|driver|arch|brand)(<=|>=|!=|=|<|>)([A-Za-z0-9._-]+)")
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,3}")
# the brand that NVML gives, by words of a GPU's name, where the name leaves no doubt
_BRANDS = (("tesla", "tesla"), ("geforce gtx", "geforce"), ("quadro p", "quadro"), ("grid", "grid"))


class RequireError(ValueError):
    """Not the grammar of NVIDIA_REQUIRE_*; the text is the part that is not."""


@cache
def _tables() -> tuple[dict[Version, Version], dict[int, Version]]:
    with open(Path(__file__).with_name("cuda_drivers.yaml"), encoding="utf-8") as file:
        found = yaml.safe_load(file)
    drivers = {version(toolkit): version(driver) for toolkit, driver in found["drivers"].items()}
    return drivers, {int(major): version(driver) for major, driver in found["same_major"].items()}


def version(text: str) -> Version:
    """'12.4.1' -> (12, 4, 1). Raises ValueError."""
    if _VERSION.fullmatch(text) is None:
        raise ValueError(f"{text!r} is no version")
    return tuple(map(int, text.split(".")))


def shown(found: Version) -> str:
    """Of a driver its second and third part have two digits: 550.54.14, 470.82.01."""
    return ".".join(f"{part:02d}" if place and found[0] > 100 else str(part) for place, part in enumerate(found))


def cuda_of(driver: Version) -> Version:
    """The CUDA version that a driver offers; () for one older than the table."""
    return max((cuda for cuda, first in _tables()[0].items() if first <= driver), default=())


def driver_for(cuda: Version) -> Version:
    """The first driver made for a toolkit; of one newer than the table the newest that is known."""
    drivers = _tables()[0]
    fitting = [first for toolkit, first in drivers.items() if toolkit >= cuda[:2]]
    return min(fitting, default=max(drivers.values()))


def compatible(cuda: Version, driver: Version) -> str:
    """How a toolkit runs on a driver: "full", "minor" (only what the driver's own CUDA has) or "none"."""
    if driver >= driver_for(cuda) and cuda[:2] <= max(_tables()[0]):
        return "full"
    least = _tables()[1].get(cuda[0])
    return "minor" if least is not None and driver >= least else "none"


@dataclass(frozen=True, slots=True)
class Facts:
    """What constraints are held against; () or "" for what is not known. arch: compute capability."""

    driver: Version
    cuda: Version
    brand: str = ""
    arch: Version = ()


def brand(name: str) -> str:
    """Of a GPU's name as NVML gives it, or "" where it does not tell."""
    return next((found for words, found in _BRANDS if words in name.lower()), "")


def requirements(env: Iterable[str]) -> dict[str, str]:
    """The NVIDIA_REQUIRE_* of an environment; none if NVIDIA_DISABLE_REQUIRE turns them off."""
    found: Mapping[str, str] = {name: value for name, _, value in (entry.partition("=") for entry in env)}
    if found.get("NVIDIA_DISABLE_REQUIRE", "").lower() in ("1", "t", "true"):
        return {}
    return {name: value for name, value in found.items() if name.startswith("NVIDIA_REQUIRE_") and value.strip()}


def holds(text: str, facts: Facts) -> bool | None:
    """Whether a requirement is met; None if that depends on what is not known. Raises RequireError."""
    return _any([_all([_one(part, facts) for part in choice.split(",") if part]) for choice in text.split()])


def _any(found: list[bool | None]) -> bool | None:
    return True if True in found else None if None in found else not found


def _all(found: list[bool | None]) -> bool | None:
    return False if False in found else None if None in found else True


def _one(text: str, facts: Facts) -> bool | None:
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        raise RequireError(text)
    name, sign, wanted = match.groups()
    have: str | Version
    if name == "brand":
        have, value = facts.brand, wanted.lower()
        if sign not in ("=", "!="):
            raise RequireError(text)
        return None if not have else (have == value) is (sign == "=")
    have = {"cuda": facts.cuda, "driver": facts.driver, "arch": facts.arch}[name]
    try:
        least = version(wanted)
    except ValueError:
        raise RequireError(text) from None
    return None if not have else _compared(have, sign, least)


def _compared(have: Version, sign: str, wanted: Version) -> bool:
    length = max(len(have), len(wanted))
    left, right = (found + (0,) * (length - len(found)) for found in (have, wanted))
    return {
        "=": left == right, "!=": left != right, "<": left < right,
        "<=": left <= right, ">": left > right, ">=": left >= right,
    }[sign]  # fmt: skip
