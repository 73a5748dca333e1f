"""A container's folder without a container: wrapper and simulated driver in a box, with a quota and a usage file."""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from libcuda_wrap import bindings, build
from libcuda_wrap.sim import build as sim_build
from libcuda_wrap.sim import create
from libcuda_wrap.toolchain import PACKAGE, Toolchain
from oci_hook import neighbours, quota_file
from oci_hook.records import Slice
from oci_hook.values import replace

C_TESTS = Path(__file__).parent / "c"
GIB, MIB = 1 << 30, 1 << 20
OK, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, NO_DEVICE, INVALID_DEVICE = 0, 1, 2, 3, 100, 101
NOT_SUPPORTED, NOT_READY = 801, 802


@dataclass
class Client:
    """A running tests/libcuda_wrap/c/client.c."""

    process: subprocess.Popen[str]

    def ask(self, command: str) -> tuple[int, ...]:
        """The numbers that it answers: the CUresult, then two values."""
        return tuple(int(word) for word in self.words(command))

    def words(self, command: str) -> list[str]:
        self.tell(command)
        return self.answer_to(command)

    def answer_to(self, command: str) -> list[str]:
        """What it says to a command that was told."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            _, said = self.process.communicate(timeout=10)
            raise AssertionError(f"the client ended at {command!r}: {self.process.returncode} {said}")
        return line.split()

    def tell(self, command: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def ok(self, *commands: str) -> None:
        for command in commands:
            assert self.ask(command)[0] == OK, command

    def ready(self, device: int = 0) -> Client:
        assert self.ask("init")[0] == OK
        assert self.ask(f"primary {device}")[0] == OK
        return self

    def end(self) -> str:
        """Ends it as a program ends; what it said on standard error."""
        _, said = self.process.communicate(timeout=20)
        assert self.process.returncode == 0, said
        return said

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=20)


@dataclass
class Box:
    """folder: what is /usr/lib/vgpu in a container. Built for one --cc and --sanitize."""

    folder: Path
    sanitize: str
    clients: list[Client] = field(default_factory=list)
    slices: tuple[Slice, ...] = ()

    @classmethod
    def make(cls, folder: Path, sanitize: str, sim: Path) -> Box:
        tools = Toolchain("gcc", sanitize) if sanitize else Toolchain()
        for library in (build.CUDA, build.NVML):
            build.wrapper(library, folder / "lib", tools, str(folder))
        shutil.copy(sim / f"libcuda.so.{create.DRIVER_VERSION}", folder / "libvgpu-driver.so")
        shutil.copy(sim / f"libnvidia-ml.so.{create.DRIVER_VERSION}", folder / "libvgpu-nvml.so")
        flags = [f"-I{PACKAGE / 'include'}", f"-I{PACKAGE / 'generated'}", f"-L{sim}", "-l:libcuda.so.1", "-ldl"]
        # programs are linked with the toolkit's stub of libcuda.so, and so are known to need every function
        Toolchain("gcc", sanitize).program([C_TESTS / "client.c"], folder / "client", flags=flags)
        Toolchain("gcc", sanitize).program([C_TESTS / "share.c"], folder / "load", flags=flags)
        Toolchain("gcc", sanitize).program([C_TESTS / "kernels.c"], folder / "kernels", flags=flags)
        return cls(folder, sanitize)

    def fresh(self, *slices: Slice, gpus: int = 2, memory_bytes: int = 80 * GIB, context_bytes: int = 0) -> None:
        """New GPUs, a new quota, nothing used."""
        for name in ("sim", neighbours.FOLDER):  # neighbours of an earlier test as well
            shutil.rmtree(self.folder / name, ignore_errors=True)
        create.create(self.folder / "sim", gpus, memory_bytes, context_bytes=context_bytes)
        self.slice(*slices)

    def of_cuda(self, version: int) -> None:
        """The driver's CUDA version, 13000: it answers for none that is newer."""
        with (self.folder / "sim/ctl").open("r+b") as file:
            file.seek(create.CUDA_AT)
            file.write(struct.pack("<I", version))

    def slice(self, *slices: Slice, burst: str = "hard", priority: str = "normal") -> None:
        """A new quota, nothing used, on the GPUs that are there."""
        self.slices = slices
        self.write("quota", quota_file.quota("c0ffee", slices, burst=burst, priority=priority))
        self.write("usage", quota_file.usage_header().ljust(quota_file.USAGE_BYTES, b"\0"))
        self.write("share", bytes(neighbours.SHARE_BYTES))
        for number, part in enumerate(slices):
            folder = self.folder / f"gpu{number}"
            folder.unlink(missing_ok=True)
            folder.symlink_to(neighbours.gpu_folder(str(self.folder), part.uuid))
        self.tell_neighbours()

    def tell_neighbours(self) -> None:
        box = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            neighbours.enter(str(self.folder), box, self.slices, (self.folder / "quota").read_bytes())
        finally:
            os.close(box)

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    def resize(self, gpu: int, memory_bytes: int) -> None:
        """As the host does it while the container runs."""
        types = bindings.ffi()
        at = types.offsetof("struct vgw_quota", "gpus") + gpu * types.sizeof("struct vgw_quota_gpu")
        with (self.folder / "quota").open("r+b") as file:
            file.seek(at + types.offsetof("struct vgw_quota_gpu", "memory_bytes"))
            file.write(struct.pack("<Q", memory_bytes))

    def set_cores(self, percent: int) -> None:
        """As the host does it while the container runs, for the slice's first GPU."""
        self.slices = (replace(self.slices[0], cores_percent=percent), *self.slices[1:])
        self.set_field("cores_percent", percent)
        self.tell_neighbours()

    def set_field(self, name: str, value: int) -> None:
        """A live 32-bit field of the quota, for the slice's first GPU."""
        types = bindings.ffi()
        at = types.offsetof("struct vgw_quota", "gpus") + types.offsetof("struct vgw_quota_gpu", name)
        with (self.folder / "quota").open("r+b") as file:
            file.seek(at)
            file.write(struct.pack("<I", value))

    def set_debt(self, ns: int) -> None:
        """Tokens of the slice's first GPU; the share adds to them from when somebody next asks."""
        types = bindings.ffi()
        at = types.offsetof("struct vgw_usage", "gpus") + types.offsetof("struct vgw_usage_gpu", "limiter")
        with (self.folder / "usage").open("r+b") as file:
            file.seek(at)
            file.write(struct.pack("<qQ", -ns, time.monotonic_ns() + 10**9))

    def share(self, kind: str, us: int) -> subprocess.Popen[str]:
        """A running tests/libcuda_wrap/c/share.c that has begun to launch; `close` ends it."""
        command = [str(self.folder / "load"), kind, str(us)]
        process = subprocess.Popen(
            command, env=self.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.clients.append(Client(process))
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        return process

    def environment(self) -> dict[str, str]:
        keep = {name: os.environ[name] for name in ("PATH",) if name in os.environ}
        options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
        return {
            **keep,
            **options,
            "LD_LIBRARY_PATH": str(self.folder / "lib"),
            "VGPU_SIM_DIR": str(self.folder / "sim"),
        }

    def client(self, program: str = "client", **environment: str) -> Client:
        """A running client: tests/libcuda_wrap/c/client.c, or kernels.c."""
        process = subprocess.Popen(
            [str(self.folder / program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environment(), **environment},
        )
        self.clients.append(Client(process))
        return self.clients[-1]

    def run(self, command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env={**self.environment(), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def usage(self) -> bindings.Usage:
        return bindings.read_usage(self.folder / "usage")

    def used(self, gpu: int = 0) -> int:
        return self.usage().gpus[gpu].used_bytes

    def close(self) -> None:
        for client in self.clients:
            if client.process.poll() is None:
                client.kill()
        self.clients.clear()


SEED = int(os.environ.get("VGPU_TEST_SEED", time.time_ns() % 100_000))  # of a kill test: one that failed names it
Start = Callable[[], Client]


def sharer(box: Box, driver: Path) -> Path:
    """The program tests/libcuda_wrap/c/sharer.c, built when first asked for."""
    program = box.folder / "sharer"
    if not program.exists():
        flags = [f"-I{PACKAGE / 'include'}", f"-I{PACKAGE / 'generated'}", f"-L{driver}", "-l:libcuda.so.1", "-ldl"]
        Toolchain("gcc", box.sanitize).program([C_TESTS / "sharer.c"], program, flags=flags)
    return program


def starter(box: Box, driver: Path, **environment: str) -> Start:
    """Starts sharers, each with a context."""
    program = sharer(box, driver)

    def start() -> Client:
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [program], stdin=pipe, stdout=pipe, stderr=pipe, text=True,
            env={**box.environment(), **environment},
        )  # fmt: skip
        box.clients.append(Client(process))
        return box.clients[-1].ready()

    return start


def killed_at_random(box: Box, start: Start, turn: list[str], seed: int = SEED) -> None:
    """Pairs of sharers that take turns until they are stopped, held against the driver's own count, and killed."""
    print(f"VGPU_TEST_SEED={seed}")
    chance = random.Random(seed)
    for _ in range(12):
        victims = [start(), start()]
        for victim in victims:
            victim.tell("\n".join(turn * 20))
        time.sleep(chance.random() / 50)
        for victim in victims:
            victim.process.send_signal(signal.SIGSTOP)
        while any("T" not in status(victim.process.pid) for victim in victims):
            time.sleep(0.001)
        assert box.used() >= held_by_the_living(box)
        for victim in victims:
            victim.kill()


def held_by_the_living(box: Box) -> int:
    """What the simulated GPU says of those who live: it may not have seen yet that others do not."""
    living = {client.process.pid for client in box.clients if client.process.poll() is None}
    processes = create.read_state(box.folder / "sim").gpus[0].processes
    return sum(process.memory_bytes for process in processes if process.pid in living)


def status(pid: int) -> str:
    """The state of a process, as the kernel says it: "T (stopped)", "Z (zombie)" or another."""
    text = Path(f"/proc/{pid}/status").read_text()
    return next(line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith("State:"))


def ok(client: Client, *commands: str) -> None:
    for command in commands:
        assert client.ask(command)[0] == OK, command


def taken(box: Box, gpu: int = 0) -> int:
    """What the simulated GPU itself says is in use, bytes."""
    return create.read_state(box.folder / "sim").gpus[gpu].used_bytes


def part(index: int, memory_bytes: int, cores_percent: int = 100) -> Slice:
    """A slice of simulated GPU `index`."""
    return Slice(index=index, uuid=create.gpu_uuid(index), memory_bytes=memory_bytes, cores_percent=cores_percent)


def simulated_driver(folder: Path) -> Path:
    sim_build.build(folder)
    return folder
