"""k3s' and RKE2's template for containerd's config.toml: text in, text out, and what containerd makes of the result."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from oci_hook.errors import VgpuError
from runtime_config.engines import containerd, k3s
from runtime_config.engines.drop_in import Found
from runtime_config.engines.k3s import BASE, FILES, Template
from tests.harness import engines, suites

LAUNCHER = "/opt/vgpu/bin/vgpu-runtime"
V2, V3 = "/x/config.toml.tmpl", "/x/config-v3.toml.tmpl"
CRI = {V2: "io.containerd.grpc.v1.cri", V3: "io.containerd.cri.v1.runtime"}
GOLDEN = """\
# vgpu: added by `vgpu configure k3s`, which also takes it out
{{ template "base" . }}
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.vgpu]
  runtime_type = "io.containerd.runc.v2"
  pod_annotations = ["vgpu.*", "vgpu.*/*"]
  container_annotations = ["vgpu.*", "vgpu.*/*"]
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.vgpu.options]
    BinaryName = "/opt/vgpu/bin/vgpu-runtime"
    SystemdCgroup = true
# vgpu: end
"""
OTHERS = ["", BASE, f'# an admin\'s\n{BASE}\n[plugins.opt]\n  path = "{{{{ .NodeConfig.Containerd.Opt }}}}"\n']
SYSTEMD = Template("k3s", {"SystemdCgroup": True})
each = pytest.mark.parametrize("path", [V2, V3])


def made(path: str) -> str:
    """As they make config.toml of their base, as far as the handlers go."""
    runc = f"[plugins.'{CRI[path]}'.containerd.runtimes.runc]"
    return (
        f"version = {3 if path == V3 else 2}\n{runc}\n  runtime_type = 'io.containerd.runc.v2'\n"
        f"{runc.removesuffix(']')}.options]\n  SystemdCgroup = true\n"
    )


def test_a_new_template_is_theirs_and_our_handler() -> None:
    assert SYSTEMD.add("", LAUNCHER, path=V3) == GOLDEN
    assert SYSTEMD.add("", LAUNCHER, path=V2) == GOLDEN.replace("cri.v1.runtime", "grpc.v1.cri")


@each
@pytest.mark.parametrize("original", OTHERS)
def test_what_is_there_stays_and_undo_gives_the_same_bytes(path: str, original: str) -> None:
    text = SYSTEMD.add(original, LAUNCHER, path=path)
    assert text.startswith(original) and text.count(BASE) == 1
    assert SYSTEMD.find(text, path) == Found(LAUNCHER, False)
    assert SYSTEMD.add(text, LAUNCHER, path=path) == text
    assert SYSTEMD.remove(text, original or None, path) == (original or None)
    assert SYSTEMD.remove(original, None, path) == original


def test_an_admins_own_template_is_not_given_theirs() -> None:
    assert BASE not in SYSTEMD.add("version = 3\n", LAUNCHER, path=V3)


@each
@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_a_handler_of_that_name_that_is_not_ours_is_left_alone(path: str, quote: str) -> None:
    theirs = f"{BASE}\n[plugins.'{CRI[path]}'.containerd.runtimes.{quote}vgpu{quote}]\n"
    with pytest.raises(VgpuError, match="VGPU-CFG-003|not ours"):
        SYSTEMD.add(theirs, LAUNCHER, path=path)
    assert SYSTEMD.find(theirs.replace("vgpu", "vgpux"), path) == Found(None, False)


def test_the_default_has_a_place_of_its_own() -> None:
    with pytest.raises(VgpuError) as refused:
        Template("rke2").add("", LAUNCHER, set_default=True, path=V3)
    assert refused.value.remedy == "write `default-runtime: vgpu` into /etc/rancher/rke2/config.yaml"


def test_the_template_is_the_one_of_the_version_that_is_in_use() -> None:
    folder = "/var/lib/rancher/k3s/agent/etc/containerd"
    assert k3s.template_of("version = 2\n", FILES["k3s"]) == f"{folder}/config.toml.tmpl"
    assert k3s.template_of("version = 3\n", FILES["k3s"]) == f"{folder}/config-v3.toml.tmpl"


@pytest.mark.parametrize(
    ("path", "suite"),
    [
        (V2, "debian12"),
        pytest.param(V2, "trixie", marks=pytest.mark.matrix),
        pytest.param(V3, "forky", marks=pytest.mark.matrix),
    ],
)
def test_containerd_reads_what_the_template_makes(tmp_path: Path, path: str, suite: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(SYSTEMD.add("", LAUNCHER, path=path).replace(BASE, made(path)))
    engine = engines.docker() if suite == "debian12" else suites.engine(suite)
    done = subprocess.run(
        [engine.program("containerd"), "--config", config, "config", "dump"],
        env=engine.environment(), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert containerd.find(done.stdout).launcher == LAUNCHER
    handlers = containerd.handlers(done.stdout)
    assert handlers["vgpu"]["options"]["SystemdCgroup"] is handlers["runc"]["options"]["SystemdCgroup"] is True


def test_microk8s_template_is_edited_as_it_is() -> None:
    """Its variables stand in texts, so it is TOML; the file that MicroK8s makes of it has none."""
    text = (
        'version = 2\n[grpc]\n  uid = 0\n[plugins]\n  [plugins."io.containerd.grpc.v1.cri"]\n'
        '    [plugins."io.containerd.grpc.v1.cri".containerd]\n      snapshotter = "${SNAPSHOTTER}"\n'
        '      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]\n'
        '        runtime_type = "${RUNTIME_TYPE}"\n'
        '    [plugins."io.containerd.grpc.v1.cri".cni]\n      bin_dir = "${SNAP_DATA}/opt/cni/bin"\n'
    )
    new = containerd.add(text, LAUNCHER)
    assert new.startswith(text) and "$" not in new.removeprefix(text)
    assert containerd.remove(new, text) == text
