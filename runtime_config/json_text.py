"""Edit a JSON text and leave every byte alone that the edit does not concern: order, indent, line ends, spelling.

`json.loads` and `json.dumps` would lose all that, so this has its own reader that keeps where each value stands.
It is stricter than most: duplicate keys are an error, because engines disagree about which of them counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from oci_hook.errors import HostError, shown

BOM = "\ufeff"
DEPTH_LIMIT = 100
DEFAULT_INDENT = "    "

_STRING = r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"'
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_TOKEN = re.compile(rf"({_STRING})|({_NUMBER}|true|false|null)|([{{}}\[\],:])")
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class Member:
    """One `"key": value` of an object. gap: where the white space before the key begins."""

    key: str
    gap: int
    start: int
    value: Node


@dataclass(frozen=True, slots=True)
class Node:
    """One value, text[start:end]. members: of an object, else None. scalar: the value itself, if it is a string."""

    start: int
    end: int
    members: tuple[Member, ...] | None = None
    scalar: str | None = None

    def get(self, key: str) -> Node | None:
        return next((member.value for member in self.members or () if member.key == key), None)


def where(text: str, offset: int) -> str:
    """ "line 3, column 7", both from 1."""
    return f"line {text.count(chr(10), 0, offset) + 1}, column {offset - text.rfind(chr(10), 0, offset)}"


class _Reader:
    def __init__(self, text: str, path: str) -> None:
        self.text, self.path = text, path
        self.offset = len(BOM) if text.startswith(BOM) else 0

    def fail(self, offset: int, what: str, remedy: str = "mend the JSON there, and run the command again") -> NoReturn:
        raise HostError("VGPU-CFG-001", f"{self.path}: {where(self.text, offset)}: {what}", remedy=remedy)

    def skip_space(self) -> int:
        self.offset = _SPACE.match(self.text, self.offset).end()  # type: ignore[union-attr]  # it matches always
        return self.offset

    def unexpected(self, expected: str) -> NoReturn:
        at, rest = self.offset, self.text[self.offset : self.offset + 20]
        if not rest:
            self.fail(at, f"the file ends where {expected} should be")
        if rest.startswith(("//", "/*", "#")):
            self.fail(at, "a comment, which JSON does not have", "remove the comment: the engine refuses it as well")
        self.fail(at, f"{shown(rest)} where {expected} should be")

    def take(self, token: str) -> bool:
        found = self.text.startswith(token, self.skip_space())
        self.offset += len(token) if found else 0
        return found

    def value(self, depth: int = 0) -> Node:
        start = self.skip_space()
        token = _TOKEN.match(self.text, start)
        if token is None or (token[3] and token[3] not in "{["):
            self.unexpected("a value")
        if depth >= DEPTH_LIMIT:
            self.fail(start, f"nested deeper than {DEPTH_LIMIT}")
        self.offset = token.end()
        if token[3] == "{":
            members = tuple(self.members(depth + 1))
            return Node(start, self.offset, members)
        if token[3] == "[":
            self.items(depth + 1)
        return Node(start, self.offset, scalar=json.loads(token[1]) if token[1] else None)

    def items(self, depth: int) -> None:
        if self.take("]"):
            return
        while True:
            self.value(depth)
            if self.take("]"):
                return
            if not self.take(","):
                self.unexpected("',' or ']'")

    def members(self, depth: int) -> Iterator[Member]:
        gap = self.offset
        if self.take("}"):
            return
        seen: set[str] = set()
        while True:
            start = self.skip_space()
            token = _TOKEN.match(self.text, start)
            if token is None or not token[1]:
                self.unexpected("a key in double quotes")
            self.offset, key = token.end(), json.loads(token[1])
            if key in seen:
                self.fail(start, f"the key {shown(key)} is there twice", "remove the one that is not meant")
            seen.add(key)
            if not self.take(":"):
                self.unexpected("':'")
            yield Member(key, gap, start, self.value(depth))
            if self.take("}"):
                return
            if not self.take(","):
                self.unexpected("',' or '}'")
            gap = self.offset


def parse(text: str, path: str) -> Node:
    """Where everything stands in `text`. An empty text is read as an object that is not there yet: start == end.

    Raises VGPU-CFG-001 with line and column for anything that is not one JSON object; `path` is for the message.
    """
    reader = _Reader(text, path)
    start = reader.skip_space()
    if start == len(text):
        return Node(start, start, ())
    root = reader.value()
    if reader.skip_space() != len(text):
        reader.unexpected("the end of the file")
    if root.members is None:
        reader.fail(start, "not an object", "the file must be one {…}")
    return root


def _newline(text: str) -> str:
    first = text.find("\n")
    return "\r\n" if first > 0 and text[first - 1] == "\r" else "\n"


def _after_newline(space: str) -> str | None:
    """The indent that white space ends with, None if it is all on one line."""
    return space.rpartition("\n")[2] if "\n" in space else None


def _line_indent(text: str, offset: int) -> str:
    line = text[text.rfind("\n", 0, offset) + 1 : offset].removeprefix(BOM)
    return line[: len(line) - len(line.lstrip(" \t"))]


def _unit(text: str, root: Node) -> str | None:
    """One step of indent of this text; None if it is written on one line."""
    if not root.members:
        return DEFAULT_INDENT
    indent = _after_newline(text[root.members[0].gap : root.members[0].start])
    if indent is not None:
        return indent or DEFAULT_INDENT
    return DEFAULT_INDENT if "\n" in text[root.start : root.end] else None


def _render(value: Any, newline: str, unit: str | None, indent: str) -> str:
    if unit is None:
        return json.dumps(value)
    return json.dumps(value, indent=unit).replace("\n", newline + indent)


def insert(text: str, root: Node, target: Node, key: str, value: Any) -> str:
    """`text` with `key` as the last member of the object `target`, written as its neighbours are."""
    newline, unit = _newline(text), _unit(text, root)
    assert target.members is not None and target.get(key) is None
    if target.members:
        last = target.members[-1]
        indent = _after_newline(text[last.gap : last.start])
        rendered = _render(value, newline, None if indent is None else unit or DEFAULT_INDENT, indent or "")
        before = ", " if indent is None else f",{newline}{indent}"
        return f"{text[: last.value.end]}{before}{json.dumps(key)}: {rendered}{text[last.value.end :]}"
    indent = _line_indent(text, target.start)
    rendered = _render({key: value}, newline, unit, indent)
    end = newline if target.start == target.end else ""  # the file was empty: it gets a last line end
    return text[: target.start] + rendered + end + text[target.end :]


def remove(text: str, target: Node, key: str) -> str:
    """`text` without the member `key` of the object `target`, its comma and the white space before it."""
    members = target.members or ()
    index = next(number for number, member in enumerate(members) if member.key == key)
    if len(members) == 1:
        return f"{text[: target.start]}{{}}{text[target.end :]}"
    if index == len(members) - 1:
        return text[: members[index - 1].value.end] + text[members[index].value.end :]
    return text[: members[index].start] + text[members[index + 1].start :]


def set_value(text: str, node: Node, value: str) -> str:
    """`text` with the string `value` in place of `node`."""
    return text[: node.start] + json.dumps(value) + text[node.end :]
