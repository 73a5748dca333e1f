"""Of a pod, the containers that are meant get a slice; its sandbox, which has the same annotations, does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from start_path import GIB, ID, Installed, install

from oci_hook import ledger, pods
from oci_hook.errors import RequestError
from oci_hook.records import Quota, Request
from oci_hook.request import parse

# as the three write them; containerd's were seen, CRI-O's and Podman's are in their sources
SANDBOXES = {
    "containerd": {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-name": "web"},
    "cri-o": {"io.kubernetes.cri-o.ContainerType": "sandbox", "io.kubernetes.container.name": "POD"},
    "podman": {"io.kubernetes.cri-o.ContainerType": "sandbox", "io.container.manager": "libpod"},
}
CONTAINERS = {
    "containerd": {
        "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "trainer",
        "io.kubernetes.cri.sandbox-name": "job-0", "io.kubernetes.cri.sandbox-namespace": "research",
        "io.kubernetes.cri.image-name": "docker.io/library/cuda:12",
    },
    "cri-o": {
        "io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.container.name": "trainer",
        "io.kubernetes.pod.name": "job-0", "io.kubernetes.pod.namespace": "research",
        "io.kubernetes.cri-o.ImageName": "docker.io/library/cuda:12",
    },
}  # fmt: skip
TRAINER = CONTAINERS["containerd"]


@pytest.fixture
def vgpu(tmp_path: Path) -> Installed:
    return install(tmp_path)


def ask(annotations: dict[str, str], *env: str) -> Request | None:
    return parse({**TRAINER, **annotations}, {}, env, ("annotation", "label", "env"))


def memory(annotations: dict[str, str], *env: str) -> list[int | None]:
    request = ask(annotations, *env)
    return [] if request is None else [part.memory_bytes for part in request.asks]


@pytest.mark.parametrize("engine", SANDBOXES)
def test_the_sandbox_is_passed_on_untouched(vgpu: Installed, engine: str) -> None:
    before = vgpu.write_config(annotations={**SANDBOXES[engine], "vgpu.memory": "8GiB", "vgpu.memroy/x": "?"})
    assert vgpu.create().returncode == 0
    assert vgpu.called() is not None
    assert (vgpu.bundle / "config.json").read_bytes() == before
    assert vgpu.containers() == []


@pytest.mark.parametrize("engine", CONTAINERS)
def test_a_container_of_a_pod_is_known_by_its_name(vgpu: Installed, engine: str) -> None:
    vgpu.set_policy(quotas=(Quota("io.kubernetes.cri.sandbox-namespace"), Quota("io.kubernetes.pod.namespace")))
    vgpu.write_config(annotations={**CONTAINERS[engine], "vgpu.memory/trainer": "8GiB"})
    assert vgpu.create().returncode == 0
    given = ledger.read(str(vgpu.state), ID)
    assert given is not None
    assert (given.name, given.image) == ("research/job-0/trainer", "docker.io/library/cuda:12")
    assert list(given.request.labels.values()) == ["research"]  # so there can be a quota for a namespace
    assert given.placement.slices[0].memory_bytes == 8 * GIB
    assert vgpu.config()["annotations"]["vgpu.memory/trainer"] == "8GiB"


def test_what_a_pod_says_is_for_each_of_its_containers_unless_it_names_one() -> None:
    assert memory({"vgpu.memory": "1GiB"}) == [GIB]
    assert memory({"vgpu.memory": "1GiB", "vgpu.memory/trainer": "2GiB"}) == [2 * GIB]
    assert memory({"vgpu.memory": "1GiB", "vgpu.memory/other": "2GiB"}) == []
    assert memory({"vgpu.memory": "1GiB", "vgpu.cores/trainer": "30"}) == [GIB]


def test_the_name_goes_before_the_number() -> None:
    assert memory({"vgpu.count": "2", "vgpu.memory.0": "1GiB", "vgpu.memory/trainer": "2GiB"}) == [2 * GIB] * 2
    assert memory({"vgpu.count": "2", "vgpu.memory": "1GiB", "vgpu.memory.0/trainer": "2GiB"}) == [2 * GIB, GIB]


def test_who_is_not_named_can_still_ask_by_its_own_environment() -> None:
    assert memory({"vgpu.memory/other": "2GiB"}, "VGPU_MEMORY=4GiB") == [4 * GIB]


@pytest.mark.parametrize(
    ("annotation", "text", "code", "remedy"),
    [
        ("vgpu.memroy/trainer", "1GiB", "VGPU-REQ-003", "did you mean vgpu.memory/trainer?"),
        ("vgpu.memory/trainer", "8", "VGPU-REQ-001", "write vgpu.memory/trainer=8GiB"),
        ("vgpu.burst/trainer", "sotf", "VGPU-REQ-006", "did you mean vgpu.burst/trainer=soft?"),
    ],
)
def test_a_mistake_is_shown_under_the_name_that_was_written(annotation: str, text: str, code: str, remedy: str) -> None:
    with pytest.raises(RequestError) as refused:
        ask({"vgpu.memory": "1GiB", annotation: text})
    assert refused.value.code == code
    assert str(refused.value).startswith(annotation) and remedy in refused.value.remedy


def test_outside_a_pod_a_name_has_no_meaning() -> None:
    with pytest.raises(RequestError, match=r"vgpu\.memory/trainer \(annotation\): there is no such setting"):
        parse({"vgpu.memory/trainer": "8GiB"}, {}, (), ("annotation",))


def test_a_label_does_not_make_a_sandbox() -> None:
    """Of Docker's labels, which an image can bring, none can keep a container from its slice."""
    assert not pods.is_sandbox({"vgpu.memory": "8GiB"})
    request = parse({}, {**SANDBOXES["containerd"], "vgpu.memory": "8GiB"}, (), ("label",))
    assert request is not None
