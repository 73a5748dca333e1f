"""The Helm chart, rendered by Helm's own code with values that people set; it refuses values that make no sense."""

from __future__ import annotations

from typing import Any

import pytest
from artefacts import manifests

from tests.harness import kubernetes
from tests.harness.kubernetes import Manifest

helm = pytest.importorskip("helm_python", reason="`make chart` installs Helm's library")


def rendered(values: dict[str, Any]) -> list[Manifest]:
    found = [one for text in manifests.render(values).values() for one in kubernetes.documents(text)]
    for one in found:
        kubernetes.check(one)
    return found


def named(found: list[Manifest]) -> dict[str, Manifest]:
    return {c["name"]: c for _, pod in kubernetes.pods(found) for c in kubernetes.containers(pod)}


def test_the_plain_manifests_are_what_it_renders() -> None:
    assert manifests.plain() == manifests.PLAIN.read_text()


def test_helm_has_nothing_against_it() -> None:
    report = helm.chart.lint(manifests.CHART, strict=True)
    assert report["errors"] == []
    assert [one for one in report["messages"] if one["severity"] > 1] == []  # 1: a remark, that it has no icon


@pytest.mark.parametrize(
    "values",
    [
        {"nodeSelector": {}, "tolerations": [], "imagePullSecrets": [{"name": "key"}]},
        {"runtimeClass": {"name": "shared-gpu"}, "exporter": {"enabled": False}},
        {"exporter": {"serviceMonitor": {"enabled": True, "interval": "10s", "labels": {"release": "prometheus"}}}},
        {"exporter": {"nvmlLibrary": "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "port": 9500}},
        {
            "installer": {
                "restartContainerd": True,
                "containerdConfig": "/etc/k3s/config.toml",
                "runtime": "/usr/bin/crun",
            }
        },
        {
            "installer": {
                "simulateGpus": 2,
                "image": {"repository": "example.com/a/b", "tag": "1", "pullPolicy": "Never"},
            }
        },
    ],
    ids=["everywhere", "own-class", "monitor", "nvml", "restart", "simulated"],
)
def test_what_people_set_is_valid_and_understood(values: dict[str, Any]) -> None:
    found = named(rendered(values))
    options = kubernetes.node().parse(found["install"]["args"])
    kubernetes.accepted_by_vgpu("install", options.arguments)
    if "exporter" in found:
        kubernetes.accepted_by_vgpu("exporter", found["exporter"]["args"])


def test_only_a_restart_and_the_drivers_account_need_privileges() -> None:
    restart = named(rendered({"installer": {"restartContainerd": True}}))
    nvml = named(rendered({"exporter": {"nvmlLibrary": "/lib/libnvidia-ml.so.1"}}))
    privileged = [
        [name for name, c in found.items() if c["securityContext"].get("privileged")] for found in (restart, nvml)
    ]
    assert privileged == [["install"], ["exporter"]]
    assert "--restart" in restart["install"]["args"]


def test_uninstalling_leaves_nothing_that_would_send_pods_there() -> None:
    found = rendered({"installer": {"mode": "uninstall"}})
    assert sorted(one["kind"] for one in found) == ["DaemonSet", "ServiceAccount", "ServiceAccount"]
    options = kubernetes.node().parse(named(found)["uninstall"]["args"])
    assert options.verb == "uninstall"
    kubernetes.accepted_by_vgpu("uninstall", ["--prefix", options.prefix, *options.arguments])


@pytest.mark.parametrize(
    "values",
    [
        {"installer": {"mode": "remove"}},
        {"installer": {"simulateGpus": -1}},
        {"paths": {"prefix": "opt/vgpu"}},
        {"paths": {"prefix": "/opt/vgpu; rm -rf /"}},
        {"exporter": {"port": "9411"}},
        {"nodeSelector": {"vgpu.dev/node": True}},
        {"instaler": {}},
    ],
    ids=str,
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm.errors.HelmError):
        manifests.render(values)
