"""A config.json that NVIDIA's container toolkit has edited before us: as 1.20.1 leaves it, by its documentation."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from oci_hook import nvidia
from oci_hook.bundle import Node
from oci_hook.errors import RequestError

GIB = 1 << 30
LIBDIR = "/usr/lib/x86_64-linux-gnu"
NAMES = {"libcuda.so", "libcuda.so.1", "libcuda.so.575.57.08", "libnvidia-ml.so", "libnvidia-ml.so.1"}
ENV = ["NVIDIA_CTK_DEBUG=false"]
OTHER = [Node("/dev/nvidia1", 195, 1)]


def hook(*args: str, path: str = "/usr/bin/nvidia-ctk") -> dict[str, Any]:
    return {"path": path, "args": list(args), "env": list(ENV)}


def cdi() -> dict[str, Any]:
    """Two GPUs, all of them visible."""
    limits = ("nvidia-ctk", "hook", "apply-cuda-memory-limits", "--driver-root", "", "--gpu-id")
    links = ["--link", f"libcuda.so.1::{LIBDIR}/libcuda.so", "--link", f"libcuda.so.575.57.08::{LIBDIR}/libcuda.so.1",
             "--link", f"libnvcuvid.so.575.57.08::{LIBDIR}/libnvcuvid.so.1"]  # fmt: skip
    devices = [{"path": f"/dev/nvidia{index}", "type": "c", "major": 195, "minor": index} for index in (0, 1, 255)]
    rules = [{"allow": True, "type": "c", "major": 195, "minor": index, "access": "rw"} for index in (0, 1, 255)]
    return {
        "process": {"env": ["PATH=/bin", "NVIDIA_VISIBLE_DEVICES=void"]},
        "hooks": {
            "createRuntime": [hook(*limits, "GPU-0"), hook(*limits, "GPU-1")],
            "createContainer": [
                hook("nvidia-ctk", "hook", "create-symlinks", *links),
                hook("nvidia-ctk", "hook", "update-ldcache", "--folder", LIBDIR),
            ],
        },
        "linux": {"devices": devices, "resources": {"devices": [{"allow": False, "access": "rwm"}, *rules]}},
    }


def legacy() -> dict[str, Any]:
    """As dockerd's --gpus leaves it: the variable once from the image, once from the user."""
    path = "/usr/bin/nvidia-container-runtime-hook"
    env = ["NVIDIA_VISIBLE_DEVICES=none", "A=b", "NVIDIA_VISIBLE_DEVICES=all"]
    return {"process": {"env": env}, "hooks": {"prestart": [hook(path, "prestart", path=path)]}}


def settle(spec: dict[str, Any], runtime: str = "/usr/sbin/runc", memory: int = 8 * GIB) -> dict[str, Any]:
    nvidia.settle(spec, runtime, NAMES, memory, OTHER)
    return spec


def test_it_is_known_by_its_hooks_and_by_its_runtime() -> None:
    assert nvidia.is_here(cdi(), "/usr/sbin/runc") and nvidia.is_here(legacy(), "/usr/sbin/runc")
    assert nvidia.is_here({}, "/usr/bin/nvidia-container-runtime.cdi")
    other = {"hooks": {"prestart": [{"path": "/usr/bin/other"}], "createContainer": None}}
    assert not nvidia.is_here(other, "/usr/bin/crun") and not nvidia.is_here({"hooks": None}, "runc")


def test_links_that_would_take_our_mounts_places_go_and_the_hooks_stay() -> None:
    before = cdi()["hooks"]
    after = settle(cdi())["hooks"]
    assert after["createRuntime"] == before["createRuntime"]
    assert after["createContainer"][1] == before["createContainer"][1]
    first = ["nvidia-ctk", "hook", "create-symlinks", "--link", f"libnvcuvid.so.575.57.08::{LIBDIR}/libnvcuvid.so.1"]
    assert after["createContainer"][0]["args"] == first
    joined = {
        "hooks": {"createContainer": [hook("x", "create-symlinks", f"--link=a::{LIBDIR}/libcuda.so", "--link=a::/b")]}
    }
    assert settle(joined)["hooks"]["createContainer"][0]["args"] == ["x", "create-symlinks", "--link=a::/b"]


def test_the_legacy_hook_is_told_to_bring_nothing() -> None:
    after = settle(legacy())
    assert after["process"]["env"] == ["A=b", "NVIDIA_VISIBLE_DEVICES=void"]
    assert after["hooks"] == legacy()["hooks"]
    below = settle({"process": {"env": ["NVIDIA_VISIBLE_DEVICES=0"]}}, "/usr/bin/nvidia-container-runtime")
    assert below["process"]["env"] == ["NVIDIA_VISIBLE_DEVICES=void"]
    assert settle({}, "/opt/nvidia-container-runtime.legacy")["process"]["env"] == ["NVIDIA_VISIBLE_DEVICES=void"]


def test_other_gpus_devices_go_and_the_rest_stays() -> None:
    linux = settle(cdi())["linux"]
    assert [device["path"] for device in linux["devices"]] == ["/dev/nvidia0", "/dev/nvidia255"]
    assert [rule.get("minor") for rule in linux["resources"]["devices"]] == [None, 0, 255]


def test_twice_is_once() -> None:
    for make in (cdi, legacy):
        once = settle(make())
        assert settle(copy.deepcopy(once)) == once


@pytest.mark.parametrize(("limit", "refused"), [("8191", True), ("8192", False), ("9000", False), ("8 GiB", False)])
def test_a_limit_in_the_driver_below_the_quota_is_a_contradiction(limit: str, refused: bool) -> None:
    """Since driver r615. Equal or above: the quota is the smaller one, and nothing is set twice by us."""
    spec = cdi()
    spec["process"]["env"] += ["NVIDIA_GPU_MEMORY_REQUEST=100", f"NVIDIA_GPU_MEMORY_LIMIT={limit}"]
    if not refused:
        env = list(spec["process"]["env"])
        assert settle(spec)["process"]["env"] == env
        return
    with pytest.raises(RequestError, match="8191 MiB") as caught:
        settle(spec)
    assert caught.value.code == "VGPU-REQ-004" and "8192" in caught.value.remedy
    del spec["process"]["env"][-2]  # the hook needs both variables, or does nothing
    settle(spec)
