"""A client behind the wrapper, what it saw, and what the GPU held meanwhile: what gpu_check's parts are made of.

Nothing that a client does may stop the check: each has its time, and its output is read to the end.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu import programs
from benchmarks.gpu.machine import Box
from benchmarks.gpu.nvml import Nvml

PROGRAMS = Path(programs.__file__)
MIB = 1 << 20
SLACK = 32 * MIB  # what a package's own allocator keeps, or asks for beyond the size: PyTorch takes 20 MiB at a time
POOL_SLACK = 32 * MIB  # a pool of the driver's grows by as much at a time, and what does not fit is undone
MATMUL_ERROR = 0.5  # of sums of 512 products below 1, also where TensorFloat-32 is used; a wrong result is far off
SETTLED_S = 0.3  # without change: what an ended process held is given back
LEAST_S = 15.0  # a part that has less time left is not begun


class NotRun(Exception):
    """What a part needs and this machine does not have."""


@dataclass
class Check:
    """until: time.monotonic() at which the last part has to be done."""

    box: Box
    nvml: Nvml
    pythons: list[str]
    simulated: bool
    work: Path
    until: float = float("inf")
    found: dict[str, str] = field(default_factory=dict)  # package -> the Python that has it

    def time_for(self, seconds: float) -> float:
        """As much of `seconds` as there is. Raises NotRun if that is next to nothing."""
        left = self.until - time.monotonic()
        if left < LEAST_S:
            raise NotRun("no time left; run it again: it goes on here")
        return min(seconds, left)

    def python_with(self, package: str) -> str:
        """A Python that can import the package. Raises NotRun with what each of them says."""
        if package in self.found:
            return self.found[package]
        why = []
        for python in self.pythons:
            try:
                done = subprocess.run(
                    [python, "-c", f"import {package}"], capture_output=True, text=True,
                    timeout=self.time_for(120), check=False,
                )  # fmt: skip
            except (OSError, subprocess.TimeoutExpired) as error:
                why.append(f"{python}: {error}")
                continue
            if done.returncode == 0:
                self.found[package] = python
                return python
            why.append(f"{python}: {_last_line(done.stderr) or f'exit {done.returncode}'}")
        raise NotRun(f"no {package}: {'; '.join(why)}")

    def client(self, command: list[str], *, wrapped: bool = True, timeout_s: float = 120) -> str:
        """What a client prints that waits for nothing. Raises NotRun if it says so, else RuntimeError."""
        timeout_s = self.time_for(timeout_s)
        self.box.fresh()
        done = subprocess.run(
            command, env=self.box.environment(wrapped=wrapped), input="\n", capture_output=True, text=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip
        _judge_end(command, done.returncode, done.stderr)
        if wrapped:
            self._must_be_armed(command)
        return done.stdout

    def hold(
        self, command: list[str], *, timeout_s: float = 150, look: Callable[[int], dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Runs a client behind the wrapper; what it saw, and what NVML says that the GPU holds because of it.

        look: asked with the client's pid while it holds everything; what it gives is added.
        """
        timeout_s = self.time_for(timeout_s)
        self.box.fresh()
        before = self.settled_bytes()
        environment = self.box.environment(wrapped=True)
        with (
            tempfile.TemporaryFile("w+", errors="replace") as errors,  # a pipe that nobody reads would stop it
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            ) as process,
        ):
            late = threading.Timer(timeout_s, process.kill)
            late.start()
            try:
                assert process.stdout
                first = next((line for line in process.stdout if line.startswith("{")), "")  # packages chat
                seen = {"nvml_bytes": self.nvml.used_bytes() - before, **(look(process.pid) if look and first else {})}
                rest, _ = process.communicate("\n")
            finally:
                timely = late.is_alive()
                late.cancel()
                process.kill()
            errors.seek(0)
            said = errors.read()
        if not timely:
            raise RuntimeError(f"{_words(command)} did not end within {timeout_s:.0f} s")
        _judge_end(command, process.returncode, said)
        self._must_be_armed(command)
        if not first:
            raise RuntimeError(f"{_words(command)} told nothing: {said.strip()[-600:]}")
        last = next((line for line in rest.splitlines() if line.startswith("{")), "{}")
        return {**json.loads(first), **json.loads(last), **seen}

    def settled_bytes(self) -> int:
        """What the GPU holds once that changes no more: ended processes give back in their own time. At most 5 s."""
        seen, since, until = self.nvml.used_bytes(), time.monotonic(), time.monotonic() + 5
        while time.monotonic() < min(until, since + SETTLED_S):
            time.sleep(0.02)
            if (now := self.nvml.used_bytes()) != seen:
                seen, since = now, time.monotonic()
        return seen

    def _must_be_armed(self, command: list[str]) -> None:
        if not self.box.armed():
            raise RuntimeError(
                f"{_words(command)} never came to the wrapper: it has found another libcuda.so.1 (an RPATH, or "
                "a file by its path, comes before LD_LIBRARY_PATH)"
            )

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


def _judge_end(command: list[str], code: int, said: str) -> None:
    if code == programs.NOT_RUN:
        raise NotRun(_last_line(said))
    if code:
        raise RuntimeError(f"{_words(command)} ended with {code}: {said.strip()[-600:]}")


def _words(command: list[str]) -> str:
    return " ".join(Path(word).name for word in command)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
