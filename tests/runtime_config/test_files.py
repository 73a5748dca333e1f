"""A configuration file is replaced in full or left as it was, and whose it is does not change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from oci_hook.errors import HostError
from runtime_config import files

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "daemon.json"
    path.write_bytes(b"{}\n")
    return path


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_owner_mode_and_attributes_stay(config: Path) -> None:
    config.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(config, 4242, 4343)
    os.setxattr(config, "user.note", b"ours")
    before = config.stat()
    files.replace(files.read(str(config)), b"new")
    after = config.stat()
    assert config.read_bytes() == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert os.getxattr(config, "user.note") == b"ours"
    assert after.st_ino != before.st_ino  # replaced, not written over
    assert names(config.parent) == ["daemon.json"]


def test_a_link_is_followed_once_and_stays(config: Path) -> None:
    link = config.parent / "link.json"
    link.symlink_to("daemon.json")
    files.replace(files.read(str(link)), b"new")
    assert link.is_symlink()
    assert config.read_bytes() == b"new"
    twice = config.parent / "twice.json"
    twice.symlink_to("link.json")
    with pytest.raises(HostError, match=r"twice\.json: a link to .*link\.json, which is a link too"):
        files.read(str(twice))


def test_a_link_to_a_missing_file_creates_that_file(tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to("later.json")
    file = files.read(str(link))
    assert file.data is None
    files.replace(file, b"new")
    assert (tmp_path / "later.json").read_bytes() == b"new"
    assert link.is_symlink()


def test_a_missing_file_is_created_with_the_mode(tmp_path: Path) -> None:
    file = files.read(str(tmp_path / "new.json"))
    assert (file.data, files.decode(file)) == (None, "")
    old_mask = os.umask(0o077)
    try:
        files.replace(file, b"x")
    finally:
        os.umask(old_mask)
    assert (tmp_path / "new.json").stat().st_mode & 0o7777 == 0o644


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "large"])
def test_what_is_no_configuration_file_is_refused_at_once(config: Path, kind: str) -> None:
    path = config.parent / "odd"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with open(path, "wb") as stream:
            stream.truncate(files.SIZE_LIMIT_BYTES + 1)
    with pytest.raises(HostError, match="not a regular file|Is a directory|larger than") as caught:
        files.read(str(path))
    assert caught.value.code == "VGPU-CFG-001"


def test_what_is_not_utf8_is_refused_with_its_line(config: Path) -> None:
    config.write_bytes(b"{\n \xff}")
    with pytest.raises(HostError, match="line 2: not UTF-8"):
        files.decode(files.read(str(config)))


def test_a_change_by_somebody_else_is_not_overwritten(config: Path) -> None:
    file = files.read(str(config))
    config.write_bytes(b'{"a": 1}')
    actions: list[Callable[[], None]] = [lambda: files.replace(file, b"ours"), lambda: files.remove(file)]
    for action in actions:
        with pytest.raises(HostError, match="changed by somebody else") as caught:
            action()
        assert caught.value.code == "VGPU-CFG-002"
    assert config.read_bytes() == b'{"a": 1}'
    assert names(config.parent) == ["daemon.json"]


def test_a_file_that_appeared_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    file = files.read(str(tmp_path / "new.json"))
    (tmp_path / "new.json").write_bytes(b"theirs")
    with pytest.raises(HostError, match="changed by somebody else"):
        files.replace(file, b"ours")
    assert (tmp_path / "new.json").read_bytes() == b"theirs"


def test_a_missing_folder_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot be written") as caught:
        files.replace(files.read(str(tmp_path / "no" / "daemon.json")), b"x")
    assert "create its folder" in caught.value.remedy


def test_a_backup_has_the_same_bytes_and_mode(config: Path) -> None:
    config.chmod(0o600)
    backup = files.keep_backup(files.read(str(config)))
    assert backup is not None
    assert Path(backup).name == "daemon.json.vgpu-backup"
    assert Path(backup).read_bytes() == b"{}\n"
    assert os.stat(backup).st_mode & 0o7777 == 0o600


def test_an_older_backup_is_set_aside_not_lost(config: Path) -> None:
    backup = files.keep_backup(files.read(str(config)))
    assert backup is not None
    os.utime(backup, (0, 0))
    config.write_bytes(b"other")
    assert files.keep_backup(files.read(str(config))) == backup
    assert Path(backup).read_bytes() == b"other"
    assert Path(backup + ".19700101T000000Z").read_bytes() == b"{}\n"


def in_own_mounts(setup: str, action: str) -> str:
    """What `action` (Python) prints, run after `setup` (shell) in a private mount namespace."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("this test needs root")
        pytest.skip("needs root, to mount")
    return subprocess.run(
        ["unshare", "--mount", "sh", "-ec", setup + '\nexec "$0" -c "$1"', sys.executable, action],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        cwd=ROOT,
    ).stdout


REPLACE = """
import os
from oci_hook.errors import VgpuError
from runtime_config import files
try:
    files.replace(files.read({path!r}), b"x" * {size})
except VgpuError as error:
    print(error.code, error, error.remedy, sep="|")
print(open({path!r}, "rb").read(10), sorted(os.listdir({folder!r})))
"""


@pytest.mark.parametrize(
    ("setup", "size", "why", "remedy"),
    [
        ("mount -t tmpfs -o size=64k none {0}; printf original > {0}/daemon.json", 1 << 20, "No space", "free some"),
        ("printf original > {0}/daemon.json; mount --bind -o ro {0} {0}", 1, "Read-only", "remount"),
        ("printf original > {0}/daemon.json; mount --bind {0}/daemon.json {0}/daemon.json", 1, "busy", "mounted from"),
    ],
    ids=["full", "read-only", "bind-mounted file"],
)
def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, setup: str, size: int, why: str, remedy: str) -> None:
    action = REPLACE.format(path=str(tmp_path / "daemon.json"), folder=str(tmp_path), size=size)
    error, content = in_own_mounts(setup.format(tmp_path), action).splitlines()
    code, message, mend = error.split("|")
    assert code == "VGPU-CFG-002"
    assert why in message
    assert remedy in mend
    assert content == "b'original' ['daemon.json']"
