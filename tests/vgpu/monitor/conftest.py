"""A host with a ledger, and containers that are one process in namespaces of its own, under the wrapper."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.libcuda_wrap.wrapped import Box, Client, part, simulated_driver
from tests.vgpu.monitor.host import GIB, Host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host.make(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_driver(tmp_path_factory.mktemp("monitor-driver"))


@pytest.fixture(scope="session")
def built_box(tmp_path_factory: pytest.TempPathFactory, driver: Path) -> Box:
    """The wrapper looks for its account in the folder it was built for: one container at a time."""
    return Box.make(tmp_path_factory.mktemp("monitor-box"), "", driver)


@pytest.fixture
def simulated(host: Host, driver: Path) -> Host:
    """The host with its simulated GPUs."""
    host.simulate(driver)
    return host


Start = Callable[..., Client]


@pytest.fixture
def start(simulated: Host, built_box: Box) -> Iterator[Start]:
    """start(wrapped=True): the client in mount and pid namespaces of its own, as the container "job".

    wrapped=False: it opens the driver itself and is in no account.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes namespaces")
    built_box.folder.joinpath("sim").unlink(missing_ok=True)
    built_box.folder.joinpath("sim").symlink_to(simulated.state / "sim")
    built_box.fresh(part(0, 8 * GIB))
    clients: list[subprocess.Popen[str]] = []

    def begin(*, wrapped: bool = True) -> Client:
        environment = built_box.environment()
        if not wrapped:
            environment["LD_LIBRARY_PATH"] = str(simulated.prefix / "lib/vgpu/sim")
        process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--mount-proc", str(built_box.folder / "client")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        clients.append(process)
        client = Client(process).ready()  # it has answered: its namespaces are made
        box = simulated.box(simulated.give_out("job", init=process.pid))
        shutil.rmtree(box)
        box.symlink_to(built_box.folder)
        return client

    yield begin
    for process in clients:
        process.stdin.close() if process.stdin else None  # the client ends with its input
        process.wait(timeout=20)
        for stream in (process.stdout, process.stderr):
            stream.close() if stream else None
    built_box.folder.joinpath("sim").unlink()
