"""The installer's program on a node whose containerd is k3s' own: this machine's root, with k3s' files elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime_config.engines.k3s import BASE
from tests.harness import bundle, installed, kubernetes
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.usefixtures("needs_root", "needs_build")


@pytest.fixture
def vgpu(tmp_path: Path) -> Iterator[Vgpu]:
    made = installed.install(tmp_path, bundle.low_level("runc", tmp_path))
    yield made
    installed.uninstall(made)


@pytest.mark.parametrize("engine", ["k3s", "rke2"])
def test_the_template_is_changed_and_given_back(
    vgpu: Vgpu, tmp_path: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / f"rancher/{engine}/agent/etc/containerd/config.toml"
    made.parent.mkdir(parents=True)
    made.write_text("version = 3\n")
    node: Any = kubernetes.node()
    options = node.parse(["install", "--host", "/", "--prefix", str(vgpu.prefix), "--engine-config", str(made)])
    here = node.Node(options.host, options.prefix, options.environments, options.python)
    node._configure(here, options)
    assert f"restart {engine} on this node" in capsys.readouterr().out
    template = made.with_name("config-v3.toml.tmpl").read_text()
    assert BASE in template and f'BinaryName = "{vgpu.runtime}"' in template
    node._configure(here, options)
    assert "restart" not in capsys.readouterr().out  # nothing to do
    node._configure(here, options, "--undo")
    assert list(made.parent.iterdir()) == [made]
