"""A host without containers: a prefix with a policy, a ledger, and accounts that the tests write as a wrapper would."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libcuda_wrap import bindings
from libcuda_wrap.sim import create
from oci_hook import ledger, policy, quota_file
from oci_hook.records import Allocation, Ask, Placement, Plan, Policy, Process, Request, Slice
from runtime_config import launcher_conf, policy_file

ROOT = Path(__file__).parents[3]
GIB, MIB, SECOND = 1 << 30, 1 << 20, 1_000_000_000


@dataclass
class Host:
    """prefix: of the installation. Two simulated GPUs of 80 GiB, which exist once `simulate` was called."""

    prefix: Path
    locks: list[int] = field(default_factory=list)

    @classmethod
    def make(cls, folder: Path) -> Host:
        etc = folder / "prefix/etc"
        etc.mkdir(parents=True)
        text = policy_file.template("/bin/true", str(folder / "state"), str(folder / "log"), simulate_gpus=2)
        (etc / "config.yaml").write_text(text)
        conf = launcher_conf.text(str(etc.parent), "/bin/true", "/usr/bin/python3", str(folder / "state"))
        (etc / "launcher.conf").write_text(conf)
        host = cls(etc.parent)
        assert host.vgpu("config", "apply").returncode == 0
        return host

    @property
    def config(self) -> str:
        return f"{self.prefix}/etc/config.yaml"

    @property
    def policy(self) -> Policy:
        return policy.load(f"{self.prefix}/etc/policy.json")

    @property
    def state(self) -> Path:
        return Path(self.policy.state_dir)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "vgpu", *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "VGPU_CONFIG": self.config, **more}

    def vgpu(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
            env=self.environment(**environment),
        )  # fmt: skip

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """The command, ended by SIGTERM at the end of the block."""
        process = subprocess.Popen(
            self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env=self.environment(),
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=30)

    def simulate(self, driver: Path) -> None:
        """Makes the GPUs. driver: the folder of the simulated driver's libraries."""
        (self.prefix / "lib/vgpu").mkdir(parents=True, exist_ok=True)
        (self.prefix / "lib/vgpu/sim").symlink_to(driver)
        create.create(self.state / "sim", 2, 80 * GIB)

    def give_out(
        self, name: str, *, container: str = "", memory: int = 8 * GIB, cores: int = 30, gpus: tuple[int, ...] = (0,),
        image: str = "image:1", init: int = 0,
    ) -> str:  # fmt: skip
        """A slice in the ledger; its id. init: the host's pid of its first process, default: this one."""
        identity = container or name.encode().hex().ljust(64, "0")
        owner = ledger.process(init or os.getpid()) or Process(1, 1)
        slices = tuple(Slice(index, create.gpu_uuid(index), memory, cores) for index in gpus)
        allocation = Allocation(
            id=identity, name=name, image=image, state="armed", created_ns=1, creator=owner, init=owner,
            request=Request(asks=(Ask(memory_bytes=memory),) * len(gpus)),
            placement=Placement("binpack", slices, ()), clamped=(), simulated=True, driver_version="580.65.06",
        )  # fmt: skip
        quota = quota_file.quota(identity, slices, burst="hard", priority="normal")
        with ledger.Ledger(self.policy.state_dir) as held:
            held.add(allocation, Plan((), ()), quota, quota_file.usage_header(), quota_file.USAGE_BYTES)
        return identity

    def box(self, container: str) -> Path:
        return Path(ledger.folder(self.policy.state_dir, container), "box")

    def use(self, container: str, *, gpu: int = 0, pids: tuple[int, ...] = (), **figures: Any) -> None:
        """Writes figures of the container's GPU `gpu` into its account as a wrapper would; locks slots for `pids`."""
        path = self.box(container) / "usage"
        data = bytearray(path.read_bytes())
        usage = bindings.ffi().from_buffer("struct vgw_usage *", data)
        usage.armed_ns = usage.armed_ns or 1
        for name, value in figures.items():
            if name == "used_bytes":
                usage.gpus[gpu].word = value << 20
            elif name in ("denied", "waits"):
                for number, count in enumerate(value):
                    getattr(usage.gpus[gpu], name)[number] = count
            else:
                setattr(usage.gpus[gpu], name, value)
        for number, pid in enumerate(pids):
            usage.slots[number].pid = pid
        usage.slot_high = max(usage.slot_high, len(pids))
        with path.open("r+b") as file:
            file.write(data)
        if pids:
            self._lock(path, len(pids))

    def _lock(self, path: Path, slots: int) -> None:
        fd = os.open(path, os.O_RDWR)
        self.locks.append(fd)
        types = bindings.ffi()
        for number in range(slots):
            at = types.offsetof("struct vgw_usage", "slots") + number * types.sizeof("struct vgw_usage_slot")
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0))

    def close(self) -> None:
        for fd in self.locks:
            os.close(fd)


def refused(done: subprocess.CompletedProcess[str], code: str, *words: str) -> None:
    """One line on stderr with the code, nothing on stdout."""
    assert (done.returncode, done.stdout) == (5, ""), done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"vgpu: {code}: ")
    for word in words:
        assert word in done.stderr
