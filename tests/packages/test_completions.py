"""The completions that the packages bring, loaded by the shells themselves, at a press of the tabulator."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from packages import build

from tests.packages.conftest import Made

Completed = Callable[[str], list[str]]
_BASH = '. "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vgpu; printf "%s\\n" "${COMPREPLY[@]}"'
# what stands on the line after the tabulator is written down at a press of ^X
_ZSHRC = """
fpath=({folder} $fpath)
autoload -Uz compinit && compinit -u -D
shown() {{ print -r -- "$BUFFER" >{out}.new && mv {out}.new {out} }}
zle-line-init() {{ print >{ready} }}
zle -N shown && zle -N zle-line-init && bindkey '^X' shown
"""


def needs(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed: apt-get install {shell}")
    return found


@pytest.fixture
def bash(made: Made) -> Completed:
    script = made.tree / "usr/share/bash-completion/completions/vgpu"

    def completed(line: str) -> list[str]:
        command = ["bash", "-c", _BASH, "bash", str(script), *line.split(" ")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    return completed


@pytest.fixture
def fish(made: Made, tmp_path: Path) -> Completed:
    """Found in its folder, as an installed one is, if there is such a command."""
    program, script = needs("fish"), made.tree / "usr/share/fish/vendor_completions.d/vgpu.fish"

    (tmp_path / "vgpu").symlink_to("/bin/true")

    def completed(line: str) -> list[str]:
        command = [program, "--no-config", "-c", 'set -p fish_complete_path $argv[1]; complete -C "$argv[2]"']
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
        done = subprocess.run([*command, str(script.parent), line], env=env, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return [one.partition("\t")[0] for one in done.stdout.splitlines()]

    return completed


@pytest.fixture
def zsh(made: Made, tmp_path: Path) -> Callable[[str], str]:
    """The line after the tabulator, in a terminal."""
    program, out, ready = needs("zsh"), tmp_path / "out", tmp_path / "ready"
    folder = (made.tree / build.ZSH["deb"]).parent
    (tmp_path / ".zshrc").write_text(_ZSHRC.format(folder=folder, out=out, ready=ready))
    env = {"PATH": os.environ["PATH"], "ZDOTDIR": str(tmp_path), "TERM": "dumb", "LC_ALL": "C.UTF-8"}

    def completed(line: str) -> str:
        for path in (out, ready):
            path.unlink(missing_ok=True)
        ours, theirs = pty.openpty()
        shell = subprocess.Popen([program, "-d", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
        os.close(theirs)
        try:
            said = awaited(ready, ours)
            os.write(ours, f"{line}\t\x18".encode())
            said += awaited(out, ours)
            assert "vgpu:" not in said and "command not found" not in said
            return out.read_text().rstrip("\n")
        finally:
            os.close(ours)
            shell.kill()
            shell.wait()

    return completed


def awaited(path: Path, terminal: int) -> str:
    """What is said on the terminal until `path` is there."""
    said, until = "", time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until, said
        if select.select([terminal], [], [], 0.05)[0]:
            said += os.read(terminal, 65536).decode(errors="replace")
    return said


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_commands_and_options_are_offered(shell: str, request: pytest.FixtureRequest) -> None:
    completed: Completed = request.getfixturevalue(shell)
    assert completed("vgpu vers") == ["version", "versions"]
    assert completed("vgpu configure do") == ["docker"]
    assert completed("vgpu configure docker --und") == ["--undo"]
    assert completed("vgpu --json config sh") == ["show"]
    assert {"containerd", "crio", "docker", "podman"} <= set(completed("vgpu configure "))
    assert completed("vgpu doctor image --und") == []  # of another command


def test_zsh_completes_commands_options_and_files(zsh: Callable[[str], str]) -> None:
    assert zsh("vgpu vers") == "vgpu version"  # versions too
    assert zsh("vgpu configure do") == "vgpu configure docker "
    assert zsh("vgpu --json configure docker --und") == "vgpu --json configure docker --undo "
    assert zsh("vgpu configure docker --config /etc/host.con") == "vgpu configure docker --config /etc/host.conf "


def test_fish_completes_the_file_that_an_option_takes(fish: Completed) -> None:
    assert fish("vgpu configure docker --config /etc/host.con") == ["/etc/host.conf"]


def test_bash_finds_no_fault_in_its_script(made: Made) -> None:
    script = made.tree / "usr/share/bash-completion/completions/vgpu"
    subprocess.run([needs("shellcheck"), "--shell=bash", str(script)], check=True)
