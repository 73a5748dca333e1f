"""An installer that is killed at any step that changes a name: the old version is in use, or the new one, and whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.harness import releases
from tests.vgpu.test_install import install as install_by_command
from vgpu.installer import install, layout, source
from vgpu.installer.config import Settings
from vgpu.installer.source import Item

NAMES = ("rename", "symlink", "unlink", "rmdir")  # functions of os that change what a name leads to
FILES = ("chmod",)  # comes once for each file of the new version's folder


def killed_at(step: int, work: Callable[[], object], changes: Iterable[str]) -> bool:
    """Runs `work` in a fork that is killed before number `step` of the `changes`; False if it had ended by then."""
    child = os.fork()
    if child == 0:
        left = step

        def before(change: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **options: Any) -> Any:
                nonlocal left
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return change(*args, **options)

            return counted

        for name in changes:
            setattr(os, name, before(getattr(os, name)))
        try:
            os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def in_use(prefix: Path) -> str:
    """The version that the next container gets; everything that is needed for that is there, as its manifest says."""
    home = (prefix / "bin/vgpu-runtime").resolve(strict=True).parents[1]
    version = layout.read(home)
    for name, digest in version.files.items():
        assert hashlib.sha256((home / name).read_bytes()).hexdigest() == digest, name
    settings = dict(line.split("=") for line in (home / "etc/launcher.conf").read_text().splitlines())
    assert all(Path(settings[name]).is_file() for name in ("shim", "policy", "python"))
    assert settings["shim"].startswith(f"{home}/")
    return version.name


@pytest.fixture
def upgrade(tmp_path: Path, needs_build: None) -> tuple[layout.Prefix, list[Item]]:
    """A prefix with one version, and what the next consists of."""
    done = install_by_command(tmp_path / "vgpu", "--simulate-gpus", "1", "--runtime", "/bin/true")
    assert done.returncode == 0, done
    prefix = layout.of(str(tmp_path / "vgpu"))
    current = prefix.current()
    assert current is not None
    return prefix, source.from_folder(releases.later(current.home, tmp_path / "next", "0.2.0"))


def reset(prefix: layout.Prefix, old: Path, new: Path) -> None:
    """As it was before the upgrade."""
    shutil.rmtree(new, ignore_errors=True)
    install.version.clear_unfinished(prefix)
    (prefix.path / layout.PREVIOUS).unlink(missing_ok=True)
    prefix.point(layout.CURRENT, f"versions/{old.name}")


def test_the_old_version_or_the_new_one_is_in_use_wherever_it_is_killed(
    upgrade: tuple[layout.Prefix, list[Item]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix, found = upgrade
    old = prefix.versions / in_use(prefix.path)
    wanted = install.Wanted(Settings(simulate_gpus=2), units=str(prefix.path.parent / "units"))
    made = install.version.make(prefix, found, os.path.realpath(wanted.python), wanted.cli_python)
    monkeypatch.setattr(install.version, "make", lambda *_: made)  # compiled once: it changes nothing in the prefix
    for name in ("sync", "fsync"):
        monkeypatch.setattr(os, name, lambda *_: None)  # a killed process loses nothing that it has written

    def work() -> None:
        install.install(prefix, found, wanted)

    for step in range(0, len(made.items), 50):
        assert killed_at(step, work, FILES) and in_use(prefix.path) == old.name
    seen = []
    for step in range(1000):
        reset(prefix, old, made.home)
        if not killed_at(step, work, NAMES):
            break
        seen.append(in_use(prefix.path))
    switch = seen.index(made.home.name)
    assert switch >= 4 and set(seen[switch:]) == {made.home.name}  # one step is the switch, and there is no way back
    assert in_use(prefix.path) == made.home.name
    assert [path for path in prefix.path.rglob("*") if path.name.startswith(layout.UNFINISHED)] == []
    assert sorted(os.listdir(prefix.versions)) == sorted({old.name, made.home.name})
