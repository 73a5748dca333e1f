"""What is in the .deb and the .rpm, and that they are the same bytes each time."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from packages import build, pages

from tests.packages.conftest import Made


def listed(command: list[str]) -> dict[str, tuple[str, str]]:
    """Path -> (mode, owner) as dpkg-deb and rpm show them."""
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for line in said.splitlines():
        mode, owner, *_ = line.split()
        name = re.split(r" \.?(?=/)", line, maxsplit=1)[1].partition(" -> ")[0]
        found[name.rstrip("/")] = (mode, owner)
    return found


def rpm(made: Made, *question: str) -> str:
    return subprocess.run(
        ["rpm", "--query", *question, "--package", str(made.rpm)], capture_output=True, text=True, check=True
    ).stdout


def test_both_have_the_same_files_of_root_that_nobody_else_can_write(made: Made) -> None:
    deb = listed(["dpkg-deb", "--contents", str(made.deb)])
    names = set(rpm(made, "--list").splitlines())
    files = {name for name, (mode, _) in deb.items() if not mode.startswith("d")}
    zsh = {f"/{path}" for path in build.ZSH.values()}
    assert files - zsh == {name for name in names if name in files or name in zsh} - zsh
    for name, (mode, owner) in deb.items():
        assert owner == "root/root", name
        assert mode[0] in "dl" or mode in ("-rw-r--r--", "-rwxr-xr-x"), (name, mode)
    for name in (
        "/usr/bin/vgpu",
        "/usr/lib/systemd/system/vgpu-monitor.service",
        "/usr/lib/tmpfiles.d/vgpu.conf",
        "/usr/lib/vgpu-runtime/bin/vgpu-runtime",
        "/usr/lib/vgpu-runtime/lib/vgpu/wrapper/libcuda.so.1",
        "/usr/lib/vgpu-runtime/lib/vgpu/python/oci_hook/_vgsys.abi3.so",
        "/usr/lib/vgpu-runtime/lib/vgpu/vendor/typer/__init__.py",
        "/usr/share/bash-completion/completions/vgpu",
        "/usr/share/doc/vgpu/copyright",
        "/usr/share/man/man1/vgpu-configure-docker.1.gz",
    ):
        assert name in files and name in names, name
    assert not [name for name in files if "_cffi_backend" in name or name.endswith(".pyc")]


def test_what_they_need_and_run(made: Made) -> None:
    needs = subprocess.run(
        ["dpkg-deb", "--field", str(made.deb), "Depends"], capture_output=True, text=True, check=True
    ).stdout
    assert {"python3-cffi", "python3-yaml", "runc | crun"} <= {word.strip() for word in needs.split(",")}
    assert {"python3-cffi", "python3-pyyaml", "(runc or crun)"} <= set(rpm(made, "--requires").splitlines())
    scripts = rpm(made, "--scripts")
    for name in build.SCRIPTS.values():
        text = (build.HERE / "scripts" / name).read_text()
        assert text.partition("set -e")[2].strip() in scripts
        assert not re.search(r"apt|dnf|pip|curl|wget|https?:", text)  # nothing is fetched


def test_the_rpm_unpacks_to_the_files_that_were_packed(made: Made, tmp_path: Path) -> None:
    with open(made.rpm, "rb") as package:
        archive = subprocess.run(["rpm2cpio"], stdin=package, capture_output=True, check=True).stdout
    subprocess.run(["cpio", "-idm", "--quiet"], input=archive, cwd=tmp_path, check=True)
    packed = {path.relative_to(made.tree): path.read_bytes() for path in made.tree.rglob("*") if path.is_file()}
    packed[Path(build.ZSH["rpm"])] = packed.pop(Path(build.ZSH["deb"]))
    found = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {path.relative_to(tmp_path): path.read_bytes() for path in found} == packed
    assert os.readlink(tmp_path / "usr/bin/vgpu") == "/opt/vgpu/bin/vgpu"


@pytest.mark.parametrize("kind", build.KINDS)
def test_two_builds_give_the_same_bytes(made: Made, tmp_path: Path, kind: str) -> None:
    before = os.umask(0o077)
    try:
        build.tree(tmp_path / "again")
        time.sleep(1.1)  # the next second: a date from the clock would be another one
        again = build.make(tmp_path / "again", kind, "0.1.0", tmp_path / "out")
    finally:
        os.umask(before)
    assert again.read_bytes() == getattr(made, kind).read_bytes()


def test_every_command_has_a_page_and_they_are_well_formed(made: Made) -> None:
    folder = made.tree / "usr/share/man/man1"
    commands = {"-".join(command.path) for command in pages.each(pages.tree())}
    assert {path.name.removesuffix(".1.gz") for path in folder.iterdir()} == commands
    assert {"vgpu", "vgpu-ps", "vgpu-configure-docker", "vgpu-versions-prune"} <= commands
    for path in folder.iterdir():
        text = gzip.decompress(path.read_bytes()).decode()
        assert text.startswith(".TH ") and ".SH NAME" in text and ".SH SYNOPSIS" in text
        assert all(line.isascii() or "…" in line for line in text.splitlines())
