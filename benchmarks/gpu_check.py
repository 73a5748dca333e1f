"""Does the slice hold on a real GPU, and what does it cost? `make gpu-check`, on a machine with a GPU and no Docker.

The wrapper stands before the driver as in a container, but by LD_LIBRARY_PATH. Clients of the machine's own software
take all that they can get; the driver's own NVML is the witness. Each part's result is kept in build/gpu-check/, so
that a run that was cut off goes on; a part whose software is missing is "not run", with the reason. Results of a real
GPU go to docs/evidence/ as well. --simulate: the parts that can, on the simulated driver; never evidence.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu import machine, programs, report
from benchmarks.gpu.check import MIB, POOL_SLACK, PROGRAMS, SLACK, Check, NotRun
from benchmarks.gpu.machine import ROOT, Box
from benchmarks.gpu.nvml import Nvml

WORK = ROOT / "build/gpu-check"
EVIDENCE = ROOT / ("results" if machine.CARRIED.exists() else "docs/evidence")
ROUNDS = 3
CALLS_BYTES = 256 * MIB
ALLOWANCE = 64 * MIB  # per process, between the account and the driver's figure: vgpu/monitor/truth.py has the same
SHARES = (("flood", 30), ("flood", 50), ("flood", 70), ("sync", 30), ("sync", 50))  # kernels of about 1 and 20 ms
CLOSE = 3.0  # points, of the mean


def families(check: Check) -> dict[str, Any]:
    """The driver's own interface, without any package: each way to take memory."""
    python = check.pythons[0]
    found = {}
    for name in programs.FAMILIES:
        slack = POOL_SLACK if name in programs.POOLED else 0
        seen = check.hold([python, str(PROGRAMS), name])
        found[name] = check.judge(seen, slack=slack, resident=name != "managed")
    return {
        "families": found,
        "checks": {f"{name}: {k}": v for name, f in found.items() for k, v in f["checks"].items()},
    }


def account(check: Check) -> dict[str, Any]:
    """What `vgpu monitor` compares: the slice's account, and the driver's figure of the process that uses it."""

    def look(pid: int) -> dict[str, Any]:
        listed = check.nvml.processes()
        return {"account_bytes": check.box.used_bytes(), "listed": len(listed), "process_bytes": listed.get(pid)}

    seen = check.hold([check.pythons[0], str(PROGRAMS), "linear"], look=look)
    process = seen["process_bytes"]
    held = {
        "the account has all that was taken": seen["account_bytes"] >= seen["taken"],
        "the account within the quota": seen["account_bytes"] <= check.box.quota_bytes,
        "the GPU holds what the account says": abs(seen["nvml_bytes"] - seen["account_bytes"]) <= ALLOWANCE,
    }
    if process is not None:  # a driver in a container may list the host's pids, or nobody
        held["the driver's figure of the process too"] = abs(process - seen["account_bytes"]) <= ALLOWANCE
    return {**seen, "quota_bytes": check.box.quota_bytes, "checks": held}


def sharing(check: Check) -> dict[str, Any]:
    """A pool that two processes use: the importer is charged too, in the pieces by which pools grow, until it ends."""
    seen = check.hold([check.pythons[0], str(PROGRAMS), "shared_pool"])
    held = {
        "the import was let through": seen["imported"],
        "the importer is charged for it": 0 <= seen["taken"] - programs.SHARED <= POOL_SLACK,
        "given back": abs(seen["free_after"] - seen["free"]) < programs.STEPS[-1],
        "the GPU holds no more than the quota": seen["nvml_bytes"] <= check.box.quota_bytes,
    }
    return {**seen, "checks": held}


def package(name: str) -> Callable[[Check], dict[str, Any]]:
    def part(check: Check) -> dict[str, Any]:
        if check.simulated:
            raise NotRun(f"{name} computes, which the simulated driver does not")
        return check.judge(check.hold([check.python_with(name), str(PROGRAMS), name]), slack=SLACK)

    return part


def nvcc(check: Check) -> dict[str, Any]:
    """A program of the CUDA runtime, compiled here: benchmarks/gpu/client.cu."""
    compiler = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if check.simulated or compiler is None:
        raise NotRun("no nvcc here" if compiler is None else "the simulated driver computes nothing")
    program = check.work / "client"
    command = [compiler, "-O1", "-o", str(program), str(PROGRAMS.with_name("client.cu"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise NotRun(f"nvcc does not compile here: {done.stderr.strip()[-300:]}")
    return check.judge(check.hold([str(program)]))


def smi(check: Check) -> dict[str, Any]:
    """The driver's own nvidia-smi, through our NVML."""
    program = shutil.which("nvidia-smi")
    if check.simulated or program is None:
        raise NotRun("the driver's nvidia-smi is not here, or would not run on another NVML")
    check.box.fresh()
    command = [program, "--query-gpu=memory.total,memory.used,uuid", "--format=csv,noheader,nounits"]
    environment = check.box.environment(wrapped=True)
    done, plain = (
        subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
        for words in (command, [program])
    )
    lines = done.stdout.splitlines()
    total = f"{check.box.quota_bytes // MIB}"
    held = {
        "ends with 0": done.returncode == 0 and plain.returncode == 0,
        "one GPU": len(lines) == 1,
        "total is the quota": bool(lines) and lines[0].split(",")[0].strip() == total,
        "the table too": f"/ {total}MiB" in " ".join(plain.stdout.split()),
    }
    errors = (done.stdout + done.stderr)[-300:] if done.returncode else ""
    return {"query": lines, "table": plain.stdout.splitlines()[:30], "errors": errors, "checks": held}


def calls(check: Check) -> dict[str, Any]:
    """benchmarks/c/measure.c, the driver alone and behind the wrapper, in turn."""
    if check.box.quota_bytes < CALLS_BYTES:
        raise NotRun(f"it keeps 50,000 allocations: --quota-mib {CALLS_BYTES // MIB} or more")
    program = check.box.program("measure", check.work)
    rounds: dict[str, dict[str, list[float]]] = {"direct": {}, "wrapped": {}}
    for _ in range(ROUNDS):
        for name, kinds in rounds.items():
            said = check.client([str(program), "calls", "300"], wrapped=name == "wrapped")
            for line in said.splitlines()[1:]:
                kind, p50, _ = line.split()
                kinds.setdefault(kind, []).append(float(p50))
    return {"ns_a_call": _compare(rounds), "checks": {"every call succeeded": True}}


def speed(check: Check) -> dict[str, Any]:
    """Loops of PyTorch, launch-bound and compute-bound, without and with the wrapper, in turn; by CUDA events."""
    if check.simulated:
        raise NotRun("the simulated driver computes nothing")
    command = [check.python_with("torch"), str(PROGRAMS), "torch_speed"]
    rounds: dict[str, dict[str, list[float]]] = {"direct": {}, "wrapped": {}}
    for _ in range(ROUNDS):
        for name, kinds in rounds.items():
            said = check.client(command, wrapped=name == "wrapped")
            for kind, us in json.loads(said.strip().splitlines()[-1]).items():
                kinds.setdefault(kind, []).append(us)
    found = _compare(rounds)
    return {"us": found, "checks": {"compute-bound within 2 %": found["compute_bound_us"]["ratio"] <= 1.02}}


def share(check: Check) -> dict[str, Any]:
    """One container at three shares, by the driver's own count of the GPU's time: tests/libcuda_wrap/c/share.c."""
    program = check.box.program("load", check.work)
    found: dict[str, Any] = {}
    checks = {}
    shares, samples = (SHARES[:2], 8) if check.simulated else (SHARES, 24)
    for kind, percent in shares:
        check.time_for(10)
        check.box.fresh(percent)
        command = [str(program), kind, "1000" if kind == "flood" else "20000"]
        seen = _busy(check, command, samples)
        mean = round(statistics.fmean(seen), 1)
        found[f"{kind} at {percent} %"] = {"mean_percent": mean, "samples": seen}
        checks[f"{kind} at {percent} % within {CLOSE:g} points"] = abs(mean - percent) <= CLOSE
    return {"shares": found, "checks": checks}


def _busy(check: Check, command: list[str], samples: int) -> list[int]:
    """Percent of the GPU's time in samples of a quarter of a second, while that client runs. Raises RuntimeError."""
    environment = check.box.environment(wrapped=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        late = threading.Timer(30, process.kill)
        late.start()
        try:
            said = process.stdout.readline() if process.stdout else ""
            if said != "ready\n":
                raise RuntimeError(f"share.c {command[1]} does not run here: {said.strip() or 'it says nothing'}")
            time.sleep(1)
            check.nvml.busy_percent()  # the first may be of the time before
            seen = []
            for _ in range(samples):
                time.sleep(0.25)
                seen.append(check.nvml.busy_percent())
            if process.poll() is not None:
                raise RuntimeError(f"share.c {command[1]} ended with {process.returncode} while it was watched")
            return seen
        finally:
            late.cancel()
            process.kill()


def _compare(rounds: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Per kind the medians over the rounds, the difference and the ratio."""
    found = {}
    for kind in rounds["direct"]:
        direct, wrapped = (statistics.median(rounds[name][kind]) for name in ("direct", "wrapped"))
        ratio = wrapped / direct if direct else math.inf
        found[kind] = {"direct": direct, "wrapped": wrapped, "added": wrapped - direct, "ratio": ratio}
    return found


PARTS: dict[str, Callable[[Check], dict[str, Any]]] = {
    "families": families,
    "account": account,
    "sharing": sharing,
    "nvcc": nvcc,
    "smi": smi,
    "calls": calls,
    "share": share,
    "torch": package("torch"),
    "speed": speed,
    "cupy": package("cupy"),
    "jax": package("jax"),
}


def run_part(name: str, check: Check) -> dict[str, Any]:
    """One part's result: status "held", "MISSED" (with the failed checks), "failed" or "not run"."""
    began = time.monotonic()
    try:
        check.time_for(1)
        found = PARTS[name](check)
        failed = [what for what, good in found["checks"].items() if not good]
        result = {"status": "MISSED" if failed else "held", "missed": failed, **found}
    except NotRun as missing:
        result = {"status": "not run", "why": str(missing)}
    except Exception as error:  # whatever a driver that we have never met does to one part, the others go on
        where = [f"{at.filename.rpartition('/')[2]}:{at.lineno}" for at in traceback.extract_tb(error.__traceback__)]
        result = {"status": "failed", "why": f"{type(error).__name__}: {error}", "where": where[-4:]}
    return {**result, "seconds": round(time.monotonic() - began, 1)}


def prepare(options: argparse.Namespace) -> tuple[Check, dict[str, Any]]:
    """The box, and what the machine is. Raises SystemExit where there is no GPU to check."""
    extra: dict[str, str] = {}
    if options.simulate:
        from benchmarks.gpu.simulated import simulated_gpu

        driver, nvml_path, extra = simulated_gpu(options.work)
    else:
        driver, nvml_path = machine.driver_files()
    nvml = Nvml(nvml_path, options.gpu)
    if why := nvml.unfit(options.quota):
        raise SystemExit(f"gpu_check: {why}")
    box = Box.make(options.work, driver, nvml_path, nvml, options.quota, extra)
    names = [options.python] if options.python else [sys.executable, shutil.which("python3"), shutil.which("python")]
    pythons = list(dict.fromkeys(name for name in names if name))
    until = time.monotonic() + options.minutes * 60
    check = Check(box, nvml, pythons, bool(options.simulate), options.work, until)
    try:
        box.must_answer(pythons[0])
    except SystemExit:
        box.remove()
        raise
    return check, {**machine.facts(nvml), "simulated": bool(options.simulate), "quota_bytes": options.quota}


def arguments_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part, again; may be repeated")
    parser.add_argument("--again", action="store_true", help="forget the parts that are done")
    parser.add_argument("--simulate", action="store_true", help="on the simulated driver; never evidence")
    parser.add_argument("--gpu", default="", help="index or UUID (default: CUDA_VISIBLE_DEVICES' first, or 0)")
    parser.add_argument("--quota-mib", type=int, default=4096, help="of the slice (default 4096)")
    parser.add_argument("--minutes", type=float, default=8, help="then no part is begun any more (default 8)")
    parser.add_argument("--python", help="the Python that has PyTorch, CuPy or JAX")
    parser.add_argument("--work", type=Path, default=WORK, help="where state and box are (default build/gpu-check)")
    parser.add_argument("--evidence", type=Path, default=EVIDENCE, help=f"for results of a real GPU ({EVIDENCE})")
    options = parser.parse_args(arguments)
    if options.quota_mib < 128 or options.quota_mib % 64:
        parser.error(f"--quota-mib {options.quota_mib}: 128 or more, in steps of 64")
    if options.python and shutil.which(options.python) is None:
        parser.error(f"--python {options.python}: no such program")
    options.quota, options.work = options.quota_mib * MIB, options.work.resolve()
    return options


def known(state: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The parts that an earlier run on this machine has done; none of another day, GPU or quota, or of a cut file."""
    try:
        kept = json.loads(state.read_text())
        return dict(kept["parts"]) if kept["machine"] == found else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def main(arguments: list[str] | None = None) -> int:
    options = arguments_of(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    check, found = prepare(options)
    state = options.work / ("simulated.json" if options.simulate else "state.json")
    done = {} if options.again else known(state, found)
    try:
        for name in PARTS:
            if name not in (options.part or PARTS) or (not options.part and done.get(name, {}).get("status") == "held"):
                continue
            done[name] = run_part(name, check)
            text = json.dumps({"schema": 1, "machine": found, "parts": done}, indent=2) + "\n"
            state.with_suffix(".new").write_text(text)
            state.with_suffix(".new").rename(state)
            print(report.line(name, done[name]), flush=True)
    finally:
        check.box.remove()
    if not options.simulate:
        print(report.write(options.evidence, found, done))
    return 1 if any(part["status"] in ("MISSED", "failed") for part in done.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
