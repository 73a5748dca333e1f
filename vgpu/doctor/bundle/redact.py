"""Takes secrets out. What stays is named, all else goes: so a secret of a shape that nobody thought of goes as well.

Of other programs' files stay: the shape, true and false, numbers, and the texts of the keys in KEPT. Of our own files
stays all but labels (other than vgpu.*). Free text, which is our own messages and the kernel's, is searched for what
looks like a secret, and for whatever was removed elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

GONE = "(removed)"
# leaf names, in Docker's, containerd's, Podman's and CRI-O's files, hooks.d and CDI specs, whose texts are kept
KEPT = frozenset((
    "binaryname", "binary_name", "cdi-spec-dirs", "cdi_spec_dirs", "cdiversion", "cgroup-parent", "cgroup_manager",
    "containerpath", "data-root", "default-runtime", "default_runtime", "default_runtime_name", "driver",
    "events_logger", "exec-opts", "exec-root", "hookname", "hostpath", "hooks_dir", "imports", "kind", "log-driver",
    "log-level", "name", "options", "path", "root", "runtime", "runtime_path", "runtime_root", "runtime_type",
    "runtimetype", "snapshotter", "stages", "state", "storage-driver", "type", "userns-remap", "version",
))  # fmt: skip
# below these nothing is kept, not even names
_CLOSED = re.compile(
    r"auth|regist|credential|secret|token|passw|prox|header|tls|cert|(^|[_-])keys?$|log-opts|labels", re.I
)
_ARGUMENTS = frozenset(("args", "runtimeargs", "runtime_args"))
_ENVIRONMENTS = frozenset(("env", "environment"))
_TEXT: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [^-]+-----.*?(-----END [^-]+-----|\Z)", re.DOTALL), GONE),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w+/=._-]{8,}"), rf"\1 {GONE}"),
    (re.compile(r"(?<=://)[^/\s'\"]*@"), f"{GONE}@"),
    (re.compile(r"\b((?:VGPU|NVIDIA|CUDA)_[A-Z0-9_]+=)('[^']*'|\"[^\"]*\"|[^\s;,]+)"), rf"\1{GONE}"),
    (re.compile(r"(?i)\b([\w.-]*(?:passw|secret|token|credential|api[_-]?key|auth)[\w.-]*[\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|\S+)"),
     rf"\1{GONE}"),
)  # fmt: skip
_LONG_ENOUGH = 4  # a shorter value that was removed is no use to anybody, and is part of other words


class Redactor:
    """Remembers what it removed, so that `text` finds it in other places as well."""

    def __init__(self) -> None:
        self._removed: set[str] = set()

    def text(self, text: str) -> str:
        """Free text, or one text of a file."""
        for pattern, instead in _TEXT:
            text = pattern.sub(instead, text)
        return text

    def again(self, value: Any) -> Any:
        """`value` without what was removed anywhere meanwhile. Longest first: one secret may begin as another does."""
        if isinstance(value, Mapping):
            return {name: self.again(inner) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.again(inner) for inner in value]
        if isinstance(value, str):
            for secret in sorted(self._removed, key=len, reverse=True):
                value = value.replace(secret, GONE)
        return value

    def foreign(self, value: Any, key: str = "") -> Any:
        """What another program's file holds, parsed. key: the name under which `value` stands."""
        low = key.lower()
        if low in _ARGUMENTS:
            return self._each(value, self._argument)
        if low in _ENVIRONMENTS:
            return self._each(value, self._variable)
        if key and _CLOSED.search(key) and not isinstance(value, bool):
            self._forget(value)
            return GONE
        if isinstance(value, Mapping):
            return {str(name): self.foreign(inner, str(name)) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.foreign(inner, key) for inner in value]
        if isinstance(value, str):
            return self.text(value) if low in KEPT else self._drop(value)
        return value if value is None or isinstance(value, (bool, int, float)) else self._drop(str(value))

    def own(self, value: Any, key: str = "") -> Any:
        """What a file of ours holds, parsed: labels lose their values, unless their names begin with vgpu."""
        if isinstance(value, Mapping):
            if key == "labels":
                return {
                    name: text if name.startswith("vgpu.") else self._drop(str(text)) for name, text in value.items()
                }
            return {name: self.own(inner, name) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.own(inner, key) for inner in value]
        if isinstance(value, str):
            if key == "label" and "=" in value:  # of a quota: "team=a"
                name, _, text = value.partition("=")
                return f"{name}={self._drop(text)}" if text else value
            return self.text(value)
        return value

    def _each(self, value: Any, one: Callable[[str], str]) -> Any:
        return [one(str(inner)) for inner in value] if isinstance(value, list) else self._drop(str(value))

    def _argument(self, word: str) -> str:
        """An absolute path, or the name of an option: its value goes."""
        if word.startswith("/") and self.text(word) == word:
            return word
        name, equals, value = word.partition("=")
        if re.fullmatch(r"--?[a-z][a-z-]{0,30}", name):
            return f"{name}={self._drop(value)}" if equals else name
        return self._drop(word)

    def _variable(self, entry: str) -> str:
        name, _, value = entry.partition("=")
        return (
            f"{name}={self._drop(value)}" if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,60}", name) else self._drop(entry)
        )

    def _drop(self, text: str) -> str:
        if len(text) >= _LONG_ENOUGH:
            self._removed.add(text)
        return GONE

    def _forget(self, value: Any) -> None:
        """As `_drop`, of all below a value, names included."""
        if isinstance(value, Mapping):
            for name, inner in value.items():
                self._drop(str(name))
                self._forget(inner)
        elif isinstance(value, list):
            for inner in value:
                self._forget(inner)
        elif isinstance(value, str):
            self._drop(value)


class Names:
    """Other words for the names of hosts: this one, and registries in images' names. The same name, the same word."""

    def __init__(self, own: tuple[str, ...]) -> None:
        self._words: dict[str, str] = {name: "host" for name in own if len(name) > 1 and name != "localhost"}

    def learn(self, image: str) -> None:
        """The registry of an image, if its name has one: the part before the first slash, with a dot or a port."""
        host, slash, _ = image.partition("/")
        if slash and ("." in host or ":" in host) and host not in self._words:
            self._words[host] = f"registry-{len(self._words) + 1}"

    def hide(self, text: str) -> str:
        for name in sorted(self._words, key=len, reverse=True):
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", self._words[name], text, flags=re.IGNORECASE)
        return text
