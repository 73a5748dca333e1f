"""containerd's CRI plugin starts with what vgpu has configured: Debian 12's always, others by `make matrix`.

Kubernetes asks the plugin for the handler; it refuses to start with one that it does not like.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.harness import engines, suites
from tests.harness.installed import ROOT

pytestmark = pytest.mark.e2e
OTHERS = [("bookworm", ()), ("trixie", ()), ("forky", ()), ("forky", ("--drop-in",))]


@pytest.mark.parametrize("set_default", [False, True])
@pytest.mark.parametrize(
    ("suite", "more"), [("debian12", ()), *(pytest.param(*other, marks=pytest.mark.matrix) for other in OTHERS)]
)
def test_the_cri_plugin_starts_with_the_handler(
    needs_root: None, needs_build: None, tmp_path: Path, suite: str, more: tuple[str, ...], set_default: bool
) -> None:
    engine = engines.docker() if suite == "debian12" else suites.engine(suite)
    config = tmp_path / "config.toml"
    prefix = tmp_path / "prefix"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin/vgpu-runtime").symlink_to(ROOT / "build/launcher/vgpu-runtime")
    with tempfile.TemporaryDirectory(prefix="vgpu-cri-") as short:
        config.write_text(
            f'version = 2\nroot = "{tmp_path}/root"\nstate = "{short}/state"\nimports = ["{tmp_path}/conf.d/*.toml"]\n'
            f'[grpc]\n  address = "{short}/c.sock"\n'
            f'[plugins."io.containerd.internal.v1.opt"]\n  path = "{tmp_path}/opt"\n'
        )
        (tmp_path / "conf.d").mkdir()
        command = [sys.executable, "-m", "vgpu", "configure", "containerd", "--config", str(config), *more, "--verify"]
        command += ["--prefix", str(prefix), "--program", str(engine.program("containerd"))]
        command += ["--set-default"] if set_default else []
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False, env=engine.environment()
        )
        assert done.returncode == 0, done
        plugins = started(
            engine.program("containerd"), config, Path(short), engine.program("ctr"), engine.environment()
        )
    cri = [
        line.split() for line in plugins.splitlines() if "cri" in line.split()[1:2] or "runtime" in line.split()[1:2]
    ]
    assert cri and all(words[-1] == "ok" for words in cri), plugins


def started(program: Path, config: Path, short: Path, ctr: Path, environment: dict[str, str]) -> str:
    """`ctr plugins ls` of a containerd with that configuration."""
    with (
        open(config.with_name("log"), "ab") as log,
        subprocess.Popen(
            [program, "--config", config], env={**os.environ, **environment}, stdout=log, stderr=log
        ) as daemon,
    ):
        try:
            end = time.monotonic() + 60
            while True:
                listed = subprocess.run(
                    [ctr, "--address", short / "c.sock", "plugins", "ls"],
                    env=environment, capture_output=True, text=True, timeout=60, check=False,
                )  # fmt: skip
                if listed.returncode == 0:
                    return listed.stdout
                if daemon.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(config.with_name("log").read_text()[-3000:])
                time.sleep(0.1)
        finally:
            daemon.terminate()
