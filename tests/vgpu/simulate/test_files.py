"""What is read and written: clusters, traces, generated traces, the command's output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oci_hook.errors import HostError
from oci_hook.records import Ask
from vgpu.simulate import cluster_file, generate, trace_file
from vgpu.simulate.model import Cluster, NodeKind

OWN = ",".join(trace_file.OWN)
OPENB = ",".join(trace_file.OPENB)
CLUSTER = "nodes:\n  - {count: 2, gpus: 4, gpu: A100, memory: 80GiB}\novercommit: {memory: 1.5}\n"


def test_a_cluster() -> None:
    expected = Cluster((NodeKind(2, "A100", 4, 80 << 30),), 1.5, 1.0)
    assert cluster_file.parse(CLUSTER, "n.yaml") == expected


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("nodes: [{gpus: 4, memory: 80}]", "line 1, column 27", "memory='80'"),
        ("nodes:\n  - {gpus: 99, memory: 8GiB}", "line 2, column 12", "gpus='99'"),
        ("nodes:\n  - {gpu: 4}", "line 2, column 5", "gpus is missing"),
        ("nodes: [{gpus: 4, memory: 8GiB, cpu: 3}]", "line 1, column 33", "'cpu'"),
        ("nodes: []", "line 1, column 8", "no nodes"),
        ("nodes: [", "line 1, column 9", "n.yaml"),
        ("", "n.yaml", "not a group"),
        ("nodes: [{gpus: 1, memory: 8GiB}]\novercommit: {memory: 0.5}", "line 2, column 22", "'0.5'"),
    ],
)
def test_a_bad_cluster_is_told_with_its_place(text: str, where: str, what: str) -> None:
    with pytest.raises(HostError) as caught:
        cluster_file.parse(text, "n.yaml")
    assert caught.value.code == "VGPU-SIM-001"
    assert where in str(caught.value) and what in str(caught.value) and caught.value.remedy


def test_our_own_columns() -> None:
    trace = trace_file.parse([OWN, "b,ann,30,5,2,1024,50,high,3", "a,bob,10,7.4,1,512,,,"], "t.csv")
    assert [(job.name, job.arrival_s, job.duration_s) for job in trace.jobs] == [("a", 0, 7), ("b", 20, 5)]
    late = trace.jobs[1]
    assert (late.shape.ask, late.shape.gpus, late.instances) == (Ask(1 << 30, None, 50), 2, 3)
    assert (late.priority, trace.jobs[0].priority) == ("high", "normal")


def test_the_columns_of_2023() -> None:
    rows = [
        OPENB,
        "p0,4000,8192,1,460,,LS,Running,100,260,110",
        "p1,4000,8192,8,1000,V100M16|V100M32,BE,Succeeded,50,80,",
        "p2,4000,8192,0,0,,Burstable,Succeeded,50,80,60",
    ]
    trace = trace_file.parse(rows, "t.csv")
    first, second = trace.jobs
    assert (trace.kind, trace.left_out) == ("openb", 1)
    assert (first.shape.gpus, first.shape.models, first.priority) == (8, ("v100m16", "v100m32"), "low")
    assert first.duration_s == 30
    assert (second.shape.ask, second.arrival_s, second.duration_s) == (Ask(None, 46, 46), 50, 150)


def test_the_columns_of_2020_without_a_header() -> None:
    rows = ["j0,worker,2.0,Terminated,100.0,160.5,600,29.3,50.0,T4", "j1,ps,1.0,Failed,130.0,,600,29.3,0.0,MISC"]
    trace = trace_file.parse(rows, "t.csv")
    (only,) = trace.jobs
    assert (trace.kind, trace.left_out) == ("pai", 1)
    assert (only.shape.ask, only.shape.models, only.instances) == (Ask(None, 50, 50), ("t4",), 2)
    assert only.duration_s == 60


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([OWN, "a,b,0,5,1,1024,50,urgent,1"], "line 2, column priority: there is no 'urgent'"),
        ([OWN, "a,b,0,5,1,1024,50,low,1", "a,b,0,5,1,-3,50,low,1"], "line 3, column memory_mib: '-3'"),
        ([OWN, "a,b,nan,5,1,1024,50,low,1"], "line 2, column arrival_s: 'nan'"),
        ([OWN, "a,b,0,5,1.5,1024,50,low,1"], "line 2, column gpus: '1.5' is not whole"),
        ([OWN, "a,b,0,5"], "line 2: 4 columns, 9 expected"),
        ([OWN], "no job"),
        (["name,user"], "line 1: not the columns"),
        ([], "line 1: not the columns"),
        ([OPENB, "p,1,1,1,460,,LS,Running,x,2,3"], "line 2, column creation_time: 'x'"),
    ],
)
def test_a_bad_row_is_told_with_its_place(rows: list[str], what: str) -> None:
    with pytest.raises(HostError) as caught:
        trace_file.parse(rows, "t.csv")
    assert caught.value.code == "VGPU-SIM-002"
    assert what in str(caught.value) and caught.value.remedy


def test_a_generated_trace_depends_on_its_seed_alone() -> None:
    cluster = cluster_file.parse(CLUSTER, "n.yaml")
    first, again, other = (list(generate.rows(cluster, "mixed", 50, 0.9, seed)) for seed in (7, 7, 8))
    assert first == again != other
    assert len(first) == 51


def test_a_generated_trace_has_the_load_that_was_asked_for() -> None:
    cluster = cluster_file.parse(CLUSTER, "n.yaml")
    rows = [",".join(map(str, row)) for row in generate.rows(cluster, "shared", 20_000, 0.5, 7)]
    jobs = trace_file.parse(rows, "t.csv").jobs
    work = sum(
        job.duration_s * max((job.shape.ask.memory_bytes or 0) / (80 << 30), job.shape.ask.cores_percent / 100)
        for job in jobs
    )
    assert work / (8 * jobs[-1].arrival_s) == pytest.approx(0.5, rel=0.1)


def vgpu(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[3])
    command = [sys.executable, "-m", "vgpu", "simulate", "--cluster", "n.yaml", "--trace", "t.csv", *arguments]
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_command_from_trace_to_report(tmp_path: Path) -> None:
    (tmp_path / "n.yaml").write_text(CLUSTER)
    assert vgpu(tmp_path, "--generate", "mixed", "--jobs", "200").returncode == 0
    first = vgpu(tmp_path, "--report", "a.html", "--json")
    again = vgpu(tmp_path, "--report", "b.html", "--json")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == again.stdout
    page = (tmp_path / "a.html").read_text()
    assert page == (tmp_path / "b.html").read_text()
    found = json.loads(first.stdout)
    assert [row["policy"] for row in found["policies"]] == ["binpack", "spread"]
    assert (found["gpus"], found["jobs"], found["simulated"]) == (8, 200, True)
    assert "<em>simulated</em>" in page and page.count("<svg") == 7
    for outside in ("src=", "href=", "url(", "<script"):
        assert outside not in page


@pytest.mark.parametrize(
    "arguments",
    [("--policy", "random"), ("--policy", "spread,spread"), ("--generate", "odd"), ("--report", "/proc/none/a.html")],
)
def test_what_cannot_be_simulated_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "n.yaml").write_text(CLUSTER)
    (tmp_path / "t.csv").write_text(f"{OWN}\na,b,0,5,1,1024,50,low,1\n")
    done = vgpu(tmp_path, *arguments)
    assert done.returncode == 5
    assert done.stderr.startswith("vgpu: VGPU-SIM-003: ") and "Traceback" not in done.stderr
