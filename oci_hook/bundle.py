"""The bundle that the engine handed over: config.json read, edited and written back, and Docker's labels beside it.

Everything that we do not know stays: keys, their order, the file's mode and owner. Editing twice is the same as editing
once: what an earlier start of this bundle added is named in the annotation `EDITS` and taken out first.
"""

from __future__ import annotations

import os
import stat

from oci_hook import fastjson, files, pods
from oci_hook.errors import HostError, shown
from oci_hook.records import Start
from oci_hook.values import TYPE_CHECKING, dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

EDITS = "io.vgpu.edits"
MAX_FILE = 64 << 20
_DOCKER_FILES = ("hostname", "hosts", "resolv.conf")
_TEMPORARY = ".config.json.vgpu"
HOOK_ENV = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"]
HOOK_TIMEOUT_S = 10
_STAGES = ("prestart", "createRuntime", "createContainer", "poststop")  # those of ours, and of NVIDIA's toolkit


@dataclass(frozen=True)
class Docker:
    """What Docker knows of a container and does not put into its spec; of a pod's container its name and image."""

    name: str = ""
    image: str = ""
    labels: dict[str, str] = {}


@dataclass(frozen=True)
class Node:
    """A device node that the container gets. access: of its cgroup rule."""

    path: str
    major: int
    minor: int
    access: str = "rw"


class Bundle:
    """An opened bundle; `spec` is its config.json. Raises HostError VGPU-OCI-001 if that cannot be used.

    config: the file's name, or an absolute path (crun's --config). The folder stays open, so that what is written is
    written where it was read, whatever happens to the path.
    """

    def __init__(self, path: str, config: str = "config.json") -> None:
        folder, self._name = os.path.split(os.path.join(path, config))
        self.path = os.path.join(folder, self._name)
        self._folder = -1
        try:
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            data, self._found = files.read(self._name, MAX_FILE, folder=self._folder)
            self.spec: dict[str, Any] = fastjson.loads(data)
            self._check()
        except FileNotFoundError:
            raise self._refuse("it is not there") from None
        except (OSError, ValueError) as error:
            raise self._refuse(_why(error)) from error

    @property
    def annotations(self) -> dict[str, str]:
        """The annotations that others wrote."""
        ours = self._earlier("annotations")
        return {name: text for name, text in (self.spec.get("annotations") or {}).items() if name not in ours}

    @property
    def env(self) -> list[str]:
        """The environment of the container's process, "NAME=value"."""
        process: dict[str, list[str]] = self.spec.get("process") or {}
        return process.get("env") or []

    @property
    def start(self) -> Start:
        """Raises HostError VGPU-OCI-001."""
        process: dict[str, Any] = self.spec.get("process") or {}
        cwd, words = process.get("cwd") or "/", process.get("args")
        if not isinstance(cwd, str):
            raise self._refuse(f"process.cwd names {shown(cwd)}")
        program = words[0] if isinstance(words, list) and words and isinstance(words[0], str) else ""
        return Start(tuple(self.env), cwd, program)

    @property
    def root(self) -> str:
        """Path of the container's root file tree, as the runtime will read it."""
        return os.path.join(os.path.dirname(self.path), str((self.spec.get("root") or {}).get("path", "")))

    def docker(self, container: str) -> Docker:
        """From config.v2.json in the folder out of which Docker mounts hostname, hosts or resolv.conf.

        The folder must bear the container's id. Raises HostError VGPU-HOST-006 if others can write the file.
        """
        folders = []
        for mount in self.spec.get("mounts") or []:
            folder, name = os.path.split(str(mount.get("source", "")))
            if name in _DOCKER_FILES and os.path.basename(folder) == container and folder not in folders:
                folders.append(folder)
        for folder in folders:
            path = f"{folder}/config.v2.json"
            try:
                data, found = files.read(path, MAX_FILE)
            except FileNotFoundError:
                continue  # not Docker's folder
            except (OSError, ValueError) as error:
                raise _refuse_docker(path, _why(error)) from error
            if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
                why = f"{path} can be written by others than root"
                raise HostError("VGPU-HOST-006", why, remedy=f"`chown root {path} && chmod 600 {path}`")
            try:
                return _docker(fastjson.loads(data))
            except (ValueError, TypeError, AttributeError) as error:
                raise _refuse_docker(path, _why(error)) from error
        return Docker(*pods.described(self.annotations))

    def edit(
        self, commands: Mapping[str, Sequence[str]], script: str, annotations: Mapping[str, str], nodes: Iterable[Node]
    ) -> None:
        """Put our hooks, annotations and device nodes into `spec`.

        commands: stage -> program and arguments; script: the argument that tells a hook as ours. Hooks of others run
        before ours: a mount that they make must not hide ours.
        """
        self._strip(script)
        spec = self.spec
        hooks = spec["hooks"] = dict(spec.get("hooks") or {})
        for stage, command in commands.items():
            entry = {"path": command[0], "args": list(command), "env": list(HOOK_ENV), "timeout": HOOK_TIMEOUT_S}
            hooks[stage] = [*(hooks.get(stage) or []), entry]
        nodes = list(nodes)
        if nodes:
            linux = spec["linux"] = dict(spec.get("linux") or {})
            ours = {node.path for node in nodes}
            others = [device for device in linux.get("devices") or [] if device.get("path") not in ours]
            linux["devices"] = others + [_device(node) for node in nodes]
            resources = linux["resources"] = dict(linux.get("resources") or {})
            resources["devices"] = [*(resources.get("devices") or []), *map(_rule, nodes)]
        edits = {
            "annotations": sorted(annotations.keys() - self.annotations.keys()),
            "devices": [[node.path, node.major, node.minor, node.access] for node in nodes],
        }
        spec["annotations"] = {**annotations, **self.annotations, EDITS: fastjson.dumps(edits)}

    def write(self) -> None:
        """Replace config.json in one step. Raises HostError VGPU-OCI-001."""
        try:
            data = fastjson.dumps(self.spec).encode()
            _unlink(_TEMPORARY, self._folder)  # of a start that was killed
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(_TEMPORARY, flags, 0o600, dir_fd=self._folder)
            try:
                os.fchown(descriptor, self._found.st_uid, self._found.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(self._found.st_mode))
                while data:
                    data = data[os.write(descriptor, data) :]
            finally:
                os.close(descriptor)
            os.rename(_TEMPORARY, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except (OSError, ValueError, RecursionError) as error:  # a number too large for JSON, or nested too deep
            _unlink(_TEMPORARY, self._folder)
            raise self._refuse(f"it cannot be written: {_why(error)}") from error

    def close(self) -> None:
        """Let go of the folder."""
        if self._folder >= 0:
            os.close(self._folder)
        self._folder = -1

    def _strip(self, script: str) -> None:
        """Take out what an earlier start of this bundle added."""
        spec = self.spec
        devices = self._earlier("devices")
        spec["annotations"] = self.annotations
        hooks = spec.get("hooks") or {}
        for stage in _STAGES:
            if stage in hooks:
                hooks[stage] = [entry for entry in hooks[stage] or [] if script not in (entry.get("args") or [])]
        linux = spec.get("linux") or {}
        paths = [device[0] for device in devices]
        if linux.get("devices"):
            linux["devices"] = [device for device in linux["devices"] if device.get("path") not in paths]
        rules = [_rule(Node(*device)) for device in devices]
        resources = linux.get("resources") or {}
        if resources.get("devices"):
            resources["devices"] = [rule for rule in resources["devices"] if rule not in rules]

    def _earlier(self, kind: str) -> list[Any]:
        """What the note of an earlier start says; it can only name what we could have added."""
        note = (self.spec.get("annotations") or {}).get(EDITS)
        if note is None:
            return []
        try:
            found = fastjson.loads(note)
            if kind == "annotations":
                return [name for name in found[kind] if name.startswith("vgpu.")] + [EDITS]
            return [[str(path), int(major), int(minor), str(access)] for path, major, minor, access in found[kind]]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise self._refuse(f"its annotation {EDITS} is not what we wrote") from None

    def _check(self) -> None:
        """The shapes that we rely on. Raises ValueError with the place that is not as the OCI spec has it."""
        spec = self.spec
        hooks, linux = _object(spec, "config.json").get("hooks"), spec.get("linux")
        annotations = _object(spec.get("annotations"), "annotations")
        for name, text in annotations.items():
            if not isinstance(text, str):
                raise ValueError(f"annotation {shown(name)} is not a text")
        for text in _array(_object(spec.get("process"), "process").get("env"), "process.env"):
            if not isinstance(text, str):
                raise ValueError("an entry of process.env is not a text")
        _objects(spec.get("mounts"), "mounts")
        for stage in _STAGES:
            for entry in _objects(_object(hooks, "hooks").get(stage), f"hooks.{stage}"):
                _array(entry.get("args"), f"hooks.{stage}.args")
        _objects(_object(linux, "linux").get("devices"), "linux.devices")
        resources = _object(linux, "linux").get("resources")
        _objects(_object(resources, "linux.resources").get("devices"), "linux.resources.devices")

    def _refuse(self, why: str) -> HostError:
        self.close()
        return HostError(
            "VGPU-OCI-001",
            f"{self.path} cannot be used: {shown(why, 160)[1:-1]}",
            remedy="give the bundle a config.json that `runc spec` or an engine has written",
        )


def _docker(raw: Any) -> Docker:
    config = raw.get("Config") or {}
    labels = config.get("Labels") or {}
    if not all(isinstance(text, str) for text in labels.values()):
        raise ValueError("a label is not a text")
    return Docker(name=str(raw.get("Name", "")).lstrip("/"), image=str(config.get("Image", "")), labels=labels)


def _refuse_docker(path: str, why: str) -> HostError:
    return HostError(
        "VGPU-OCI-001",
        f"the container's labels in {path} cannot be read: {shown(why, 160)[1:-1]}",
        remedy="delete the container and create it again",
    )


def _why(error: Exception) -> str:
    """`error` in words that dockerd does not take for something else."""
    if not isinstance(error, OSError):
        return str(error)
    reasons = {2: "it is not there", 13: "we may not", 20: "a part of its path is no folder", 40: "it is a link"}
    return reasons.get(error.errno or 0) or os.strerror(error.errno or 0)


def _object(value: Any, where: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    return value or {}


def _array(value: Any, where: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise ValueError(f"{where} is not an array")
    return value or []


def _objects(value: Any, where: str) -> list[dict[str, Any]]:
    return [_object(item, f"an entry of {where}") for item in _array(value, where)]


def _device(node: Node) -> dict[str, Any]:
    return {
        "path": node.path,
        "type": "c",
        "major": node.major,
        "minor": node.minor,
        "fileMode": 0o666,
        "uid": 0,
        "gid": 0,
    }


def _rule(node: Node) -> dict[str, Any]:
    return {"allow": True, "type": "c", "major": node.major, "minor": node.minor, "access": node.access}


def _unlink(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        return  # the write that follows says what is wrong
