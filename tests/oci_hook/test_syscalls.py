"""The system calls do what their names say, and fail as OSError with the kernel's number."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oci_hook import sys_build, syscalls
from oci_hook.rootview import INSIDE

SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    inside = tmp_path / "root"
    (inside / "etc").mkdir(parents=True)
    (inside / "etc/hostname").write_text("inside")
    (inside / "absolute").symlink_to("/etc/hostname")
    (inside / "climbing").symlink_to("../../../../../../etc/hostname")
    (inside / "magic").symlink_to("/proc/self/root")
    return inside


def resolved(root: Path, path: str, resolve: int = INSIDE) -> str:
    base = os.open(root, os.O_PATH)
    try:
        fd = syscalls.openat2(base, path, os.O_RDONLY, resolve)
        try:
            return os.read(fd, 100).decode()
        finally:
            os.close(fd)
    finally:
        os.close(base)


@pytest.mark.parametrize("path", ["etc/hostname", "/etc/hostname", "absolute", "climbing", "../etc/hostname"])
def test_every_way_ends_inside_the_root(root: Path, path: str) -> None:
    assert resolved(root, path) == "inside"


def test_renames_elsewhere_on_the_machine_do_not_stand_in_the_way(root: Path, tmp_path: Path) -> None:
    """The kernel gives up on `..` below a root while anything is renamed or mounted anywhere: that is no refusal."""
    renames = "import os, sys; a, b = sys.argv[1:]; open(a, 'w').close()\nwhile True: os.rename(a, b); os.rename(b, a)"
    command = [sys.executable, "-c", renames]
    busy = [subprocess.Popen([*command, tmp_path / f"a{number}", tmp_path / f"b{number}"]) for number in range(2)]
    try:
        for _ in range(20_000):
            assert resolved(root, "climbing") == "inside"
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_what_leads_nowhere_inside_is_not_there(root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        resolved(root, "magic/etc/hostname")


def test_magic_links_are_refused() -> None:
    with pytest.raises(OSError) as caught:
        resolved(Path("/"), "proc/self/root/etc/hostname")
    assert caught.value.errno == errno.ELOOP


def test_another_mount_is_refused_where_asked() -> None:
    with pytest.raises(OSError) as caught:
        resolved(Path("/"), "proc/version", INSIDE | syscalls.NO_XDEV)
    assert caught.value.errno == errno.EXDEV


def test_a_nul_is_no_part_of_a_path(root: Path) -> None:
    with pytest.raises(ValueError, match="NUL"):
        resolved(root, "etc\0/hostname")


def test_errors_carry_the_kernels_number() -> None:
    for call in (lambda: syscalls.clone_tree(-1), lambda: syscalls.mount_id(-1), lambda: syscalls.setns(-1, 0)):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EBADF


def test_a_mounts_id_is_that_of_mountinfo() -> None:
    fd = os.open("/proc/self", os.O_PATH)
    ids = [line.split()[0] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " /proc " in line]
    assert str(syscalls.mount_id(fd)) in ids
    os.close(fd)


def test_an_ended_process_is_noticed_before_it_is_reaped() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        pidfd = os.pidfd_open(child.pid)
        assert not syscalls.has_ended(pidfd)
        child.kill()
        until = time.monotonic() + 5
        while not syscalls.has_ended(pidfd):  # a zombie: nobody has waited for it
            assert time.monotonic() < until
        os.close(pidfd)


def test_what_install_copies_is_all_that_an_isolated_python_needs(tmp_path: Path) -> None:
    """Below 1 ms on an idle machine; the bound here leaves room for a busy one, and none for ctypes or cffi itself."""
    sys_build.build(tmp_path)
    (tmp_path / "oci_hook/__init__.py").write_text("")
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); start = time.process_time();"
        "from oci_hook import _vgsys; print(time.process_time() - start);"
        "print(*(name for name in sys.modules if 'cffi' in name or 'ctypes' in name))"
    )
    took = []
    for _ in range(10):
        done = subprocess.run(
            [SYSTEM_PYTHON, "-I", "-S", "-E", "-B", "-c", code, tmp_path], check=True, capture_output=True, text=True
        )
        seconds, modules = done.stdout.splitlines()
        took.append(float(seconds))
        assert modules == "_cffi_backend"
    assert min(took) < 0.004
