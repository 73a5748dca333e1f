"""NVIDIA's container toolkit is not to be had as a package here: a stand-in, tests/fixtures/nvidia_stand_in.py, does to
real containers what it does, with NVIDIA's real driver libraries. Tests that use it say so in their names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness import drivers, rootfs

_SCRIPT = Path(__file__).resolve().parents[1] / "fixtures/nvidia_stand_in.py"
_NAMES = ("nvidia-container-runtime", "nvidia-container-runtime-hook", "nvidia-cdi-hook")
_ENV = ["NVIDIA_CTK_DEBUG=false", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]


@dataclass(frozen=True, slots=True)
class Toolkit:
    """libraries: libcuda and libnvidia-ml of a real driver. libdir: where in the container it puts them."""

    folder: Path
    libraries: tuple[Path, ...]
    libdir: str

    @property
    def runtime(self) -> Path:
        """To stand between vgpu and runc."""
        return self.folder / "nvidia-container-runtime"

    def legacy(self, spec: dict[str, Any], stage: str = "prestart") -> None:
        """As `--gpus` and the legacy mode leave it; or with its hook at another stage, as other tools may."""
        hook = str(self.folder / "nvidia-container-runtime-hook")
        spec["process"]["env"].append("NVIDIA_VISIBLE_DEVICES=all")
        self._add(spec, stage, [hook, "prestart"], hook)

    def cdi(self, spec: dict[str, Any]) -> None:
        """As the mode jit-cdi leaves it: mounts in the spec, links and the cache by hooks."""
        hook = str(self.folder / "nvidia-cdi-hook")
        options = ["ro", "nosuid", "nodev", "rbind", "rprivate"]
        links = []
        for library in self.libraries:
            target = f"{self.libdir}/{library.name}"
            spec["mounts"].append({"source": str(library), "destination": target, "options": options})
            bare = library.name.split(".so")[0] + ".so"
            links += ["--link", f"{bare}.1::{self.libdir}/{bare}", "--link", f"{library.name}::{self.libdir}/{bare}.1"]
        self._add(spec, "createContainer", [hook, "create-symlinks", *links], hook)
        self._add(spec, "createContainer", [hook, "update-ldcache", "--folder", self.libdir], hook)

    @staticmethod
    def _add(spec: dict[str, Any], stage: str, args: list[str], path: str) -> None:
        hooks = spec.setdefault("hooks", {}).setdefault(stage, [])
        hooks.append({"path": path, "args": args, "env": _ENV})


def toolkit(
    folder: Path, branch: int, runtime: Path, *, libdir: str = "", heed_void: bool = True, stage: str = "prestart"
) -> Toolkit:
    """A stand-in in `folder` with the libraries of driver `branch`. Raises debian.NotOffered.

    runtime: what its own runtime runs. heed_void: False makes it worse than the real one, which a
    NVIDIA_VISIBLE_DEVICES of `void` keeps from doing anything. stage: of the hook that its runtime appends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = Toolkit(folder, drivers.libraries(branch), libdir or f"/{rootfs.LIBDIR}")
    known = {"libraries": [str(path) for path in made.libraries], "libdir": made.libdir, "runtime": str(runtime)}
    (folder / "stand_in.json").write_text(json.dumps({**known, "heed_void": heed_void, "stage": stage}))
    for name in _NAMES:
        program = folder / name
        program.write_text("#!/usr/bin/python3\n" + _SCRIPT.read_text())
        program.chmod(0o755)
    return made
