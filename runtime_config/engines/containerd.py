"""containerd's config.toml: the runtime handler `vgpu`, and on request as CRI's default. Pure: text in, text out.

Our tables are added as a block of lines at the end, between two comments, so that every other byte stays; whether the
result means what was meant is then asked of a TOML parser. Layouts: containerd's docs/cri/config.md, versions 1 to 3.
containerd reads the file when it starts, and only then.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from oci_hook.errors import HostError, VgpuError, shown
from runtime_config import toml_text
from runtime_config.engines import LAUNCHER_NAME, RUNTIME

DEFAULT_PATH = "/etc/containerd/config.toml"
BEGIN = "# vgpu: added by `vgpu configure containerd`, which also takes it out"
END = "# vgpu: end"
PLUGINS = {1: "cri", 2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
_NEW_VERSION = 2  # what every containerd since 1.3 can read
_DEFAULT_KEY = "default_runtime_name"
_BUILT_IN = "runc"
_ANNOTATIONS = '["vgpu.*", "vgpu.*/*"]'  # patterns as of a path: * takes no slash, and vgpu.memory/trainer has one


@dataclass(frozen=True, slots=True)
class Found:
    """What a config.toml says of us. launcher: the handler's program, None if it is not there. version: of the file."""

    launcher: str | None
    is_default: bool
    default: str | None
    version: int


def _cannot(path: str, what: str, remedy: str) -> VgpuError:
    return HostError("VGPU-CFG-003", f"{path}: {what}", remedy=remedy)


def _version(text: str, data: dict[str, Any], path: str) -> int:
    version = data.get("version", 1 if data else _NEW_VERSION)
    if type(version) is not int or version not in PLUGINS:
        what = f"version={shown(version)} is none that we know"
        raise _cannot(path, what, f"use one of {', '.join(map(str, PLUGINS))}, or a newer vgpu")
    return version


def _table(data: dict[str, Any], *names: str, path: str) -> dict[str, Any]:
    """The table at that place, {} if there is none."""
    place = ""
    for name in names:
        place += f".{name}" if place else name
        found = data.get(name, {})
        if not isinstance(found, dict):
            raise _cannot(path, f"{place}={shown(found)} is not a table", "make it a table, or remove it")
        data = found
    return data


def find(text: str, path: str = DEFAULT_PATH) -> Found:
    """Raises VGPU-CFG-001 (not TOML) or -003 (a handler `vgpu` that is not ours, or no table where one belongs)."""
    data = toml_text.parse(text, path)
    version = _version(text, data, path)
    cri = _table(data, "plugins", PLUGINS[version], "containerd", path=path)
    default = cri.get(_DEFAULT_KEY)
    if default is not None and not isinstance(default, str):
        raise _cannot(path, f"{_DEFAULT_KEY}={shown(default)} is not a text", 'write "runc" or remove it')
    ours = _table(cri, "runtimes", path=path).get(RUNTIME)
    launcher = None
    if ours is not None:
        options = ours.get("options", {}) if isinstance(ours, dict) else {}
        launcher = options.get("BinaryName") if isinstance(options, dict) else None
        if not isinstance(launcher, str) or os.path.basename(launcher) != LAUNCHER_NAME:
            what = f"there is a runtime handler {RUNTIME} that is not ours: {shown(ours)}"
            raise _cannot(path, what, "give it another name, or remove it")
    return Found(launcher, default == RUNTIME, default, version)


def add(text: str, launcher: str, *, set_default: bool = False, path: str = DEFAULT_PATH) -> str:
    """`text` with the handler `vgpu` at `launcher` (absolute). What is so already stays as it is written.

    SystemdCgroup is taken from the handler runc: the kubelet looks for both in one place. Raises as `find`.
    """
    found = find(text, path)
    if found.launcher not in (None, launcher):
        raise _cannot(
            path, f"the runtime handler {RUNTIME} leads to {shown(found.launcher)}", "take it out first, with --undo"
        )
    data = toml_text.parse(text, path)
    line_end = "\r\n" if "\r\n" in text else "\n"
    new = text
    if found.launcher is None:
        lines = [] if text else [f"version = {_NEW_VERSION}"]
        there = handlers(text, path)
        options = _table(there, "runc", "options", path=path)
        lines += ["", *_block(options, found.version, launcher, with_runc=not there)]
        new = (text if not text or text.endswith("\n") else text + line_end) + line_end.join(lines).lstrip() + line_end
    if set_default and not found.is_default:
        new = _with_default(new, RUNTIME, path)
    if new != text:
        _require_meaning(new, data, found.version, launcher, set_default or found.is_default, path)
    return new


def imports(text: str, path: str = DEFAULT_PATH) -> tuple[str, ...]:
    """The patterns of the files that this one has containerd read too. Raises VGPU-CFG-001 (not TOML)."""
    found = toml_text.parse(text, path).get("imports", [])
    return tuple(str(pattern) for pattern in found) if isinstance(found, list) else ()


def drop_in(text: str, dump: str, launcher: str, *, set_default: bool = False, path: str = DEFAULT_PATH) -> str:
    """A file of our own for `text` to import. dump: what `containerd config dump` makes of `text`. Raises as `find`.

    It has the version of `text`: containerd 2.1 loses options of other handlers if the two differ.
    """
    version = find(text, path).version
    options = _table(handlers(dump, path), "runc", "options", path=path)
    lines = [f"version = {version}", *_block(options, version, launcher)]
    made = "\n".join(lines) + "\n"
    return _with_default(made, RUNTIME, path) if set_default else made


def handlers(text: str, path: str = DEFAULT_PATH) -> dict[str, Any]:
    """All runtime handlers, with their settings. Raises as `find`."""
    data = toml_text.parse(text, path)
    return _table(data, "plugins", PLUGINS[_version(text, data, path)], "containerd", "runtimes", path=path)


def _header(version: int, *more: str) -> str:
    plugin = PLUGINS[version]
    return ".".join(["plugins", plugin if version == 1 else f'"{plugin}"', "containerd", *more])


def _block(runc: dict[str, Any], version: int, launcher: str, *, with_runc: bool = False) -> Iterator[str]:
    """with_runc: add that too. Before 2.1 the first handler that a file names takes the place of the built-in ones, and
    CRI does not start without its default, runc."""
    yield BEGIN
    if with_runc:
        yield f"[{_header(version, 'runtimes', _BUILT_IN)}]"
        yield '  runtime_type = "io.containerd.runc.v2"'
    yield from handler_lines(runc, version, launcher)
    yield END


def handler_lines(runc: Mapping[str, Any], version: int, launcher: str) -> Iterator[str]:
    """The tables of our handler. runc: the options of its handler, of which ours takes some."""
    here = _header(version, "runtimes", RUNTIME)
    yield f"[{here}]"
    yield '  runtime_type = "io.containerd.runc.v2"'
    yield f"  pod_annotations = {_ANNOTATIONS}"
    yield f"  container_annotations = {_ANNOTATIONS}"
    yield f"  [{here}.options]"
    yield f'    BinaryName = "{launcher}"'
    if isinstance(runc.get("SystemdCgroup"), bool):
        yield f"    SystemdCgroup = {str(runc['SystemdCgroup']).lower()}"


def _require_meaning(
    new: str, before: dict[str, Any], version: int, launcher: str, is_default: bool, path: str
) -> None:
    """What was there is there, and besides it only what is ours."""
    advice = "add the handler by hand: vgpu configure containerd --dry-run --config /dev/null shows it"
    try:
        after = tomllib.loads(new)
        found = find(new, path)
    except (tomllib.TOMLDecodeError, VgpuError) as error:
        raise _cannot(path, f"it is written in a way that cannot be added to ({error})", advice) from None
    runtimes = [
        _table(one, "plugins", PLUGINS[version], "containerd", "runtimes", path=path) for one in (before, after)
    ]
    if not runtimes[0]:
        runtimes[1].pop(_BUILT_IN, None)
    for handler in runtimes:
        handler.pop(RUNTIME, None)
    if not before:
        del after["version"]
    ours_only = _without(after, before, (_DEFAULT_KEY,))
    if not ours_only or (found.launcher, found.is_default) != (launcher, is_default):
        raise _cannot(path, "it is written in a way that cannot be added to", advice)


def _without(after: dict[str, Any], before: dict[str, Any], ours: tuple[str, ...]) -> bool:
    """Is `after` the same as `before` but for keys that are `ours`, and tables that are empty?"""
    for key in after.keys() | before.keys():
        one, other = after.get(key, {}), before.get(key, {})
        if isinstance(one, dict) and isinstance(other, dict):
            if not _without(one, other, ours):
                return False
        elif one != other and key not in ours:
            return False
    return True


def _with_default(text: str, runtime: str | None, path: str) -> str:
    """`text` with CRI's default runtime, None: without. A line is changed or added; nothing else."""
    version = find(text, path).version
    plugin = re.escape(PLUGINS[version])
    header = re.compile(rf"""^[ \t]*\[\s*plugins\s*\.\s*["']?{plugin}["']?\s*\.\s*containerd\s*\][^\n]*\n""", re.M)
    line_end = "\r\n" if "\r\n" in text else "\n"
    line = f'  {_DEFAULT_KEY} = "{runtime}"{line_end}' if runtime else ""
    at = header.search(text)
    if at is None:
        if not line:
            return text
        own = f"[{_header(version)}]{line_end}{line}"
        return text.replace(BEGIN + line_end, BEGIN + line_end + own, 1) if BEGIN in text else text + own
    following = re.compile(r"^[ \t]*\[", re.M).search(text, at.end())
    end = following.start() if following else len(text)
    inside = re.compile(rf"^[ \t]*{_DEFAULT_KEY}\s*=[^\n]*\n?", re.M)
    body, count = inside.subn(line, text[at.end() : end], count=1)
    return text[: at.end()] + (body if count else line + body) + text[end:]


def remove(text: str, original: str | None, path: str = DEFAULT_PATH) -> str | None:
    """`text` without what `add` did; None when there was no file before and nothing of others is in it now.

    original: the backup's text, None if there is no backup. Byte for byte the original where nothing else has changed
    since; otherwise only what is ours goes, and the default becomes what it was. Raises as `find`.
    """
    found = find(text, path)
    if found.launcher is None and not found.is_default:
        return text
    if found.launcher and _is_ours_on(original or "", text, found, path):
        return original
    if found.is_default:
        text = _with_default(text, _previous_default(original, path), path)
    block = re.compile(rf"^{re.escape(BEGIN)}\r?$.*?^{re.escape(END)}\r?$\n?", re.M | re.S)
    text = block.sub("", text, count=1)
    if find(text, path).launcher is not None:
        raise _cannot(path, f"our handler {RUNTIME} is not where we have put it", "remove its tables by hand")
    return text


def _is_ours_on(original: str, text: str, found: Found, path: str) -> bool:
    try:
        plain = add(original, found.launcher or "", path=path)
        return text in (plain, add(original, found.launcher or "", set_default=True, path=path)) or (
            text == add(plain, found.launcher or "", set_default=True, path=path)
        )
    except VgpuError:  # the original was not one that could be edited
        return False


def _previous_default(original: str | None, path: str) -> str | None:
    try:
        previous = find(original or "", path).default
    except VgpuError:
        return None
    return previous if previous != RUNTIME else None


def runtime_class() -> str:
    """The object that lets pods ask for the handler, as YAML."""
    return f"apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata:\n  name: {RUNTIME}\nhandler: {RUNTIME}\n"
