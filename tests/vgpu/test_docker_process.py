"""How dockerd is started, read from units and processes, and what contradicts the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from oci_hook.errors import HostError
from vgpu import docker_process
from vgpu.docker_process import Start

LAUNCHER = "/opt/vgpu/bin/vgpu-runtime"
PLAIN = '{"runtimes": {"vgpu": {"path": "/opt/vgpu/bin/vgpu-runtime"}}}'
DEFAULT = PLAIN.replace("{", '{"default-runtime": "vgpu", ', 1)
FILE = "/etc/docker/daemon.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Debian's unit, as docker.io installs it."""
    write(tmp_path, "lib/systemd/system/docker.service", DEBIAN_UNIT)
    return tmp_path


DEBIAN_UNIT = """[Service]
Type=notify
EnvironmentFile=-/etc/default/docker
ExecStart=/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock $DOCKER_OPTS
ExecReload=/bin/kill -s HUP $MAINPID
"""


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def started(root: Path) -> tuple[str, ...]:
    return next(docker_process.units(str(root))).words


def test_debians_unit_is_read_with_its_options(root: Path) -> None:
    assert started(root)[1:] == ("-H", "fd://", "--containerd=/run/containerd/containerd.sock")
    write(root, "etc/default/docker", '# comment\nDOCKER_OPTS="--debug --add-runtime a=/b"\n')
    assert started(root)[-3:] == ("--debug", "--add-runtime", "a=/b")


def test_a_drop_in_replaces_the_command_and_the_admins_folder_wins(root: Path) -> None:
    write(root, "etc/systemd/system/docker.service.d/50-a.conf", "[Service]\nExecStart=\nExecStart=/d \\\n  --debug\n")
    assert started(root) == ("/d", "--debug")
    write(root, "lib/systemd/system/docker.service.d/50-a.conf", "[Service]\nExecStart=/never\n")
    assert started(root) == ("/d", "--debug")
    write(
        root, "lib/systemd/system/docker.service.d/60-b.conf", '[Service]\nEnvironment="A=--x y"\nExecStart=/e ${A} "\n'
    )
    assert started(root) == ("/e", "--x", "y", '"')
    write(root, "etc/systemd/system/docker.service", "[Service]\nExecStart=\n")
    write(root, "lib/systemd/system/docker.service.d/60-b.conf", "[Service]\nExecStart=\n")
    assert list(docker_process.units(str(root))) == []


def test_system_v_options_count_where_there_is_no_unit(tmp_path: Path) -> None:
    write(tmp_path, "etc/default/docker", "export DOCKER_OPTS='--default-runtime=crun'\n")
    assert started(tmp_path) == ("dockerd", "--default-runtime=crun")
    assert list(docker_process.units(str(tmp_path / "empty"))) == []


def test_the_file_that_a_dockerd_reads_is_told_by_its_flag(tmp_path: Path) -> None:
    file = tmp_path / "d.json"
    link = tmp_path / "link.json"
    link.symlink_to(file)
    assert Start("", ("dockerd", "--config-file", str(link))).reads(str(file))
    assert Start("", ("dockerd", f"--config-file={file}")).reads(str(link))
    assert not Start("", ("dockerd",)).reads(str(file))
    assert Start("", ("dockerd",)).reads(FILE)


@pytest.mark.parametrize(
    ("flags", "text", "flag", "remedy"),
    [
        ("--add-runtime=nvidia=/usr/bin/n", PLAIN, "--add-runtime nvidia=/usr/bin/n", "--add-runtime vgpu=" + LAUNCHER),
        ("--default-runtime crun", DEFAULT, "--default-runtime crun", "--default-runtime vgpu"),
    ],
)
def test_a_flag_that_dockerd_would_not_take_beside_the_key_is_refused(
    root: Path, flags: str, text: str, flag: str, remedy: str
) -> None:
    write(root, "etc/default/docker", f'DOCKER_OPTS="{flags}"\n')
    with pytest.raises(HostError) as caught:
        docker_process.require_no_conflict(text, FILE, LAUNCHER, str(root))
    assert caught.value.code == "VGPU-CFG-006"
    assert flag in str(caught.value) and "docker.service" in str(caught.value)
    assert remedy in caught.value.remedy


def test_what_does_not_contradict_is_let_through(root: Path) -> None:
    write(root, "etc/default/docker", 'DOCKER_OPTS="--default-runtime=crun --debug"\n')
    docker_process.require_no_conflict(PLAIN, FILE, LAUNCHER, str(root))
    write(root, "etc/default/docker", 'DOCKER_OPTS="--add-runtime=a=/b --config-file=/srv/other.json"\n')
    docker_process.require_no_conflict(DEFAULT, FILE, LAUNCHER, str(root))


def test_no_dockerd_no_answer() -> None:
    docker_process.require_valid("not even JSON", "", f"/nonexistent/{os.getpid()}.json")
