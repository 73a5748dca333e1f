"""The files in which engines may name us, and how each is undone; what `vgpu configure` and `vgpu cdi` have written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from oci_hook.errors import VgpuError
from runtime_config import cdi, files
from runtime_config.engines import containerd, crio, docker, hooks_d, k3s, podman
from runtime_config.engines.drop_in import Found
from runtime_config.engines.hooks_d import HookFile
from vgpu import configure, docker_users
from vgpu.installer.layout import Prefix

_TEMPLATES = {
    f"{engine}-v{version}": (engine, f"{os.path.dirname(made)}/{name}")
    for engine, made in k3s.FILES.items()
    for version, name in k3s.TEMPLATES.items()
}
NAMES = ("createRuntime-hook", "poststop-hook", "cdi", "docker", "containerd", "podman", "crio", *_TEMPLATES)
DOCKER_SOCKET = "unix:///var/run/docker.sock"


@dataclass(frozen=True, slots=True)
class CdiSpec:
    """An editor, as those of runtime_config.engines, of the one file that `vgpu cdi generate` writes."""

    prefix: str

    def find(self, text: str, path: str = cdi.DEFAULT_PATH) -> Found:
        """launcher: the program of our hook that the spec names."""
        ours = text and cdi.parse(text, path).kind == cdi.KIND and f"{self.prefix}/" in text
        return Found(f"{self.prefix}/bin/vgpu-hook" if ours else None, False)

    def add(self, text: str, launcher: str, *, set_default: bool = False, path: str = cdi.DEFAULT_PATH) -> str:
        raise AssertionError("vgpu cdi generate makes it")

    def remove(self, text: str, original: str | None, path: str = cdi.DEFAULT_PATH) -> str | None:
        """The file is ours alone."""
        return None


def known(prefix: Prefix) -> dict[str, tuple[configure.Editor, str]]:
    """NAMES -> editor and usual path. Hooks first: one whose program has gone is passed over without a word."""
    hooks = [HookFile(stage, "", str(prefix.path)) for stage in hooks_d.STAGES]
    return {
        **{f"{hook.stage}-hook": (hook, f"{hooks_d.FOLDER}/{hook.name}") for hook in hooks},
        "cdi": (CdiSpec(str(prefix.path)), cdi.DEFAULT_PATH),
        "docker": (docker, docker.DEFAULT_PATH),
        "containerd": (containerd, containerd.DEFAULT_PATH),
        "podman": (podman, podman.DEFAULT_PATH),
        "crio": (crio, crio.DEFAULT_PATH),
        **{name: (k3s.Template(engine), path) for name, (engine, path) in _TEMPLATES.items()},
    }


def edits(prefix: Prefix, given: Mapping[str, str], *, force: bool) -> list[tuple[configure.Edit, configure.Change]]:
    """What has to go from the engines' files, where they name this prefix. given: name -> file, if not the usual one.

    Raises VGPU-CFG-001 and -003 for a file that would be changed and cannot be; what is not ours may be anything.
    Unless forced also VGPU-ENG-003: Docker has containers, stopped ones too, that could not start any more.
    """
    found = []
    for name, (editor, usual) in known(prefix).items():
        path = given.get(name, usual)
        file = files.read(path)
        if file.data is None or f"{prefix.path}/".encode() not in file.data:
            continue
        text = files.decode(file)
        try:
            launcher = editor.find(text, path).launcher
        except VgpuError:
            if f"{prefix.path}/bin/" in text:
                raise  # ours, and broken since: the engine would go on naming us
            continue
        if launcher is not None and launcher.startswith(f"{prefix.path}/"):
            if editor is docker and not force:
                docker_users.require_none(DOCKER_SOCKET, path, text)
            edit = configure.Edit(path, editor, undo=True)
            found.append((edit, configure.plan(edit, str(prefix.path))))
    return found
