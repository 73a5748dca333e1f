"""Many processes on one quota, killed at random, and two witnesses: the wrapper's ledger and the simulated driver.

While nothing else runs (`frozen`), what the driver's living processes hold can be compared with the quota byte by byte.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from libcuda_wrap.sim import create
from libcuda_wrap.toolchain import PACKAGE, Toolchain
from tests.libcuda_wrap.wrapped import C_TESTS, Box

WORDS = 1024
STILL, EXECING = 1 << 63, 1 << 62


def build(folder: Path, sim: Path) -> Path:
    """The program of c/storm.c."""
    flags = [f"-I{PACKAGE / 'include'}", f"-I{PACKAGE / 'generated'}", f"-L{sim}", "-l:libcuda.so.1", "-ldl"]
    Toolchain("gcc").program([C_TESTS / "storm.c"], folder / "storm", flags=flags)
    return (folder / "storm").resolve()


@dataclass
class Seen:
    """What a storm has shown. most_bytes: per GPU, of living processes, as the driver counts. left_by_the_dead: how
    often the driver still counted one that had ended.
    """

    samples: int = 0
    killed: int = 0
    operations: int = 0
    left_by_the_dead: int = 0
    most_bytes: list[int] = field(default_factory=lambda: [0, 0])
    over: list[str] = field(default_factory=list)


class Storm:
    """processes: how many run at any time. quotas: bytes per GPU. largest: bytes of an allocation."""

    def __init__(self, box: Box, program: Path, folder: Path, processes: int, quotas: list[int], largest: int) -> None:
        self.box, self.program, self.quotas, self.largest = box, program, quotas, largest
        self.counts_path = folder / "counts"
        self.counts_path.write_bytes(bytes(8 * WORDS))
        with self.counts_path.open("r+b") as file:
            self._counts = mmap.mmap(file.fileno(), 8 * WORDS)
        self.seen = Seen()
        self.running: list[subprocess.Popen[bytes]] = []
        self._processes = processes
        self._seeds = random.Random(20261124)

    def count(self, number: int) -> int:
        """Operations of process `number` and of those that had the number before; the top bit: it holds still."""
        found: int = struct.unpack_from("<Q", self._counts, 8 * number)[0]
        return found

    def start(self) -> None:
        self.running = [self._one(number) for number in range(self._processes)]

    def _one(self, number: int) -> subprocess.Popen[bytes]:
        seed = str(self._seeds.randrange(1_000_000))
        command = [str(self.program), "run", seed, str(self.largest), str(self.counts_path), str(number)]
        return subprocess.Popen(command, env=self.box.environment(), start_new_session=True)

    def blow(self, seconds: float) -> None:
        """Kills and replaces, and looks at both witnesses in between."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for _ in range(8):
                time.sleep(self._seeds.random() * 0.02)
                self._kill(self._seeds.randrange(self._processes))
                self._look_at_the_ledger()
            with self.frozen():
                self._look_at_the_driver()

    def _kill(self, number: int) -> None:
        process = self.running[number]
        whole = self._seeds.random() < 0.5  # with its children, or alone: they die of that
        (os.killpg if whole else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        self.seen.killed += 1
        self.running[number] = self._one(number)

    def _look_at_the_ledger(self) -> None:
        for number, gpu in enumerate(self.box.usage().gpus[: len(self.quotas)]):
            if max(gpu.used_bytes, gpu.peak_bytes) > self.quotas[number]:
                self.seen.over.append(f"ledger, GPU {number}: {gpu.used_bytes} of {self.quotas[number]}")

    def _look_at_the_driver(self) -> None:
        usage, living = self.box.usage(), {pid for pid, _ in self._members()}
        living -= {process.pid for number, process in enumerate(self.running) if self.count(number) & EXECING}
        for number, gpu in enumerate(create.read_state(self.box.folder / "sim").gpus):
            # a child that has not yet run its fork handlers has its dead parent's descriptors, and so its slot's lock;
            # so has, for a moment, whoever clears a slot whose owner is dead, or has become another program
            newest = {process.pid: process for process in sorted(gpu.processes, key=lambda process: process.start_ns)}
            held = sum(process.memory_bytes for process in newest.values() if process.pid in living)
            self.seen.left_by_the_dead += gpu.used_bytes != held
            self.seen.most_bytes[number] = max(self.seen.most_bytes[number], held)
            charged = usage.gpus[number].used_bytes
            if held > self.quotas[number] or held > charged:
                self.seen.over.append(f"driver, GPU {number}: {held} of {self.quotas[number]}, {charged} charged")
        self.seen.samples += 1

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """All processes stand still, also the children that a killed one has left behind."""
        stopped: set[int] = set()
        try:
            until, clean = time.monotonic() + 60, 0
            while clean < 2:  # a child that was born during the first look is seen by the second
                moving = [pid for pid, state in self._members() if state not in "TtZX"]
                clean = 0 if moving else clean + 1
                if time.monotonic() > until:
                    raise AssertionError(f"{moving} do not stop")
                for pid in moving:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSTOP)
                stopped.update(moving)
                time.sleep(0.002 if moving else 0)
            yield
        finally:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _members(self) -> list[tuple[int, str]]:
        """Pid and state of every living process of the storm: those that run its program."""
        found = []
        for name in os.listdir("/proc"):
            with suppress(OSError):
                if name.isdecimal() and os.readlink(f"/proc/{name}/exe") == str(self.program):
                    found.append((int(name), _state(int(name))))
        return found

    def waits_for_progress(self, seconds: float) -> list[int]:
        """Gives every process time to do something; the numbers of those that did nothing: they wait for the dead."""
        before = [self.count(number) for number in range(self._processes)]
        stuck, until = list(range(self._processes)), time.monotonic() + seconds
        while stuck and time.monotonic() < until:
            time.sleep(0.05)
            stuck = [number for number in stuck if self.count(number) == before[number]]
        return stuck

    def hold_still(self, seconds: float = 30) -> dict[int, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Ends all operations; per process what the ledger and what the driver say that it holds, bytes per GPU."""
        until = time.monotonic() + seconds
        waiting = list(range(self._processes))
        struct.pack_into("<Q", self._counts, 8 * (WORDS - 1), 1)
        while waiting and time.monotonic() < until:
            time.sleep(0.1)
            waiting = [number for number in waiting if not self.count(number) & STILL]
        assert not waiting, f"{waiting} do not come to an end"
        self.seen.operations = sum(self.count(number) & ~(STILL | EXECING) for number in range(self._processes))
        ledger = {process.pid: process.held_bytes[:2] for process in self.box.usage().processes if process.alive}
        truth: dict[int, list[int]] = {process.pid: [0, 0] for process in self.running}
        for number, gpu in enumerate(create.read_state(self.box.folder / "sim").gpus):
            for process in gpu.processes:
                truth[process.pid][number] = process.memory_bytes
        return {pid: (ledger.get(pid, (0, 0)), (held[0], held[1])) for pid, held in truth.items()}

    def end(self) -> None:
        for pid, _ in self._members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.running:
            process.wait()


def _state(pid: int) -> str:
    """Field 3 of /proc/<pid>/stat; X if it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def initialise_at_once(program: Path, processes: int, environment: dict[str, str]) -> float:
    """Seconds until all of `processes` new processes have initialised, allocated a byte and ended."""
    command = [str(program), "many", str(processes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done
    return int(done.stdout) / 1e9
