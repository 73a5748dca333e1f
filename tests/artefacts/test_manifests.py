"""The plain manifests: Kubernetes takes them, the programs in them take their arguments, nobody has too much."""

from __future__ import annotations

import pytest
from artefacts import manifests

from runtime_config.engines import containerd
from tests.harness import kubernetes
from tests.harness.kubernetes import Manifest


@pytest.fixture(scope="module")
def plain() -> list[Manifest]:
    return kubernetes.documents(manifests.PLAIN.read_text())


def test_they_are_of_the_chart_as_it_is() -> None:
    assert f"# chart: sha256:{manifests.digest()}\n" in manifests.PLAIN.read_text(), "the chart was changed: make chart"


def test_kubernetes_takes_every_one_of_them(plain: list[Manifest]) -> None:
    kinds = [found["kind"] for found in plain]
    assert sorted(kinds) == sorted(
        ["Namespace", "DaemonSet", "Service", "DaemonSet", "RuntimeClass", "ServiceAccount", "ServiceAccount"]
    )
    for found in plain:
        kubernetes.check(found)


def test_the_check_is_not_asleep(plain: list[Manifest]) -> None:
    broken = {**plain[1], "spec": {**plain[1]["spec"], "templete": {}}}
    with pytest.raises(kubernetes.kubernetes_validate.ValidationError):
        kubernetes.check(broken)


def test_the_class_is_the_handler_that_containerd_is_given(plain: list[Manifest]) -> None:
    [found] = [found for found in plain if found["kind"] == "RuntimeClass"]
    [printed] = kubernetes.documents(containerd.runtime_class())
    assert (found["handler"], found["metadata"]["name"]) == (printed["handler"], printed["metadata"]["name"])


def test_pods_run_only_where_the_admin_said_and_know_nothing_of_the_cluster(plain: list[Manifest]) -> None:
    found = dict(kubernetes.pods(plain))
    assert found.keys() == {"vgpu-installer", "vgpu-exporter"}
    for pod in found.values():
        assert pod["nodeSelector"] == {"vgpu.dev/node": "true"}
        assert pod["automountServiceAccountToken"] is False
    assert not [one for one in plain if "Role" in one["kind"]]  # no right to ask the API server for anything


def test_containers_have_no_more_rights_than_they_use(plain: list[Manifest]) -> None:
    found = {
        container["name"]: container for _, pod in kubernetes.pods(plain) for container in kubernetes.containers(pod)
    }
    for container in found.values():
        rights = container["securityContext"]
        assert (
            rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"] and "privileged" not in rights
        )
        assert rights["capabilities"]["drop"] == ["ALL"]
        assert container["resources"]["limits"]["memory"]
    added = {name: found[name]["securityContext"]["capabilities"].get("add", []) for name in found}
    assert added == {"install": ["SYS_CHROOT"], "wait": [], "exporter": []}
    assert found["wait"]["securityContext"]["runAsNonRoot"] is True and "volumeMounts" not in found["wait"]
    writable = [mount["mountPath"] for mount in found["exporter"]["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/run/vgpu"]


def test_the_programs_take_their_arguments(plain: list[Manifest]) -> None:
    found = {
        container["name"]: container for _, pod in kubernetes.pods(plain) for container in kubernetes.containers(pod)
    }
    options = kubernetes.node().parse(found["install"]["args"])
    assert (options.verb, options.prefix, options.engine, options.restart) == (
        "install",
        "/opt/vgpu",
        "containerd",
        False,
    )
    settings = kubernetes.accepted_by_vgpu("install", options.arguments)
    assert (settings["state_dir"], settings["units"], settings["simulate_gpus"]) == ("/run/vgpu", "none", 0)
    assert kubernetes.node().parse(found["wait"]["args"]).verb == "wait"
    served = kubernetes.accepted_by_vgpu("exporter", found["exporter"]["args"])
    assert (served["listen"], served["config"]) == (":9411", "/opt/vgpu/etc/config.yaml")


def test_the_service_finds_the_exporters_port(plain: list[Manifest]) -> None:
    [service] = [found for found in plain if found["kind"] == "Service"]
    [daemons] = [
        found for found in plain if found["metadata"]["name"] == "vgpu-exporter" and found["kind"] == "DaemonSet"
    ]
    labels = daemons["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert daemons["spec"]["selector"]["matchLabels"].items() <= labels.items()
    [container] = daemons["spec"]["template"]["spec"]["containers"]
    assert [port["name"] for port in container["ports"]] == [port["targetPort"] for port in service["spec"]["ports"]]
