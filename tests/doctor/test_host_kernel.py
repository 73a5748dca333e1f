"""Kernel, control groups, security modules, clock and disks: each fault is made, named, and mended by its remedy."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prepared import Installation, Tree, fault, look, mended

from vgpu.doctor.finding import OK
from vgpu.doctor.host.machine import Host


@pytest.fixture
def both(tree: Tree, here: Installation) -> Host:
    """The installation's policy, and for the rest the prepared root."""
    return dataclasses.replace(here.host, root=str(tree.root))


def test_a_good_host_has_nothing_to_mend(tree: Tree) -> None:
    for name in ("kernel", "cgroups", "versions", "nvidia-uvm", "devices", "MPS", "clock"):
        assert look(tree.host, name).state == OK, look(tree.host, name)


@pytest.mark.seeds("VGPU-KRN-001")
def test_an_old_kernel(tree: Tree) -> None:
    tree.write("proc/sys/kernel/osrelease", "5.10.0-28-amd64\n")
    fault(tree.host, "kernel", "VGPU-KRN-001", "Linux 5.10.0-28-amd64", "5.12")
    tree.write("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n")  # after the upgrade and the reboot
    mended(tree.host, "kernel", "VGPU-KRN-001")


@pytest.mark.seeds("VGPU-KRN-002")
@pytest.mark.parametrize(
    ("mounts", "severity"),
    [("cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n", "warning"),
     ("proc /proc proc rw 0 0\n", "failure")],
)  # fmt: skip
def test_control_groups_of_version_1_or_none(tree: Tree, mounts: str, severity: str) -> None:
    good = (tree.root / "proc/mounts").read_text()
    tree.write("proc/mounts", mounts)
    one = fault(tree.host, "cgroups", "VGPU-KRN-002", "control groups")
    assert one.severity == severity
    assert "unified_cgroup_hierarchy" in one.remedy
    tree.write("proc/mounts", good)
    mended(tree.host, "cgroups", "VGPU-KRN-002")


@pytest.mark.seeds("VGPU-KRN-003")
def test_selinux_that_keeps_containers_out(tree: Tree, here: Installation, both: Host) -> None:
    folder = here.vgpu.state / "containers"
    tree.write("sys/fs/selinux/enforce", "1")
    os.setxattr(folder, "security.selinux", b"system_u:object_r:var_run_t:s0\0")
    try:
        one = fault(both, "SELinux", "VGPU-KRN-003", str(folder), "var_run_t")
        assert one.remedy.endswith(f"'{folder}(/.*)?' && restorecon -R {folder}")
        tree.write("etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=own\n")
        aliases = f"# alias, and what it stands for\n/bin /usr/bin\n{here.vgpu.state} /var/elsewhere\n"
        tree.write("etc/selinux/own/contexts/files/file_contexts.subs_dist", aliases)
        one = fault(
            both, "SELinux", "VGPU-KRN-003", str(folder), "var_run_t"
        )  # semanage refuses a name that is an alias
        assert f"'/var/elsewhere/containers(/.*)?' && restorecon -R {folder}" in one.remedy
        os.setxattr(folder, "security.selinux", b"system_u:object_r:container_file_t:s0\0")  # as restorecon then does
        mended(both, "SELinux", "VGPU-KRN-003")
    finally:
        os.removexattr(folder, "security.selinux")


@pytest.mark.seeds("VGPU-KRN-004")
def test_apparmor_that_confines_the_runtime(tree: Tree, both: Host) -> None:
    tree.write("sys/module/apparmor/parameters/enabled", "Y\n")
    profiles = "docker-default (enforce)\nrunc (enforce)\nsnap (complain)\n"
    listed = tree.write("sys/kernel/security/apparmor/profiles", profiles)
    one = fault(both, "AppArmor", "VGPU-KRN-004", "runc")
    assert one.remedy == "aa-complain runc"
    listed.write_text(profiles.replace("runc (enforce)", "runc (complain)"))  # what aa-complain does
    mended(both, "AppArmor", "VGPU-KRN-004")


@pytest.mark.seeds("VGPU-KRN-005")
def test_a_clock_that_was_set_back(here: Installation) -> None:
    inventory = here.vgpu.state / "inventory.json"
    with here.kept(inventory):
        later = time.time() + 7200
        os.utime(inventory, (later, later))
        fault(here.host, "clock", "VGPU-KRN-005", str(inventory), "in the future")
        os.utime(inventory)  # as if the clock had been put right: now is not before it
        mended(here.host, "clock", "VGPU-KRN-005")


class _Unsynchronised(Host):
    """A kernel that says so: the one thing here that no file can stand for."""

    def clock_is_synchronised(self) -> bool:
        return False


@pytest.mark.seeds("VGPU-KRN-006")
def test_a_clock_that_nothing_synchronises(tree: Tree) -> None:
    host = _Unsynchronised(root=str(tree.root), config=tree.host.config)
    mark = tree.root / "run/systemd/timesync/synchronized"
    mark.unlink()
    one = fault(host, "clock", "VGPU-KRN-006", "adjtimex")
    assert one.remedy == "timedatectl set-ntp true"
    mark.touch()  # what systemd-timesyncd makes once it has the time
    mended(host, "clock", "VGPU-KRN-006")


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    """A file system of that size over `folder`."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True, timeout=30)


@pytest.mark.seeds("VGPU-KRN-007")
@pytest.mark.parametrize("options", ["size=1m", "size=64m,nr_inodes=40"])
def test_no_room_for_slices(here: Installation, options: str) -> None:
    state = here.vgpu.state
    with small_disk(state, options):
        one = fault(here.host, "state disk", "VGPU-KRN-007", str(state), "more slices")
        assert str(state) in one.remedy
        subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=0", state], check=True, timeout=30)  # room was made
        mended(here.host, "state disk", "VGPU-KRN-007")


@pytest.mark.seeds("VGPU-KRN-008")
def test_no_room_for_the_audit_log(here: Installation) -> None:
    log = here.vgpu.log
    with small_disk(log, "size=4m"):
        fault(here.host, "log disk", "VGPU-KRN-008", str(log), "4.0 MiB free")
        subprocess.run(["mount", "-o", "remount,size=200m", log], check=True, timeout=30)
        mended(here.host, "log disk", "VGPU-KRN-008")


@pytest.mark.seeds("VGPU-STA-004")
def test_lines_of_the_audit_log_that_were_lost(here: Installation) -> None:
    lost = here.vgpu.log / "audit.lost"
    lost.parent.mkdir(exist_ok=True)
    lost.write_bytes(bytes(3))
    one = fault(here.host, "audit log", "VGPU-STA-004", str(lost), "3 lines")
    here.follow(one.remedy.partition("then: ")[2])
    mended(here.host, "audit log", "VGPU-STA-004")
