"""What CRI-O makes of a pod, without CRI-O, which no Debian suite has: config.json with the annotations that its
sources write, run by runc and crun, with our runtime as the handler or with our files in hooks.d."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime_config.engines import hooks_d
from tests.harness import bundle, images
from tests.harness.bundle import Container, Result
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e
GIB = 1 << 30
POD = {"io.kubernetes.pod.name": "job-0", "io.kubernetes.pod.namespace": "research"}
SANDBOX = {**POD, "io.kubernetes.cri-o.ContainerType": "sandbox", "io.kubernetes.container.name": "POD"}
TRAINER = {
    **POD,
    "io.kubernetes.cri-o.ContainerType": "container",
    "io.kubernetes.container.name": "trainer",
    "io.kubernetes.cri-o.ImageName": "docker.io/library/cuda:12",
}
SIDECAR = {**TRAINER, "io.kubernetes.container.name": "sidecar"}
FOR_TRAINER = {"vgpu.memory/trainer": "8GiB"}


@pytest.fixture(scope="session")
def pause_tree(images_folder: Path) -> Path:
    """As the pause image: no C library."""
    return images.tree(images_folder, "no-glibc")


def with_hooks_d(box: Container, vgpu: Vgpu, *, device: bool) -> None:
    """As an engine with our files in hooks.d, since the pod's annotations match. device: and with a device by CDI."""
    spec = json.loads(box.config.read_text())
    for stage in hooks_d.STAGES:
        file = json.loads(hooks_d.HookFile(stage, "/usr/bin/python3", str(vgpu.prefix)).text())
        spec.setdefault("hooks", {}).setdefault(stage, []).append(file["hook"])
    if device:
        made = json.loads(vgpu("cdi", "generate", "--output", "-").stdout)
        [every] = [one["containerEdits"] for one in made["devices"] if one["name"] == "all"]
        for mount in (*made["containerEdits"]["mounts"], *every["mounts"]):
            bind = {"destination": mount["containerPath"], "source": mount["hostPath"], "options": mount["options"]}
            spec["mounts"].append({**bind, "type": "none"})
    box.config.write_text(json.dumps(spec))


@pytest.mark.parametrize("asked", [{"vgpu.memory": "8GiB"}, FOR_TRAINER])
def test_as_the_handler_only_the_container_gets_a_slice(
    vgpu: Vgpu, c_tree: Path, pause_tree: Path, tmp_path: Path, asked: dict[str, str]
) -> None:
    quiet = ("/bin/busybox", "sleep", "60")
    with bundle.container(vgpu.runtime, tmp_path, pause_tree, quiet, annotations={**SANDBOX, **asked}) as sandbox:
        assert sandbox.create().code == 0
        assert vgpu.containers() == []
        with bundle.container(vgpu.runtime, tmp_path, c_tree, quiet, annotations={**TRAINER, **asked}) as box:
            assert box.create().code == 0
            box.start()
            assert f"took {8 * GIB} bytes" in box.exec(["/usr/bin/cuda_client", "fill"]).stdout
            given = vgpu.allocation(box.id)
            assert (given["name"], given["image"]) == ("research/job-0/trainer", "docker.io/library/cuda:12")


@pytest.mark.parametrize("who", [SANDBOX, SIDECAR], ids=["sandbox", "sidecar"])
def test_hooks_d_leaves_alone_whom_the_annotations_do_not_mean(
    vgpu: Vgpu, low_level: Path, pause_tree: Path, tmp_path: Path, who: dict[str, str]
) -> None:
    words = ("/bin/busybox", "true")
    with bundle.container(low_level, tmp_path, pause_tree, words, annotations={**who, **FOR_TRAINER}) as box:
        with_hooks_d(box, vgpu, device=False)
        assert box.run() == Result(0, "")
    assert vgpu.failures() == [] or vgpu.failures()[-1]["id"] != box.id


def test_hooks_d_gives_the_container_with_a_device_its_slice(
    vgpu: Vgpu, low_level: Path, c_tree: Path, tmp_path: Path
) -> None:
    words = ("cuda_client", "fill")
    with bundle.container(low_level, tmp_path, c_tree, words, annotations={**TRAINER, **FOR_TRAINER}) as box:
        with_hooks_d(box, vgpu, device=True)
        result = box.run()
    assert result.code == 0 and f"took {8 * GIB} bytes" in result.output, result


@pytest.mark.parametrize(
    ("who", "device", "code"),
    [(TRAINER, False, "VGPU-PLC-006"), (SIDECAR, True, "VGPU-REQ-007"), (SANDBOX, True, "VGPU-REQ-007")],
    ids=["request without device", "device without request", "sandbox with device"],
)
def test_hooks_d_refuses_one_without_the_other(
    vgpu: Vgpu, low_level: Path, c_tree: Path, tmp_path: Path, who: dict[str, str], device: bool, code: str
) -> None:
    """That it calls itself a sandbox does not get anybody a GPU."""
    with bundle.container(low_level, tmp_path, c_tree, ("true",), annotations={**who, **FOR_TRAINER}) as box:
        with_hooks_d(box, vgpu, device=device)
        assert box.create().code != 0
    assert vgpu.failures()[-1]["code"] == code
