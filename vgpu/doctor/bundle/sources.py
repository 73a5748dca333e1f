"""What goes into the archive, the most telling first. What cannot be read is a note, and stops nothing."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from libcuda_wrap import bindings
from oci_hook import inventory, ledger, no_policy
from oci_hook.errors import VgpuError
from oci_hook.records import Policy
from oci_hook.values import as_json
from runtime_config import policy_file
from vgpu import __version__, ps
from vgpu.doctor import host as host_checks
from vgpu.doctor.bundle import kernel_log
from vgpu.doctor.bundle.archive import Item
from vgpu.doctor.bundle.redact import Names, Redactor
from vgpu.doctor.host.machine import Host
from vgpu.doctor.report import Report, as_dict

AUDIT_LINES = 2000
_MAX_FILE = 4 << 20
_PROGRAMS = ("runc", "crun", "docker", "dockerd", "containerd", "podman", "crio", "nvidia-ctk", "nvidia-smi")
_ENGINES = (
    "/etc/docker/daemon.json", "/etc/containerd/config.toml", "/etc/crio/crio.conf", "/etc/containers/containers.conf",
    "/usr/share/containers/containers.conf",
)  # fmt: skip
_FOLDERS = (
    "/etc/containerd/conf.d", "/etc/crio/crio.conf.d", "/etc/containers/containers.conf.d",
    "/etc/containers/oci/hooks.d", "/usr/share/containers/oci/hooks.d", "/etc/cdi", "/var/run/cdi", "/run/cdi",
)  # fmt: skip
_PARSERS: dict[str, Callable[[str], Any]] = {
    ".json": json.loads, ".toml": tomllib.loads, ".conf": tomllib.loads,
    ".yaml": yaml.safe_load, ".yml": yaml.safe_load,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Draft:
    """A file before it is text: an object for .json, a list of objects for .jsonl, a list of lines for the others."""

    name: str
    value: Any = None
    note: str = ""


class Collector:
    """names: hides the names of hosts; None keeps them."""

    def __init__(self, host: Host, policy: Policy | None, names: Names | None) -> None:
        self.host = host
        self.policy = policy
        self.names = names
        self.redactor = Redactor()

    def items(self) -> list[Item]:
        """All files. They become text last, when it is known what has been removed anywhere."""
        drafts: list[Draft] = []
        for source in (
            self._doctor, self._versions, self._policy, self._failures, self._ledger, self._audit, self._inventory,
            self._engines, self._kernel,
        ):  # fmt: skip
            try:
                drafts += source()
            except Exception as error:  # a fault of ours must not keep what else would tell of it
                what = self.redactor.text(f"{type(error).__name__}: {error}")
                drafts.append(Draft(source.__name__.lstrip("_"), note=f"left out, by a fault of vgpu: {what[:200]}"))
        return [self._finished(draft) for draft in drafts]

    def _finished(self, draft: Draft) -> Item:
        if draft.note:
            return Item(draft.name, b"", note=draft.note)
        value = self.redactor.again(draft.value)
        if draft.name.endswith(".json"):
            text = json.dumps(value, indent=1, default=str) + "\n"
        else:
            lines = map(json.dumps, value) if draft.name.endswith(".jsonl") else value
            text = "".join(f"{line}\n" for line in lines)
        text = self.names.hide(text) if self.names else text
        data = text.encode("utf-8", "backslashreplace")
        return Item(draft.name, data, lines=not draft.name.endswith(".json"))

    def _doctor(self) -> Iterator[Draft]:
        yield Draft("doctor.json", self.redactor.own(as_dict(Report("host", "", host_checks.examine(self.host)))))

    def _versions(self) -> Iterator[Draft]:
        release = self._text("/etc/os-release") or ""
        programs = [name for name in _PROGRAMS if self.host.ask and shutil.which(name)]
        facts = {
            "vgpu": __version__,
            "python": sys.version,
            "kernel": platform.release(),
            "machine": platform.machine(),
            "system": [line for line in release.splitlines() if line.startswith(("ID=", "VERSION_ID="))],
            "programs": {name: _version(name) for name in programs},
        }
        yield Draft("versions.json", facts)

    def _policy(self) -> Iterator[Draft]:
        if self.policy is None:
            yield Draft("policy.json", note="left out: there is no policy in force")
            return
        yield Draft("policy.json", self.redactor.own(as_json(self.policy)))
        path = f"{self.policy.prefix}/etc/launcher.conf"
        known = ("runtime=/", "python=/", "shim=/", "policy=/", "state=/")
        lines = [line for line in (self._text(path, absolute=True) or "").splitlines() if line.startswith(known)]
        yield Draft("launcher.conf", lines)
        yield self._own_yaml(self.host.config)

    def _own_yaml(self, path: str) -> Draft:
        """config.yaml without its comments, which can hold anything, and without what is none of its settings."""
        from runtime_config.policy_file import SETTINGS
        from runtime_config.policy_groups import GROUPS

        try:
            found = yaml.safe_load(self._text(path, absolute=True) or "")
            known = {name.partition(".")[0] for name in SETTINGS} | set(GROUPS)
            kept = {name: value for name, value in found.items() if name in known}
        except (yaml.YAMLError, AttributeError, RecursionError):
            return Draft("config.yaml.json", note=f"left out: {path} cannot be parsed")
        return Draft("config.yaml.json", self.redactor.own(kept))

    def _failures(self) -> Iterator[Draft]:
        kept = no_policy.state_dir(policy_file.compiled_path(self.host.config))
        folders = dict.fromkeys((self.policy.state_dir if self.policy else kept, kept))
        paths = [path for folder in folders for path in _newest(f"{folder}/failures")]
        found = [raw for path in paths if isinstance(raw := self._parsed(path, json.loads), dict)]
        for raw in found:
            self._learn(str(raw.get("image", "")))
        yield Draft("failures.jsonl", [self.redactor.own(raw) for raw in found])

    def _ledger(self) -> Iterator[Draft]:
        if self.policy is None:
            return
        try:
            names = ps.names(self.policy.state_dir)
        except VgpuError as error:
            yield Draft("containers", note=f"left out: {error}")
            return
        for name in sorted(names):
            yield self._container(self.policy.state_dir, name)

    def _container(self, state_dir: str, name: str) -> Draft:
        """Entry, quota and usage of one container, decoded."""
        target, box = f"containers/{name}.json", Path(ledger.folder(state_dir, name), "box")
        facts: dict[str, Any] = {}
        try:
            entry = ledger.read(state_dir, name)
            self._learn(entry.image if entry else "")
            facts["allocation"] = self.redactor.own(as_json(entry))
            facts["plan"] = as_json(ledger.read_plan(state_dir, name).mounts)
            facts["quota"] = [asdict(gpu) for gpu in bindings.read_quota(box / "quota")]
            usage = asdict(bindings.read_usage(box / "usage"))
            facts["usage"] = {**usage, "gpus": usage["gpus"][: len(facts["quota"])]}
        except (VgpuError, OSError, ValueError) as error:
            facts["trouble"] = str(error)
        return Draft(target, facts)

    def _audit(self) -> Iterator[Draft]:
        path = f"{self.policy.log_dir}/audit.jsonl" if self.policy else ""
        lines = (self._text(path, absolute=True, tail=True) or "").splitlines()[-AUDIT_LINES:]
        entries = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # cut at its beginning
                continue
            self._learn(str(entry.get("image", "")))
            entries.append(self.redactor.own(entry))
        yield Draft("audit.jsonl", entries)

    def _inventory(self) -> Iterator[Draft]:
        if self.policy is None:
            return
        try:
            yield Draft("inventory.json", as_json(inventory.load(self.policy)))
        except VgpuError as error:
            yield Draft("inventory.json", note=f"left out: {error}")

    def _engines(self) -> Iterator[Draft]:
        paths = [*_ENGINES]
        for folder in _FOLDERS:
            try:
                paths += [f"{folder}/{name}" for name in sorted(os.listdir(self.host.path(folder)))]
            except OSError:
                continue
        seen = set()
        for path in paths:
            real, kind = os.path.realpath(self.host.path(path)), os.path.splitext(path)[1]
            if kind not in _PARSERS or real in seen or not os.path.isfile(real):
                continue
            seen.add(real)
            raw = self._parsed(self.host.path(path), _PARSERS[kind])
            target = f"engines{path}.json" if kind != ".json" else f"engines{path}"
            if raw is None:
                yield Draft(target, note="left out: it cannot be read or parsed")
            else:
                yield Draft(target, self.redactor.foreign(raw))

    def _kernel(self) -> Iterator[Draft]:
        try:
            lines = kernel_log.lines()
        except OSError as error:
            yield Draft("kernel.log", note=f"left out: {(error.strerror or '').lower()}")
            return
        yield Draft("kernel.log", [self.redactor.text(line) for line in lines])

    def _learn(self, image: str) -> None:
        if self.names:
            self.names.learn(image)

    def _parsed(self, path: str, parser: Callable[[str], Any]) -> Any:
        text = self._text(path, absolute=True)
        try:
            return None if text is None else parser(text)
        except (ValueError, yaml.YAMLError, RecursionError):
            return None

    def _text(self, path: str, *, absolute: bool = False, tail: bool = False) -> str | None:
        """The first or the last _MAX_FILE bytes of a regular file, None if that cannot be read."""
        try:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(path if absolute else self.host.path(path), flags), "rb") as file:
                if not os.path.isfile(f"/proc/self/fd/{file.fileno()}"):
                    return None
                if tail:
                    file.seek(max(0, os.fstat(file.fileno()).st_size - _MAX_FILE))
                return file.read(_MAX_FILE).decode("utf-8", "backslashreplace")
        except OSError:
            return None


def _newest(folder: str) -> list[str]:
    """The records of refused starts, oldest first."""
    try:
        paths = [f"{folder}/{name}" for name in os.listdir(folder) if name.endswith(".json")]
        return sorted(paths, key=lambda path: os.lstat(path).st_mtime_ns)
    except OSError:
        return []


def _version(name: str) -> str:
    """The first line of `name --version`, or why there is none."""
    try:
        done = subprocess.run(
            [name, "--version"], capture_output=True, text=True, errors="replace", timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"({type(error).__name__})"
    return (done.stdout or done.stderr).strip().partition("\n")[0][:200]
