"""The plan lists every mount of one container, in order, and nothing of another's GPU."""

from __future__ import annotations

from start_path import GIB, simulated_inventory

from oci_hook.plan import BOX, make
from oci_hook.records import Ask, Placement, Plan, Policy, Request, Slice
from oci_hook.values import replace

POLICY = Policy(runtime="/usr/bin/runc", prefix="/opt/vgpu")
INVENTORY = simulated_inventory(POLICY)
SECOND = Placement("binpack", (Slice(1, "GPU-1", GIB, 0),), ())
REQUEST = Request(asks=(Ask(GIB),))


def plan(*capabilities: str) -> Plan:
    return make(INVENTORY, SECOND, replace(REQUEST, capabilities=capabilities), "/run/vgpu/containers/x")


def targets(found: Plan, where: str) -> list[str]:
    return [mount.target for mount in found.mounts if mount.where == where]


def test_the_box_comes_first_and_usage_can_be_written() -> None:
    found = plan("compute", "utility")
    first, second = found.mounts[:2]
    assert (first.source, first.where, first.target, first.writable) == (
        "/run/vgpu/containers/x/box", "path", BOX, False,
    )  # fmt: skip
    assert (second.source, second.where, second.target, second.writable) == (
        "/run/vgpu/containers/x/box/usage", "box", "usage", True,
    )  # fmt: skip
    order = [mount.where for mount in found.mounts]
    assert max(i for i, where in enumerate(order) if where == "box") < order.index("library")


def test_the_wrapper_stands_under_every_name_and_the_driver_in_the_box() -> None:
    found = plan("compute", "utility")
    by_target = {mount.target: mount for mount in found.mounts}
    for name in ("libcuda.so.1", "libcuda.so", "libcuda.so.550.54.14"):
        assert by_target[name].source == "/opt/vgpu/lib/vgpu/wrapper/libcuda.so.1"
        assert by_target[name].where == "library"
    assert by_target["libnvidia-ml.so"].source == "/opt/vgpu/lib/vgpu/wrapper/libnvidia-ml.so.1"
    assert by_target["libvgpu-driver.so"].source == "/opt/vgpu/lib/vgpu/sim/libcuda.so.550.54.14"
    assert by_target["libvgpu-nvml.so"].source == "/opt/vgpu/lib/vgpu/sim/libnvidia-ml.so.550.54.14"
    assert by_target["libvgpu-driver.so"].where == "box"
    assert all(mount.identity == (1, 2, 3, 4) for mount in found.mounts if mount.where == "library")


def test_only_what_the_capabilities_name() -> None:
    assert "libnvidia-encode.so.1" not in targets(plan("compute", "utility"), "library")
    compute = plan("compute")
    assert set(targets(compute, "library")) == {
        "libcuda.so.1", "libcuda.so", "libcuda.so.550.54.14", "libnvidia-ptxjitcompiler.so.1",
    }  # fmt: skip
    assert "/usr/bin/nvidia-smi" not in targets(compute, "path")
    assert "/usr/bin/nvidia-smi" in targets(plan("utility"), "path")
    assert targets(plan("utility"), "box") == ["usage", "share", "gpu0", "libvgpu-nvml.so"]
    assert "libnvidia-encode.so.1" in targets(plan("video"), "library")


def test_only_the_devices_of_its_own_gpus() -> None:
    assert [target for target in targets(plan("compute"), "path") if target.startswith("/dev")] == [
        "/dev/vgpu-sim/ctl",
        "/dev/vgpu-sim/gpu1",
    ]


def test_preflight_gets_all_that_a_program_may_load() -> None:
    found = plan("compute", "utility")
    assert {library.path for library in found.libraries} == {
        mount.source for mount in found.mounts if mount.where == "library" or mount.target.startswith("libvgpu-")
    }
