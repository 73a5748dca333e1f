"""A whole Debian whose packages come and go as an admin has them do it, and a container that works meanwhile."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from packages import build

from tests.harness import bundle, images, work
from tests.harness.debroot import Root

VGPU = "/opt/vgpu/bin/vgpu"
# no systemd runs in the root: what it would be told is written down
_SYSTEMCTL = '#!/bin/sh\necho "$@" >>/tmp/systemctl\n'
# apt calls dpkg; it takes several times as long, and is called once
_INSTALL = {"deb": ("dpkg", "--install"), "rpm": ("dnf", "install", "-y")}
_REMOVE = {"deb": ("dpkg", "--remove"), "rpm": ("dnf", "remove", "-y")}
_STATUS = {
    "deb": ("dpkg-query", "-W", "-f=${db:Status-Abbrev}${Version}\\n"),
    "rpm": ("rpm", "-q", "--qf=%{VERSION}\n"),
}
# what Debian has, by the names that an rpm asks for, and the folders of its shells: all that a Debian cannot say
_STAND_IN = {"name": "debian", "arch": "all", "version": "12", "maintainer": "tests", "description": "of Debian's"}
_FOLDERS = ("bash-completion/completions", "fish/vendor_completions.d", "zsh/site-functions")


@dataclass(frozen=True, slots=True)
class Host:
    """root: the Debian. kind: "deb", by apt, or "rpm", by dnf, whose list of packages starts out empty."""

    root: Root
    kind: str

    def prepare(self) -> None:
        """Puts systemd's stand-in into the root, which shall make no new index of manual pages each time."""
        (self.root.path / "var/lib/man-db/auto-update").unlink(missing_ok=True)
        (self.root.path / "run/systemd/system").mkdir(parents=True, exist_ok=True)
        systemctl = self.root.path / "usr/bin/systemctl"
        systemctl.unlink(missing_ok=True)
        systemctl.write_text(_SYSTEMCTL)
        systemctl.chmod(0o755)
        self.told()

    def told(self) -> list[str]:
        """What systemd was told since this was asked last, one call a line."""
        said = self.root.path / "tmp/systemctl"
        lines = said.read_text().splitlines() if said.exists() else []
        said.unlink(missing_ok=True)
        return lines

    def install(self, package: Path, *, check: bool = True) -> str:
        """Also an upgrade. Its output; check=False: whatever comes of it."""
        shutil.copy2(package, self.root.path / "tmp" / package.name)
        done = self.root(*_INSTALL[self.kind], f"/tmp/{package.name}", check=check)
        return done.stdout + done.stderr

    def remove(self) -> subprocess.CompletedProcess[str]:
        """As it ends, refused or not."""
        return self.root(*_REMOVE[self.kind], "vgpu", check=False)

    def force_out(self) -> None:
        """As docs/install.md says it."""
        command = ("apt-get", "remove", "-y") if self.kind == "deb" else _REMOVE["rpm"]
        self.root(*command, "vgpu", VGPU_FORCE="1")

    def status(self) -> str:
        """Of the package: a deb's state, and the version."""
        return self.root(*_STATUS[self.kind], "vgpu", check=False).stdout.strip()

    def vgpu(self, *words: str) -> str:
        return self.root(VGPU, *words).stdout

    def json(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.vgpu(*words, "--json"))
        return found

    def used(self) -> list[int]:
        """Bytes of each container on each of its GPUs."""
        return [gpu["used_bytes"] for one in self.json("ps")["containers"] for gpu in one["gpus"]]


def stand_in(folder: Path) -> Path:
    """An rpm without files that provides what ours requires."""
    provides = [need.replace(">=", "=").strip("()").partition(" or ")[0] for need in build.DEPENDS["rpm"]]
    folders = [{"dst": f"/usr/share/{name}", "type": "dir"} for name in _FOLDERS]
    (folder / "stand-in.yaml").write_text(yaml.safe_dump({**_STAND_IN, "provides": provides, "contents": folders}))
    command = [build.nfpm(), "package", "--config", str(folder / "stand-in.yaml"), "--packager", "rpm"]
    subprocess.run([*command, "--target", f"{folder}/stand-in.rpm"], check=True, capture_output=True)
    return folder / "stand-in.rpm"


class Guest:
    """A container that allocates all the time, started as an engine would, by the path that its configuration names."""

    def __init__(self, host: Host) -> None:
        self.host = host
        tmp = host.root.path / "tmp"
        tree = tmp / "trees"
        tree = tree / "c" if (tree / "c").exists() else images.tree(tree, "c")
        args = ["sh", "-c", work.SCRIPT]
        self.box = bundle.make(Path("unused"), tmp / "bundles", tree, args, annotations=work.SLICE)

    def runtime(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.host.root(f"{VGPU}-runtime", "--root", "/run/runc", *words, check=False)

    def start(self) -> None:
        folder = f"/{self.box.folder.relative_to(self.host.root.path)}"
        # its output goes to a file: it would hold a pipe for as long as it lives
        run = f"{VGPU}-runtime --root /run/runc run --detach --bundle {folder} {self.box.id} >{folder}/said 2>&1"
        if self.host.root("sh", "-c", run, check=False).returncode:
            raise AssertionError(self.said())
        self.goes_on()

    def said(self) -> str:
        return (self.box.folder / "said").read_text()

    def goes_on(self) -> None:
        work.goes_on(self.said)

    def end(self) -> None:
        self.runtime("delete", "--force", self.box.id)


@contextlib.contextmanager
def guest(host: Host) -> Iterator[Guest]:
    made = Guest(host)
    try:
        made.start()
        yield made
    finally:
        host.root("runc", "--root", "/run/runc", "delete", "--force", made.box.id, check=False)
