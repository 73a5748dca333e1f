"""gpu_check on a machine that it has never met: packages that are missing, broken or hang, and a GPU that is not fit.

The clients' way is run with stand-ins for PyTorch, CuPy and JAX, on the simulated driver.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu import machine
from benchmarks.gpu import simulated as gpu_simulated
from benchmarks.gpu.check import PROGRAMS, Check, NotRun

MIB = 1 << 20
QUOTA_MIB = 192
STAND_INS = Path(__file__).parent / "stand_ins"


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, carried: Path) -> Iterator[Check]:
    """With the libraries of the bundle: they are built already."""
    work = tmp_path_factory.mktemp("gpu-check")
    with pytest.MonkeyPatch.context() as patch:
        for module in (machine, gpu_simulated):
            patch.setattr(module, "CARRIED", carried / "carried")
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patch.setenv("VGPU_SIM_DIR", str(work / "gpus"))  # it sets that itself, for its own NVML
        options = ["--simulate", "--quota-mib", str(QUOTA_MIB), "--work", str(work)]
        check, _ = gpu_check.prepare(gpu_check.arguments_of(options))
        yield check
        check.box.remove()


@pytest.fixture
def check(simulated: Check, monkeypatch: pytest.MonkeyPatch) -> Check:
    """As on a real GPU, but for the GPU: the stand-ins are what Python finds."""
    monkeypatch.setenv("PYTHONPATH", f"{STAND_INS}:{PROGRAMS.parent}")
    return dataclasses.replace(simulated, simulated=False, pythons=[sys.executable], found={})


@pytest.mark.parametrize("name", ["torch", "cupy", "jax"])
def test_a_packages_client_takes_all_of_the_slice_and_gives_it_back(check: Check, name: str) -> None:
    found = gpu_check.package(name)(check)
    assert [what for what, good in found["checks"].items() if not good] == []
    assert found["taken"] == found["nvml_bytes"] == QUOTA_MIB * MIB and found[name] == "0.0"


def test_the_speed_of_both_ways_is_compared(check: Check) -> None:
    found = gpu_check.speed(check)["us"]
    assert set(found) == {"launch_bound_us", "compute_bound_us", "allocation_us"}
    assert all(row["direct"] > 0 and row["wrapped"] > 0 for row in found.values())


@pytest.mark.parametrize(
    ("name", "kind", "raised", "said"),
    [
        ("torch", "cpu", NotRun, "torch 0.0 is not built for CUDA"),
        ("jax", "cpu", NotRun, "jax 0.0 has no plugin for CUDA"),
        ("torch", "broken", RuntimeError, "programs.py torch ended with 1.*CUDA unknown error"),
        ("torch", "hang", RuntimeError, "programs.py torch did not end within 3 s"),
    ],
)
def test_a_package_that_is_not_for_this_gpu_is_told_from_one_that_fails(
    check: Check, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, raised: type[Exception], said: str
) -> None:
    monkeypatch.setenv("STAND_IN", kind)
    with pytest.raises(raised, match=f"(?s){said}"):
        check.hold([sys.executable, str(PROGRAMS), name], timeout_s=3 if kind == "hang" else 60)


def test_a_package_that_is_not_there_is_not_run_and_says_who_was_asked(check: Check, tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\necho 'ImportError: libnothing.so' >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    check.pythons = [str(tmp_path / "python"), "/nonexistent/python"]
    with pytest.raises(NotRun, match=r"no torch: .*/python: ImportError: libnothing.so; /nonexistent/python: "):
        check.python_with("torch")


def test_a_client_that_finds_another_libcuda_is_no_proof(check: Check) -> None:
    with pytest.raises(RuntimeError, match="never came to the wrapper"):
        check.hold([sys.executable, "-c", "print('{}', flush=True); input()"])


def test_what_stops_one_part_leaves_the_others(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Check) -> dict[str, object]:
        raise OSError("a driver's surprise")

    monkeypatch.setitem(gpu_check.PARTS, "smi", fails)
    found = gpu_check.run_part("smi", check)
    assert (found["status"], found["why"]) == ("failed", "OSError: a driver's surprise")
    assert found["where"][-1].startswith("test_gpu_check_parts.py:")
    check.until = 0.0
    late = gpu_check.run_part("account", check)
    assert late["status"] == "not run" and "no time left" in late["why"]


def test_the_account_is_held_against_the_driver(simulated: Check) -> None:
    found = gpu_check.account(simulated)
    assert all(found["checks"].values()) and found["account_bytes"] == found["process_bytes"] == QUOTA_MIB * MIB


def test_an_imported_pool_is_charged_to_its_importer(simulated: Check) -> None:
    found = gpu_check.sharing(simulated)
    assert all(found["checks"].values()) and found["taken"] == 64 * MIB == found["nvml_bytes"], found


def test_a_state_that_was_cut_off_is_none(tmp_path: Path) -> None:
    state, machine = tmp_path / "state.json", {"gpu": "one"}
    whole = json.dumps({"schema": 1, "machine": machine, "parts": {"smi": {"status": "held"}}})
    for text, parts in ((whole, {"smi": {"status": "held"}}), (whole[:40], {}), ("[]", {}), ("", {})):
        state.write_text(text)
        assert gpu_check.known(state, machine) == parts
    assert gpu_check.known(state, {"gpu": "another"}) == {} == gpu_check.known(tmp_path / "none", machine)


def test_a_gpu_that_others_use_or_that_is_too_full_is_refused_with_what_to_do(simulated: Check) -> None:
    box = simulated.box
    command = [sys.executable, str(PROGRAMS), "linear"]
    assert simulated.nvml.unfit(box.quota_bytes) is None
    most = simulated.nvml.unfit(1 << 50)
    assert most and most.endswith(f"--quota-mib {(80 << 10) - 512} at most"), most
    box.fresh()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=box.environment(wrapped=True)
    ) as other:
        assert other.stdout and other.stdout.readline()
        busy = simulated.nvml.unfit(box.quota_bytes)
        other.communicate(b"\n")
    assert busy and f"others compute on this GPU (pid {other.pid})" in busy


def test_a_slice_whose_gpu_the_driver_does_not_show_is_said(simulated: Check) -> None:
    box = dataclasses.replace(simulated.box, uuid="GPU-00000000-0000-0000-0000-000000000000")
    with pytest.raises(SystemExit, match=r"cuInit answers 100 behind the wrapper, .*shows no GPU GPU-0000"):
        box.must_answer(sys.executable)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--quota-mib", "100"], "--quota-mib 100: 128 or more"),
        (["--python", "/nonexistent/python"], "--python /nonexistent/python: no such program"),
        (["--part", "everything"], "invalid choice: 'everything'"),
    ],
)
def test_a_wrong_option_is_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.arguments_of(arguments)
    assert said in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_said_in_one_line(simulated: Check, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--simulate", "--gpu", "7", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("gpu_check: GPU 7: nvmlDeviceGetHandleByIndex_v2: NVML error 2"), done.stderr
    assert done.stderr.count("\n") == 1
