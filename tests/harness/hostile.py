"""Hostile containers: a start, and the proof that the host is as it was.

Every attack gets a canary folder outside the container's root. Afterwards the canary is unchanged to the byte, the host
has no mount that shows anything of ours, and no folder of the slice has appeared on the host itself.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oci_hook import ledger
from tests.harness import bundle, leftovers
from tests.harness.installed import Vgpu

SLICE = {"vgpu.memory": "8GiB", "vgpu.cores": "30"}
HOST_PATHS = ("/usr/lib/vgpu", "/dev/vgpu-sim", "/etc/ld.so.preload")
Edit = Callable[[Path, Path], None]  # (root of the container, canary) -> None


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes | str]]:
    """Path -> (mode, owner, content or link) of everything below, special files included."""
    found: dict[str, tuple[int, int, bytes | str]] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        content: bytes | str = b""
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_uid, content)
    return found


@dataclass(frozen=True, slots=True)
class Outcome:
    """code: of our refusal, "runtime" if runc or crun refused, "" if the container ran. output: of its program."""

    code: str
    message: str
    output: str


@dataclass(frozen=True, slots=True)
class Ground:
    """Where an attack takes place."""

    vgpu: Vgpu
    folder: Path
    tree: Path
    canary: Path

    def attack(
        self,
        edit: Edit,
        script: str = "true",
        *,
        annotations: Mapping[str, str] = SLICE,
        change: Callable[[dict[str, Any]], None] = lambda config: None,
        **options: Any,
    ) -> Outcome:
        """One container: its root edited by `edit`, its config.json by `change`, its program a shell script."""
        args = ["sh", "-c", script]
        made = bundle.container(
            self.vgpu.runtime, self.folder / "bundles", self.tree, args, annotations=annotations, **options
        )
        with made as box:
            edit(box.folder / "rootfs", self.canary)
            config = json.loads(box.config.read_text())
            change(config)
            box.config.write_text(json.dumps(config))
            result = box.run()
            with contextlib.suppress(FileNotFoundError):
                failure = json.loads((self.vgpu.state / f"failures/{box.id}.json").read_text())
                return Outcome(failure["code"], failure["message"], result.refusal)
        return Outcome("runtime" if result.refusal else "", result.refusal, result.output)


@contextlib.contextmanager
def ground(vgpu: Vgpu, folder: Path, tree: Path) -> Iterator[Ground]:
    canary = folder / "H"
    canary.mkdir(parents=True)
    (canary / "file").write_text("nobody may change this")
    before = snapshot(canary)
    hosts = {path: os.path.lexists(path) for path in HOST_PATHS}
    yield Ground(vgpu, folder, tree, canary)
    assert snapshot(canary) == before, "the canary was changed"
    assert {path: os.path.lexists(path) for path in HOST_PATHS} == hosts
    assert leftovers.mounts(folder, vgpu.prefix, vgpu.state) == []
    with ledger.Ledger(str(vgpu.state)) as book:
        book.reap()  # as the next start does; crun deletes nothing when it refuses by itself
    assert vgpu.containers() == []
