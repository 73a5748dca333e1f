"""Reads catalogue.yaml: what each code means. Not on the start path, which raises by the bare code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from oci_hook.errors import RequestError, shown

PATH = Path(__file__).with_name("catalogue.yaml")
CODE = re.compile(r"VGPU-([A-Z]{2,4})-[0-9]{3}")
SEVERITIES = ("warning", "failure")  # the worse one last


@dataclass(frozen=True, slots=True)
class Entry:
    """One code. page: a file below docs/, with its anchor. The other fields are as catalogue.yaml says at its top."""

    code: str
    title: str
    severity: str
    cause: str
    found: str
    remedy: str
    page: str

    @property
    def group(self) -> str:
        """DEP, of VGPU-DEP-003."""
        return self.code.split("-")[1]


@cache
def _document() -> tuple[dict[str, str], dict[str, Entry]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it
    with open(PATH, encoding="utf-8") as file:
        found = yaml.load(file, loader)  # both of them are safe loaders
    return found["groups"], {code: Entry(code, **fields) for code, fields in found["codes"].items()}


def groups() -> dict[str, str]:
    """The middle part of a code -> what such codes are about, in the order of the manual."""
    return _document()[0]


def entries() -> dict[str, Entry]:
    """All codes, in the order of the manual."""
    return _document()[1]


def entry(code: str) -> Entry:
    """The code's entry, in whatever case it is written. Raises RequestError VGPU-REQ-006 for one that there is not."""
    wanted = code.strip().upper()
    if wanted in entries():
        return entries()[wanted]
    from oci_hook.request import nearest

    near, _ = nearest(wanted, entries())
    raise RequestError(
        "VGPU-REQ-006",
        f"--code {shown(code)}: there is no such code",
        remedy=f"write --code {near}; docs/troubleshooting.md has them all",
    )
