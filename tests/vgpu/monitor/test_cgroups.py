"""From a pid to its container: every engine's way of naming control groups, and where that tells nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vgpu.monitor.cgroups import Processes, container_of

ID = "3f" * 32
OTHER = "a0" * 32

SHAPES = {
    "docker, systemd, v2": f"0::/system.slice/docker-{ID}.scope\n",
    "docker, cgroupfs, v2": f"0::/docker/{ID}\n",
    "docker, v1": f"12:pids:/docker/{ID}\n4:memory:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/system.slice\n",
    "containerd in kubernetes, systemd": f"0::/kubepods.slice/kubepods-burstable.slice/"
    f"kubepods-burstable-pod0c1d.slice/cri-containerd-{ID}.scope\n",
    "containerd in kubernetes, cgroupfs": f"0::/kubepods/burstable/pod0c1d-22/{ID}\n",
    "containerd, v1 with colons": f"11:memory:/system.slice/kubepods-pod1.slice:cri-containerd:{ID}\n",
    "podman": f"0::/machine.slice/libpod-{ID}.scope/container\n",
    "podman, cgroupfs": f"0::/libpod_parent/libpod-{ID}\n",
    "podman, rootless": f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope\n",
    "cri-o": f"0::/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope\n",
    "nerdctl": f"0::/default/nerdctl-{ID}.scope\n",
    "ctr": f"0::/default/{ID}\n",
    "a group made inside the container": f"0::/docker/{ID}/init.scope\n",
}


@pytest.mark.parametrize("text", SHAPES.values(), ids=SHAPES)
def test_each_engine_names_the_group_after_the_container(text: str) -> None:
    assert container_of(text, {ID}) == ID
    assert container_of(text, set()) == ID  # also one that is not ours: it must not count as the host's


@pytest.mark.parametrize(
    "text",
    [
        "0::/\n",
        "",
        "0::/user.slice/user-1000.slice/session-3.scope\n",
        "0::/system.slice/nvidia-persistenced.service\n",
        f"0::/machine.slice/libpod-conmon-{ID}.scope\n",
        f"0::/docker/{ID[:-1]}\n",
        "garbage",
    ],
)
def test_what_is_in_no_container_is_in_none(text: str) -> None:
    assert container_of(text, {ID}) == ""


def test_an_id_of_any_shape_is_known_if_it_is_ours() -> None:
    assert container_of("0::/machines/my.job_1\n", {"my.job_1"}) == "my.job_1"
    assert container_of("0::/machines/my.job_1\n", set()) == ""


def test_a_container_inside_ours_is_on_our_account() -> None:
    assert container_of(f"0::/docker/{ID}/docker/{OTHER}\n", {ID}) == ID
    assert container_of(f"0::/docker/{ID}/docker/{OTHER}\n", set()) == OTHER


def proc(folder: Path, pid: str, *, mounts: str, group: str = "0::/\n", nspid: str = "7") -> None:
    (folder / pid / "ns").mkdir(parents=True)
    (folder / pid / "ns/mnt").symlink_to(mounts)
    (folder / pid / "cgroup").write_text(group)
    (folder / pid / "status").write_text(f"Name:\tx\nNSpid:\t{nspid}\nNSpgid:\t99\n")


def test_where_the_group_tells_nothing_the_mounts_do(tmp_path: Path) -> None:
    proc(tmp_path, "self", mounts="mnt:[1]")
    proc(tmp_path, "10", mounts="mnt:[2]")
    proc(tmp_path, "11", mounts="mnt:[2]", nspid="11\t5")
    proc(tmp_path, "12", mounts="mnt:[1]")
    proc(tmp_path, "13", mounts="mnt:[3]", group=f"0::/docker/{OTHER}\n")
    found = Processes({"ours": 10, "shares the host's mounts": 12, "not started": 0}, str(tmp_path))
    assert [found.container(pid) for pid in (10, 11, 12, 13, 99)] == ["ours", "ours", "", OTHER, ""]
    assert [found.inner_pid(pid) for pid in (10, 11, 99)] == [7, 5, 0]


def test_this_process_is_found_in_the_real_proc() -> None:
    assert Processes({}).inner_pid(os.getpid()) == os.getpid()
