"""Faults that the operator's commands find: slices that change, configuration files, the monitor, simulations."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.doctor.seeded.ground import SLICE, Ground, Run, nothing, row, seeded
from tests.harness.bundle import Container
from tests.harness.dockerd import Docker

pytestmark = pytest.mark.e2e
seeds = pytest.mark.seeds


@pytest.fixture
def box(ground: Ground) -> Iterator[Container]:
    """A container with 8 GiB of GPU 0, of which it holds half."""
    with ground.running("cuda_client", "hold", "300", until="CUDA_SUCCESS") as made:
        yield made


CHANGES = [
    row(seeds("VGPU-SET-001"), ["nobody", "--memory", "9GiB"], "'nobody' … vgpu ps", ["ID", "--memory", "9GiB"]),
    row(seeds("VGPU-SET-002"), ["ID", "--memory", "1GiB"], "4 GiB of GPU 0 are in use … --force",
        ["ID", "--memory", "4GiB"]),
    row(seeds("VGPU-SET-004"), ["ID", "--cores", "5", "--gpu", "1"], "--gpu=1 … GPU 0",
        ["ID", "--cores", "5", "--gpu", "0"]),
]  # fmt: skip


@pytest.mark.parametrize(("code", "arguments", "evidence", "better"), CHANGES)
def test_a_slice_that_changes(
    ground: Ground, box: Container, code: str, arguments: list[str], evidence: str, better: list[str]
) -> None:
    bad, good = ([box.id[:16] if word == "ID" else word for word in words] for words in (arguments, better))
    seeded(code, partial(ground.cli, "set", *bad), evidence, nothing, again=partial(ground.cli, "set", *good))


@pytest.mark.seeds("VGPU-SET-003")
def test_a_slice_above_the_cap(ground: Ground, box: Container) -> None:
    ground.configured("max: {memory: 10GiB}")
    ask = partial(ground.cli, "set", box.id, "--memory", "11GiB")
    config = ground.vgpu.prefix / "etc/config.yaml"

    def raise_the_cap() -> None:
        config.write_text(config.read_text().replace("10GiB", "12GiB"))
        ground.vgpu("config", "apply")

    seeded("VGPU-SET-003", ask, "--memory … 10 GiB … max.memory", raise_the_cap)


@pytest.mark.seeds("VGPU-HOST-009")
def test_an_account_of_another_version(ground: Ground, box: Container) -> None:
    """As after an upgrade; the container that is started again has one of this version."""
    usage = ground.vgpu.state / f"containers/{box.id}/box/usage"
    with usage.open("r+b") as file:
        file.seek(4)
        file.write(b"\x63\0\0\0")
    shrink = partial(ground.cli, "set", box.id, "--memory", "7GiB")
    with ground.running("sleep", "300") as again:
        fresh = partial(ground.cli, "set", again.id, "--memory", "7GiB")
        seeded("VGPU-HOST-009", shrink, f"{usage} … version 99 … start the container again", nothing, again=fresh)


@pytest.mark.seeds("VGPU-HOST-002")
def test_an_inventory_that_is_gone(ground: Ground, box: Container) -> None:
    (ground.vgpu.state / "inventory.json").unlink()
    grow = partial(ground.cli, "set", box.id, "--memory", "9GiB")
    refresh = partial(ground.vgpu, "inventory", "--refresh")
    seeded("VGPU-HOST-002", grow, "inventory.json … vgpu inventory --refresh", refresh)


@pytest.mark.seeds("VGPU-HOST-007")
def test_a_host_without_a_driver(ground: Ground) -> None:
    """Simulated GPUs are the way out that the remedy names, beside NVIDIA's driver."""
    config = ground.vgpu.prefix / "etc/config.yaml"
    simulate = config.read_text()
    root = ground.folder / "no driver"
    root.mkdir()
    real = re.sub(r"^( +gpus:) 2$", r"\1 0", simulate, flags=re.MULTILINE)
    config.write_text(f"{real}\ndriver_root: {root}\n")
    ground.vgpu("config", "apply")

    def mend() -> None:
        config.write_text(simulate)
        ground.vgpu("config", "apply")

    seeded("VGPU-HOST-007", partial(ground.cli, "inventory", "--refresh"), "simulate.gpus … vgpu config apply", mend)


@pytest.mark.seeds("VGPU-HOST-011")
def test_an_audit_log_that_is_not_there(ground: Ground) -> None:
    assert ground.start().code == ""
    log = ground.folder / "moved.jsonl"
    replay = partial(ground.cli, "audit", "replay", "--log", str(log))
    seeded("VGPU-HOST-011", replay, f"{log} … --log", partial(shutil.copy, ground.vgpu.log / "audit.jsonl", log))


@pytest.mark.seeds("VGPU-PLC-005")
def test_a_container_that_was_never_decided_about(ground: Ground) -> None:
    identity = "job" + "0" * 61
    start = partial(ground.start, SLICE, container_id=identity)
    seeded("VGPU-PLC-005", partial(ground.cli, "why", "job"), "'job' … the id", start)


SETTINGS = [
    row(seeds("VGPU-CFG-001"), "\tmax: {}\n", "config.yaml … line"),
    row(seeds("VGPU-CFG-003"), "plcaement: spread\n", "plcaement … placement"),
]


@pytest.mark.parametrize(("code", "spoilt", "evidence"), SETTINGS)
def test_a_policy_that_cannot_be_used(ground: Ground, code: str, spoilt: str, evidence: str) -> None:
    config = ground.vgpu.prefix / "etc/config.yaml"
    good = config.read_text()
    config.write_text(good + spoilt)
    check = partial(ground.cli, "config", "check")
    seeded(code, check, evidence, partial(config.write_text, good))


@pytest.mark.seeds("VGPU-CFG-002")
def test_a_file_that_cannot_be_written(ground: Ground) -> None:
    """On a file system that is mounted read-only, as /etc of some systems."""
    folder = ground.folder / "etc"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(folder)]
    subprocess.run(mount, check=True)
    try:
        configure = partial(ground.cli, "configure", "docker", "--config", str(folder / "daemon.json"))
        writable = partial(subprocess.run, ["mount", "-o", "remount,rw", str(folder)], check=True)
        seeded("VGPU-CFG-002", configure, f"{folder}/daemon.json", writable)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.seeds("VGPU-CFG-004")
def test_a_dockerd_that_has_not_read_its_file_again(ground: Ground, docker: Docker) -> None:
    before = docker.config.read_bytes()
    edit = ("configure", "docker", "--config", str(docker.config), "--host", docker.host)
    other = ground.vgpu.prefix
    verify = partial(ground.cli, *edit, "--prefix", str(other), "--verify")
    reload = partial(os.kill, docker.pid, 1)  # what `systemctl reload docker` sends
    try:
        seeded("VGPU-CFG-004", verify, "has the runtime vgpu at … systemctl reload docker", reload)
    finally:
        docker.config.write_bytes(before)
        reload()
        while str(other) in docker("info").stdout:
            assert Path(f"/proc/{docker.pid}").exists()


@pytest.mark.seeds("VGPU-MON-001")
def test_explain_without_a_history(ground: Ground, box: Container) -> None:
    shutil.rmtree(ground.vgpu.state / "monitor", ignore_errors=True)
    explain = partial(ground.cli, "explain", box.id)
    seeded("VGPU-MON-001", explain, "history … vgpu monitor", partial(monitored, ground))


def monitored(ground: Ground) -> None:
    ground.vgpu("monitor", "--interval", "0.1", "--history", "1MiB", "--rounds", "3")


@pytest.mark.seeds("VGPU-MON-002")
def test_two_monitors(ground: Ground) -> None:
    first = subprocess.Popen(ground.vgpu.command("monitor", "--interval", "0.1", "--history", "1MiB"))
    history = ground.vgpu.state / "monitor/findings.json"
    history.unlink(missing_ok=True)
    while not history.exists():
        assert first.poll() is None

    def stop() -> None:
        first.terminate()
        first.wait(30)

    second = partial(ground.cli, "monitor", "--interval", "0.1", "--history", "1MiB", "--rounds", "1")
    seeded("VGPU-MON-002", second, "another monitor … stop vgpu-monitor", stop)


@pytest.mark.seeds("VGPU-MON-003")
def test_explain_one_that_was_never_seen(ground: Ground, box: Container) -> None:
    monitored(ground)
    explain = partial(ground.cli, "explain")
    name = box.id[:12]
    seeded("VGPU-MON-003", partial(explain, "nobody"), f"'nobody' … {name}", nothing, again=partial(explain, name))


@pytest.mark.seeds("VGPU-MON-004")
def test_metrics_on_an_address_that_is_taken(ground: Ground) -> None:
    file = ground.folder / "no/x.prom"
    write = partial(ground.cli, "exporter", "--textfile", str(file))
    seeded("VGPU-MON-004", write, f"{file}", file.parent.mkdir)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = ground.cli("exporter", "--listen", f"127.0.0.1:{port}")
    assert (refused.code, "address already in use" in refused.text) == ("VGPU-MON-004", True)


CLUSTER = "nodes:\n  - {count: 2, gpus: 2, memory: 16GiB}\n"


def simulated(ground: Ground, *arguments: str) -> Run:
    files = ("--cluster", str(ground.folder / "c.yaml"), "--trace", str(ground.folder / "t.csv"))
    return partial(ground.cli, "simulate", *files, *arguments)


@pytest.fixture
def traced(ground: Ground) -> Ground:
    """A cluster and a trace that can be used."""
    (ground.folder / "c.yaml").write_text(CLUSTER)
    assert simulated(ground, "--generate", "shared", "--jobs", "20")().code == ""
    return ground


@pytest.mark.seeds("VGPU-SIM-001")
def test_a_cluster_whose_memory_has_no_unit(traced: Ground) -> None:
    cluster = traced.folder / "c.yaml"
    cluster.write_text(CLUSTER.replace("16GiB", "16"))
    seeded(
        "VGPU-SIM-001", simulated(traced), "c.yaml: line 2, column … memory='16'", partial(cluster.write_text, CLUSTER)
    )


@pytest.mark.seeds("VGPU-SIM-002")
def test_a_trace_with_a_word_for_a_number(traced: Ground) -> None:
    trace = traced.folder / "t.csv"
    good = trace.read_text()
    header, first, *rest = good.splitlines()
    words = first.split(",")
    words[header.split(",").index("duration_s")] = "long"
    trace.write_text("\n".join([header, ",".join(words), *rest]))
    seeded("VGPU-SIM-002", simulated(traced), "line 2, column … 'long'", partial(trace.write_text, good))


@pytest.mark.seeds("VGPU-SIM-003")
def test_a_policy_that_there_is_not(traced: Ground) -> None:
    run = simulated(traced, "--policy", "bestfit")
    seeded("VGPU-SIM-003", run, "bestfit … spread", nothing, again=simulated(traced, "--policy", "spread"))
