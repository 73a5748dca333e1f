"""The tables of entry points, read and checked: a row that cannot be right is refused before any C is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from oci_hook.errors import HostError, shown

KINDS = ("pass", "charge", "limit", "answer", "refuse")
SUSPECT = re.compile("Alloc|Create|Load|Import|Launch|Memcpy|Memset|Instantiate|Retain")
_KEYS = {"kind", "since", "handler", "args", "why"}


@dataclass(frozen=True)
class Row:
    """One function. since: the version that brought it. handler: without vgw_; None unless charge, limit or answer.

    args: C parameter declarations, "size_t bytesize".
    """

    name: str
    kind: str
    since: int
    handler: str | None = None
    args: tuple[str, ...] = ()
    why: str = ""

    @property
    def ours(self) -> bool:
        return self.kind != "pass"

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(re.sub(r"\w+$", "", arg).strip() for arg in self.args)

    @property
    def arg_names(self) -> tuple[str, ...]:
        return tuple(re.split(r"\W+", arg)[-1] for arg in self.args)


def read(path: Path) -> tuple[Row, ...]:
    """The rows of a table, sorted by name. Raises HostError for the first row that is not right."""
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as err:
        raise _bad(path.name, "the file", str(err).splitlines()[0]) from None
    if not isinstance(raw, dict) or not raw:
        raise _bad(path.name, "the file", "not a mapping of rows")
    rows = tuple(_row(path.name, name, raw[name]) for name in sorted(raw))
    if list(raw) != sorted(raw):
        raise _bad(path.name, "the file", "rows are not sorted")
    handlers: dict[str, Row] = {}
    for row in rows:
        if row.handler and handlers.setdefault(row.handler, row).types != row.types:
            raise _bad(
                path.name, row.name, f"handler {row.handler} has other arguments in {handlers[row.handler].name}"
            )
    return rows


def _row(file: str, name: str, raw: Any) -> Row:
    if not isinstance(raw, Mapping) or not raw.keys() <= _KEYS:
        raise _bad(file, name, f"has more than {', '.join(sorted(_KEYS))}")
    kind, since, handler, why = raw.get("kind"), raw.get("since"), raw.get("handler"), raw.get("why", "")
    if kind not in KINDS:
        raise _bad(file, name, f"kind {shown(kind)} is none of {', '.join(KINDS)}")
    if not isinstance(since, int):
        raise _bad(file, name, f"since {shown(since)} is not a version")
    if (kind in ("charge", "limit", "answer")) != isinstance(handler, str):
        raise _bad(file, name, f"kind {kind} with handler {shown(handler)}")
    if kind != "pass" and not isinstance(raw.get("args"), list):
        raise _bad(file, name, f"kind {kind} without args")
    if not why and (kind == "refuse" or (kind == "pass" and SUSPECT.search(name))):
        raise _bad(file, name, f"kind {kind} without a why")
    return Row(name, kind, since, handler, tuple(raw.get("args", ())), why)


def _bad(file: str, name: str, what: str) -> HostError:
    return HostError("VGPU-HOST-008", f"{file}: {name}: {what}", remedy=f"mend the row in libcuda_wrap/{file}")
