"""Fixtures of the tests that run real containers, and the rule that a skip in CI is a failure."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import bundle, dockerd, images, installed, leftovers, recorder

ROOT = Path(__file__).resolve().parents[1]
BUILT = ("build/launcher/vgpu-runtime", "build/wrapper/libcuda.so.1", "build/sim", "build/fixtures/cuda_client")

MATRIX = "VGPU_MATRIX"  # the file to which results go; where it is not set, other versions are left out


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]  # pluggy's result, which has no public type here
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"CI runs without skips: {report.longrepr}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    extra = [item for item in items if item.get_closest_marker("matrix") and MATRIX not in os.environ]
    if extra:
        config.hook.pytest_deselected(items=extra)
        items[:] = [item for item in items if item not in extra]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One JSON object a line: what a test that ran to its end was run with, and how it ended."""
    programs = dict(report.user_properties)
    if MATRIX in os.environ and report.when == "call" and "engine" in programs:
        with Path(os.environ[MATRIX]).open("a") as results:
            results.write(json.dumps({"test": report.nodeid, "outcome": report.outcome, **programs}) + "\n")


def pytest_sessionfinish() -> None:
    leftovers.remove_cgroups(bundle.CGROUP)  # here, as any test may use `bundle`


@pytest.fixture(scope="session")
def e2e_folder() -> Iterator[Path]:
    """A folder outside pytest's own, because containers' users must be able to reach what lies in it."""
    folder = Path(tempfile.mkdtemp(prefix="vgpu-e2e-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: it starts containers")


@pytest.fixture(scope="session")
def needs_build() -> None:
    missing = [name for name in BUILT if not (ROOT / name).exists()]
    if missing:
        pytest.skip(f"run `make build` first: {', '.join(missing)}")


@pytest.fixture(scope="session", params=["runc", "crun"])
def low_level(request: pytest.FixtureRequest, e2e_folder: Path, needs_root: None) -> Path:
    """A low-level runtime, for bundles."""
    try:
        return bundle.low_level(request.param, e2e_folder)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def c_tree(e2e_folder: Path, needs_build: None) -> Path:
    """A root with glibc, busybox and the C client."""
    return images.tree(e2e_folder / "trees", "c")


@pytest.fixture(scope="session")
def installation(low_level: Path, e2e_folder: Path, needs_build: None) -> installed.Vgpu:
    """vgpu before one low-level runtime, with two simulated GPUs of 80 GiB."""
    return installed.install(e2e_folder / f"before-{low_level.name}", low_level)


@pytest.fixture
def vgpu(installation: installed.Vgpu, tmp_path: Path) -> Iterator[installed.Vgpu]:
    """The installation, with nothing given out. After the test nothing may be left of its containers."""
    yield installation
    assert installation.containers() == []
    folders = (tmp_path, installation.state)
    assert leftovers.mounts(*folders) == []
    assert leftovers.processes(*folders) == []


@pytest.fixture(scope="session")
def docker_vgpu(e2e_folder: Path, needs_root: None, needs_build: None) -> installed.Vgpu:
    """The installation behind `docker`. What runc gets to see is kept, see `seen`."""
    folder = e2e_folder / "behind-docker"
    runc = recorder.script(folder / "runc", bundle.low_level("runc", folder), folder / "seen", "by-runc")
    return installed.install(folder, runc)


@pytest.fixture(scope="session")
def docker(e2e_folder: Path, docker_vgpu: installed.Vgpu) -> Iterator[dockerd.Docker]:
    """A private daemon with the runtime "vgpu", and "vgpu-recorded", which keeps what Docker wrote."""
    folder = e2e_folder / "behind-docker"
    recorded = recorder.script(folder / "vgpu-recorded", docker_vgpu.runtime, folder / "seen", "by-docker")
    with dockerd.running(e2e_folder / "docker", {"vgpu": docker_vgpu.runtime, "vgpu-recorded": recorded}) as made:
        yield made
    assert leftovers.mounts(e2e_folder) == []
    assert leftovers.processes(e2e_folder) == []
    assert leftovers.cgroups(made.cgroup) == []


@pytest.fixture(scope="session")
def seen(e2e_folder: Path) -> Path:
    """<container id>.by-docker, .by-runc: config.json as Docker wrote it (runtime "vgpu-recorded"), as runc read it."""
    return e2e_folder / "behind-docker/seen"


@pytest.fixture(scope="session")
def images_folder(e2e_folder: Path) -> Path:
    """Where root trees are made, each once."""
    return e2e_folder / "trees"
