"""Slices by CDI in containerd, without a runtime of ours: the CRI's own field, its annotation, and ctr. 1.7 has to be
told to (enable_cdi), 2.1 is on; 1.6 has none. By `make matrix`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import debian, matrix, node, suites
from tests.harness.cri import Refused
from tests.harness.node import IMAGE, SLEEP, Node

pytestmark = [pytest.mark.e2e, pytest.mark.matrix]
GIB = 1 << 30
DEVICE = "vgpu.dev/gpu=all"
ENV = {"VGPU_MEMORY": "8GiB"}
FILL = ("cuda_client", "fill")


@pytest.fixture(scope="module", params=["trixie", "forky"])
def kube(request: pytest.FixtureRequest, e2e_folder: Path, needs_root: None, c_tree: Path) -> Iterator[Node]:
    try:
        with node.running(e2e_folder / f"cri-cdi-{request.param}", request.param, "runc", c_tree, cdi=True) as found:
            yield found
    except debian.NotOffered as missing:
        pytest.skip(str(missing))
    assert found.vgpu.containers() == []


def run(kube: Node, handler: str, pod: dict[str, str], **options: Any) -> str:
    """What the client in a pod's container says, with our device."""
    made = kube.client.pod(handler, pod)
    try:
        done = made.run("main", IMAGE, FILL, **options)
    finally:
        made.end()
    assert done.code == 0, done
    assert kube.vgpu.containers() == []
    return done.output


@pytest.mark.parametrize("how", ["field", "annotation"])
def test_a_device_and_the_environment_give_a_slice(kube: Node, how: str, record_property: matrix.Record) -> None:
    engine = f"containerd {suites.version(kube.daemon.program)}, pods by CRI, devices by CDI"
    matrix.row(record_property, engine=engine, runtime=kube.runtime, suite=kube.suite)
    asked = {"cdi": [DEVICE]} if how == "field" else {"annotations": {"cdi.k8s.io/test": DEVICE}}
    assert f"took {8 * GIB} bytes" in run(kube, "", {}, env=ENV, **asked)


def test_with_our_handler_as_well_it_is_one_slice(kube: Node) -> None:
    assert f"took {8 * GIB} bytes" in run(kube, "vgpu", {"vgpu.memory": "8GiB"}, cdi=[DEVICE])
    events = [entry["event"] for entry in kube.vgpu.audit()]
    assert events[-3:] == ["allocate", "arm", "release"]


def test_a_device_without_a_request_does_not_start(kube: Node) -> None:
    """With runc as the handler a pod's annotations do not reach us: they are no request."""
    made = kube.client.pod("", {"vgpu.memory": "8GiB"})
    try:
        with pytest.raises(Refused, match="VGPU-REQ-007"):
            made.start("main", IMAGE, SLEEP, cdi=[DEVICE])
    finally:
        made.end()


def test_ctr_takes_the_device(kube: Node, tmp_path: Path) -> None:
    if kube.daemon.version < 3:
        pytest.skip("ctr knows CDI since containerd 2.0")
    root = tmp_path / "root"
    shutil.copytree(kube.tree, root, symlinks=True)
    # it looks in /etc/cdi alone, and the machine's is not for tests
    private = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc && exec "$@"', str(kube.cdi.parent))
    command = ("run", "--rm", "--device", DEVICE, "--annotation", "vgpu.memory=8GiB", "--rootfs", str(root))
    done = kube.daemon.ctr(*command, "by-ctr", "/usr/bin/cuda_client", "fill", within=private)
    assert done.returncode == 0 and f"took {8 * GIB} bytes" in done.stdout, done
