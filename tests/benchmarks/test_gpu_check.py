"""gpu_check from end to end on the simulated driver, and that nothing simulated becomes evidence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import report

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
MACHINE = {"gpu": "NVIDIA Test | 1", "simulated": False, "driver": "1.2", "cuda": "13.0", "date": "2026-01-02",
           "quota_bytes": 64 * MIB}  # fmt: skip


def gpu_check(work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--work", str(work), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)


def test_the_simulated_run_holds_the_quota_in_every_family(tmp_path: Path) -> None:
    done = gpu_check(
        tmp_path, "--simulate", "--quota-mib", "192", "--evidence", str(tmp_path / "evidence"),
        "--part", "families", "--part", "torch", "--part", "smi", "--part", "share",
    )  # fmt: skip
    assert done.stderr == ""
    parts = json.loads((tmp_path / "simulated.json").read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "families": "held", "torch": "not run", "smi": "not run", "share": parts["share"]["status"],
    }  # fmt: skip
    assert all(found["taken"] == found["nvml_bytes"] == 192 * MIB for found in parts["families"]["families"].values())
    assert "the simulated driver does not" in parts["torch"]["why"]
    had = [one["mean_percent"] for one in parts["share"]["shares"].values()]  # a busy machine may hold a program up
    assert all(5 < got < asked + 3 for got, asked in zip(had, (30, 50), strict=True)), had
    assert not (tmp_path / "evidence").exists() and not (tmp_path / "box").exists()
    again = gpu_check(tmp_path, "--simulate", "--quota-mib", "192", "--part", "smi")
    assert [line.split()[0] for line in again.stdout.splitlines()] == ["smi"]


def test_a_quota_that_does_not_hold_is_missed(tmp_path: Path) -> None:
    from benchmarks.gpu.machine import Box
    from benchmarks.gpu_check import Check

    box = Box(tmp_path, tmp_path, tmp_path, "GPU-0", 64 * MIB, {})
    check = Check(box, None, [], True, tmp_path)  # type: ignore[arg-type]  # it is not asked
    good = {"total": 64 * MIB, "free": 64 * MIB, "taken": 64 * MIB, "refused": [2], "free_after": 64 * MIB,
            "nvml_bytes": 64 * MIB}  # fmt: skip
    assert all(check.judge(good)["checks"].values())
    for bad, missed in [
        ({"total": 65 * MIB}, "total is the quota"),
        ({"taken": 62 * MIB}, "all that was free was given, and no more"),
        ({"taken": 66 * MIB}, "all that was free was given, and no more"),
        ({"refused": [2, 999]}, "refused as out of memory"),
        ({"free_after": 32 * MIB}, "given back"),
        ({"nvml_bytes": 64 * MIB + 1}, "the GPU holds no more than the quota"),
        ({"nvml_bytes": 10 * MIB}, "the GPU holds it"),
        ({"matmul_error": 3.0}, "matmul as on the CPU"),
    ]:
        checks = check.judge({**good, **bad})["checks"]
        assert checks[missed] is False, missed


def test_no_driver_is_said_in_one_line(tmp_path: Path) -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has a driver")
    done = gpu_check(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("gpu_check: no NVIDIA driver here") and len(done.stderr.splitlines()) == 1


def test_evidence_is_a_page_and_its_figures_and_never_simulated(tmp_path: Path) -> None:
    found: dict[str, Any] = {"taken": 60 * MIB, "quota_bytes": 64 * MIB, "nvml_bytes": 61 * MIB}
    parts = {
        "torch": {"status": "MISSED", "missed": ["total is the quota"], **found},
        "jax": {"status": "not run", "why": "jax is in none of python3"},
    }
    page = report.write(tmp_path, MACHINE, parts)
    assert page.name == "gpu-nvidia-test-1-2026-01-02.md"
    text = page.read_text()
    assert "| torch | MISSED | taken 60 of 64 MiB, the GPU holds 61 MiB<br>missed: total is the quota |" in text
    assert "| jax | not run | jax is in none of python3 |" in text
    assert json.loads(page.with_suffix(".json").read_text())["parts"] == parts
    with pytest.raises(AssertionError):
        report.write(tmp_path / "other", {**MACHINE, "simulated": True}, parts)
