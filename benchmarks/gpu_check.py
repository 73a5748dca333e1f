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
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import programs, report
from benchmarks.gpu.machine import ROOT, Box, Nvml, loaded_from
from libcuda_wrap.toolchain import PACKAGE, Toolchain

WORK = ROOT / "build/gpu-check"
PROGRAMS = Path(programs.__file__)
GIB, MIB = 1 << 30, 1 << 20
SLACK = 32 * MIB  # what a package's own allocator keeps, or asks for beyond the size: PyTorch takes 20 MiB at a time
MATMUL_ERROR = 0.5  # of sums of 512 products below 1, also where TensorFloat-32 is used; a wrong result is far off
ROUNDS = 3
SHARES = (("flood", 30), ("flood", 50), ("flood", 70), ("sync", 30), ("sync", 50))  # kernels of about 1 and 20 ms
CLOSE = 3.0  # points, of the mean


class NotRun(Exception):
    """What a part needs and this machine does not have."""


@dataclass
class Check:
    box: Box
    nvml: Nvml
    pythons: list[str]
    simulated: bool
    work: Path

    def python_with(self, package: str) -> str:
        for python in self.pythons:
            done = subprocess.run([python, "-c", f"import {package}"], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return python
        raise NotRun(f"{package} is in none of {', '.join(self.pythons)}")

    def hold(self, command: list[str], timeout_s: float = 150) -> dict[str, Any]:
        """Runs a client behind the wrapper; what it saw, and what NVML says that the GPU holds because of it."""
        client = Path(command[-1]).name
        self.box.fresh()
        before = self.nvml.used_bytes()
        environment = self.box.environment(wrapped=True)
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        ) as process:  # fmt: skip
            assert process.stdin and process.stdout
            first = process.stdout.readline()
            during = self.nvml.used_bytes()
            try:
                rest, errors = process.communicate("\n", timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise RuntimeError(f"{client} did not end within {timeout_s:g} s") from None
        if process.returncode or not first:
            raise RuntimeError(f"{client} ended with {process.returncode}: {errors.strip()[-600:]}")
        return {**json.loads(first), **json.loads(rest or "{}"), "nvml_bytes": during - before}

    def judge(self, seen: dict[str, Any], *, slack: int = 0, resident: bool = True) -> dict[str, Any]:
        """Adds what the figures say. slack: bytes that the client's own allocator may make of difference. resident:
        what is allocated is on the GPU at once, not only when it is touched.
        """
        quota, free = self.box.quota_bytes, seen["free"]
        held = {
            "total is the quota": seen["total"] == quota,
            "all that was free was given, and no more": -slack <= free - seen["taken"] < programs.STEPS[-1] + slack,
            "refused as out of memory": seen.get("refused", [programs.OUT_OF_MEMORY]) == [programs.OUT_OF_MEMORY],
            "given back": abs(seen["free_after"] - free) < programs.STEPS[-1] + slack,
            "the GPU holds no more than the quota": seen["nvml_bytes"] <= quota,
        }
        if "matmul_error" in seen:
            held["matmul as on the CPU"] = seen["matmul_error"] < MATMUL_ERROR
        if resident:
            held["the GPU holds it"] = seen["nvml_bytes"] >= seen["taken"]
        return {**seen, "quota_bytes": quota, "checks": held}


def families(check: Check) -> dict[str, Any]:
    python = check.pythons[0]
    found = {}
    for name in programs.FAMILIES:
        found[name] = check.judge(check.hold([python, str(PROGRAMS), name]), resident=name != "managed")
    return {
        "families": found,
        "checks": {f"{name}: {k}": v for name, f in found.items() for k, v in f["checks"].items()},
    }


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
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    plain = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=60, check=False)
    lines = done.stdout.splitlines()
    total = f"{check.box.quota_bytes // MIB}"
    held = {
        "ends with 0": done.returncode == 0 and plain.returncode == 0,
        "one GPU": len(lines) == 1,
        "total is the quota": bool(lines) and lines[0].split(",")[0].strip() == total,
        "the table too": f"/ {total}MiB" in " ".join(plain.stdout.split()),
    }
    return {"query": lines, "table": plain.stdout.splitlines()[:30], "errors": done.stderr[-300:], "checks": held}


def calls(check: Check) -> dict[str, Any]:
    """benchmarks/c/measure.c, the driver alone and behind the wrapper, in turn."""
    program = check.work / "measure"
    try:
        Toolchain("gcc").program([ROOT / "benchmarks/c/measure.c"], program, flags=["-ldl"])
    except Exception as error:
        raise NotRun(f"measure.c does not compile here: {error}") from None
    rounds: dict[str, dict[str, list[float]]] = {"direct": {}, "wrapped": {}}
    for _ in range(ROUNDS):
        for name, kinds in rounds.items():
            check.box.fresh()
            done = subprocess.run(
                [program, "calls", "300"], env=check.box.environment(wrapped=name == "wrapped"), input="\n",
                capture_output=True, text=True, timeout=120, check=True,
            )  # fmt: skip
            for line in done.stdout.splitlines()[1:]:
                kind, p50, _ = line.split()
                kinds.setdefault(kind, []).append(float(p50))
    return {"ns_a_call": _compare(rounds), "checks": {"every call succeeded": True}}


def speed(check: Check) -> dict[str, Any]:
    """Loops of PyTorch, launch-bound and compute-bound, without and with the wrapper, in turn; by CUDA events."""
    if check.simulated:
        raise NotRun("the simulated driver computes nothing")
    python = check.python_with("torch")
    rounds: dict[str, dict[str, list[float]]] = {"direct": {}, "wrapped": {}}
    for _ in range(ROUNDS):
        for name, kinds in rounds.items():
            check.box.fresh()
            command = [python, str(PROGRAMS), "torch_speed"]
            done = subprocess.run(
                command, env=check.box.environment(wrapped=name == "wrapped"), capture_output=True, text=True,
                timeout=120, check=False,
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"torch_speed, {name}: {done.stderr.strip()[-600:]}")
            for kind, us in json.loads(done.stdout).items():
                kinds.setdefault(kind, []).append(us)
    found = _compare(rounds)
    return {"us": found, "checks": {"compute-bound within 2 %": found["compute_bound_us"]["ratio"] <= 1.02}}


def share(check: Check) -> dict[str, Any]:
    """One container at three shares, by the driver's own count of the GPU's time: tests/libcuda_wrap/c/share.c."""
    program = check.work / "load"
    flags = [f"-I{PACKAGE / 'include'}", f"-I{PACKAGE / 'generated'}", str(check.box.driver)]
    try:
        source = ROOT / "tests/libcuda_wrap/c/share.c"
        Toolchain("gcc").program([source], program, flags=[*flags, "-ldl"])
    except Exception as error:
        raise NotRun(f"share.c does not compile here: {error}") from None
    found: dict[str, Any] = {}
    checks = {}
    shares, samples = (SHARES[:2], 8) if check.simulated else (SHARES, 24)
    for kind, percent in shares:
        check.box.fresh(percent)
        command = [str(program), kind, "1000" if kind == "flood" else "20000"]
        environment = check.box.environment(wrapped=True)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            try:
                if not process.stdout or process.stdout.readline() != "ready\n":
                    raise RuntimeError(f"share.c {kind} does not run here")
                time.sleep(1)
                check.nvml.busy_percent()  # the first may be of the time before
                seen = []
                for _ in range(samples):
                    time.sleep(0.25)
                    seen.append(check.nvml.busy_percent())
            finally:
                process.kill()
        mean = round(statistics.fmean(seen), 1)
        found[f"{kind} at {percent} %"] = {"mean_percent": mean, "samples": seen}
        checks[f"{kind} at {percent} % within {CLOSE:g} points"] = abs(mean - percent) <= CLOSE
    return {"shares": found, "checks": checks}


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
        found = PARTS[name](check)
        failed = [what for what, good in found["checks"].items() if not good]
        result = {"status": "MISSED" if failed else "held", "missed": failed, **found}
    except NotRun as missing:
        result = {"status": "not run", "why": str(missing)}
    except (RuntimeError, subprocess.SubprocessError, ValueError, KeyError) as error:
        result = {"status": "failed", "why": str(error)}
    return {**result, "seconds": round(time.monotonic() - began, 1)}


def prepare(options: argparse.Namespace) -> tuple[Check, dict[str, Any]]:
    """The box, and what the machine is. Raises SystemExit where there is no GPU to check."""
    extra: dict[str, str] = {}
    if options.simulate:
        from benchmarks.gpu.simulated import simulated_gpu

        driver, nvml_path, extra = simulated_gpu(options.work)
    else:
        found = loaded_from("libcuda.so.1"), loaded_from("libnvidia-ml.so.1")
        if found[0] is None or found[1] is None:
            raise SystemExit("gpu_check: no NVIDIA driver here: libcuda.so.1 or libnvidia-ml.so.1 does not load")
        driver, nvml_path = found[0], found[1]
    nvml = Nvml(nvml_path)
    box = Box.make(options.work, driver, nvml_path, nvml.text("nvmlDeviceGetUUID"), options.quota, extra)
    machine = {
        "gpu": nvml.text("nvmlDeviceGetName"),
        "simulated": bool(options.simulate),
        "driver": nvml.driver_version(),
        "cuda": nvml.cuda_version(),
        "date": time.strftime("%Y-%m-%d"),
        "quota_bytes": options.quota,
    }
    pythons = (
        [options.python] if options.python else list(dict.fromkeys([sys.executable, shutil.which("python3") or ""]))
    )
    return Check(box, nvml, [python for python in pythons if python], bool(options.simulate), options.work), machine


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part, again; may be repeated")
    parser.add_argument("--again", action="store_true", help="forget the parts that are done")
    parser.add_argument("--simulate", action="store_true", help="on the simulated driver; never evidence")
    parser.add_argument("--quota-mib", type=int, default=4096, help="of the slice (default 4096)")
    parser.add_argument("--python", help="the Python that has PyTorch, CuPy or JAX")
    parser.add_argument("--work", type=Path, default=WORK, help="where state and box are (default build/gpu-check)")
    parser.add_argument("--evidence", type=Path, default=ROOT / "docs/evidence", help="for results of a real GPU")
    options = parser.parse_args(arguments)
    if options.quota_mib < 128 or options.quota_mib % 64:
        parser.error(f"--quota-mib {options.quota_mib}: 128 or more, in steps of 64")
    options.quota, options.work = options.quota_mib * MIB, options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    check, machine = prepare(options)
    state = options.work / ("simulated.json" if options.simulate else "state.json")
    done: dict[str, Any] = {}
    if state.exists() and not options.again:
        kept = json.loads(state.read_text())
        done = kept["parts"] if kept["machine"] == machine else {}  # another day, GPU or quota: measured anew
    try:
        for name in PARTS:
            if name not in (options.part or PARTS) or (not options.part and done.get(name, {}).get("status") == "held"):
                continue
            done[name] = run_part(name, check)
            state.write_text(json.dumps({"schema": 1, "machine": machine, "parts": done}, indent=2) + "\n")
            print(report.line(name, done[name]), flush=True)
    finally:
        check.box.remove()
    if not options.simulate:
        print(report.write(options.evidence, machine, done))
    return 1 if any(part["status"] in ("MISSED", "failed") for part in done.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
