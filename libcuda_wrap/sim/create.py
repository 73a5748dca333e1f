"""Makes and reads the folder of simulated GPUs: `ctl`, which libcuda and libnvidia-ml share, and `gpu0`, `gpu1`, …

The layout is vgs_state.h's, version 2; tests/sim/test_state.py compares every offset with the compiler's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from oci_hook.errors import HostError, shown

DRIVER_VERSION = "580.65.06"  # the first driver of CUDA 13.0
CUDA_VERSION = 13000
NAME = "Simulated GPU"
MAX_GPUS = 16
MAX_MEMORY_BYTES = 1 << 42

MAGIC, VERSION, BYTES, SLOTS = 0x53474756, 2, 3740160, 1024
HEADER = struct.Struct(
    "<8IQ24s256s"
)  # magic, version, bytes, gpus, slots, slot_high, cuda, fault_count; context_bytes; driver; fault
CUDA_AT, FAULT_COUNT_AT, CONTEXT_BYTES_AT, FAULT_AT, FAULT_BYTES = 24, 28, 32, 64, 256
GPUS_AT, GPU = (
    512,
    struct.Struct("<48s64s32s4Q4IQ56x"),
)  # uuid, name, pci; memory, used, clock's real and virtual ns; lock, lost, minor, -; launched ns
GPU_LOST_AT, GPU_XID_AT = 180, 208  # the latter: the error's number, and how many there were
SLOTS_AT, SLOT, SLOT_GPU, SLOT_BYTES = 4608, struct.Struct("<3Q40x"), struct.Struct("<QQI4xQ"), 576
_FLOCK = struct.Struct("@hhqqi4x")


@dataclass(frozen=True)
class SimProcess:
    """A live process with a context or memory on a GPU. pid: in its own pid namespace, whose inode is pid_namespace.

    busy_ns: kernel time that it has had. start_ns: CLOCK_MONOTONIC when it took its slot. A pid may be there twice for
    a moment, after an exec: while a slot is cleared, whoever does that has its lock.
    """

    pid: int
    pid_namespace: int
    memory_bytes: int
    contexts: int
    busy_ns: int
    start_ns: int


@dataclass(frozen=True)
class SimGpu:
    """used_bytes: of live processes. busy_ns: kernel time that has run since the folder was made."""

    index: int
    uuid: str
    name: str
    memory_bytes: int
    used_bytes: int
    busy_ns: int
    pci_bus_id: str
    minor: int
    lost: bool
    processes: tuple[SimProcess, ...]


@dataclass(frozen=True)
class SimState:
    driver_version: str
    cuda_version: int
    context_bytes: int
    fault: str
    gpus: tuple[SimGpu, ...]


def gpu_uuid(index: int) -> str:
    """The same on every machine and at every run: what tests and placements name a GPU by."""
    return f"GPU-{uuid.uuid5(uuid.NAMESPACE_URL, f'vgpu:simulated-gpu/{index}')}"


def _image(gpus: int, memory_bytes: int, driver_version: str, context_bytes: int) -> bytes:
    data = bytearray(BYTES)
    HEADER.pack_into(
        data, 0, MAGIC, VERSION, BYTES, gpus, SLOTS, 0, CUDA_VERSION, 0, context_bytes, driver_version.encode(), b""
    )
    for index in range(gpus):
        pci = f"00000000:{index + 1:02X}:00.0"
        fields = (gpu_uuid(index).encode(), NAME.encode(), pci.encode(), memory_bytes, 0, 0, 0, 0, 0, index, 0, 0)
        GPU.pack_into(data, GPUS_AT + index * GPU.size, *fields)
    return bytes(data)


def _check(gpus: int, memory_bytes: int, driver_version: str, context_bytes: int) -> None:
    if not 1 <= gpus <= MAX_GPUS:
        raise HostError("VGPU-CFG-003", f"{gpus} simulated GPUs", remedy=f"choose 1 to {MAX_GPUS}")
    if not 1 << 20 <= memory_bytes <= MAX_MEMORY_BYTES:
        raise HostError(
            "VGPU-CFG-003", f"{memory_bytes} bytes for a simulated GPU", remedy="choose 1 MiB to 4096 GiB, as 80 GiB"
        )
    if not 0 <= context_bytes <= memory_bytes:
        raise HostError(
            "VGPU-CFG-003", f"{context_bytes} bytes for a context", remedy="choose 0, or less than the GPU has"
        )
    if not driver_version.isascii() or not 1 <= len(driver_version) <= 23:
        raise HostError(
            "VGPU-CFG-003", f"driver version {shown(driver_version)}", remedy=f"write it as {DRIVER_VERSION}"
        )


def create(
    folder: Path,
    gpus: int = 2,
    memory_bytes: int = 80 << 30,
    driver_version: str = DRIVER_VERSION,
    *,
    context_bytes: int = 0,
    replace: bool = False,
) -> SimState:
    """Makes the folder, or finds it as it should be. context_bytes: device memory that each CUDA context takes.

    Raises HostError: VGPU-CFG-003 for a value that cannot be, VGPU-HOST-003 when the folder has other GPUs and
    `replace` is not set (processes that use the old ones keep them until they end), or cannot be written.
    """
    _check(gpus, memory_bytes, driver_version, context_bytes)
    image = _image(gpus, memory_bytes, driver_version, context_bytes)
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if (folder / "ctl").exists() and not replace:
            _check_same(folder, image)
        else:
            _write(folder / "ctl", image)
        for path in folder.glob("gpu*"):
            if path.name[3:].isdecimal() and int(path.name[3:]) >= gpus:
                path.unlink()
        for index in range(gpus):
            path = folder / f"gpu{index}"
            path.touch()
            path.chmod(0o666)
    except OSError as error:
        raise HostError(
            "VGPU-HOST-003",
            f"simulated GPUs in {folder}: {error.strerror}",
            remedy="run as root, or choose another folder",
        ) from None
    return read_state(folder)


def _write(path: Path, image: bytes) -> None:
    """All or nothing: a process either maps a whole ctl or finds none."""
    handle, name = tempfile.mkstemp(prefix=".ctl-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(image)
        os.chmod(name, 0o666)  # every user of every container
        os.rename(name, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _shape(data: bytes) -> list[tuple[object, ...]]:
    """What must not differ: the header's fixed fields, and each GPU's."""
    header = HEADER.unpack_from(data)
    gpus = [GPU.unpack_from(data, GPUS_AT + index * GPU.size) for index in range(header[3])]
    return [(*header[:5], header[6], header[8], header[9]), *((*gpu[:4], gpu[9]) for gpu in gpus)]


def _check_same(folder: Path, image: bytes) -> None:
    if _shape(_load(folder)) != _shape(image):
        raise HostError(
            "VGPU-HOST-003",
            f"{folder} has other simulated GPUs than asked for",
            remedy="end what uses them and make them anew (replace), or ask for the same number and memory",
        )


def _load(folder: Path) -> bytes:
    try:
        data = (folder / "ctl").read_bytes()
    except OSError as error:
        raise HostError(
            "VGPU-HOST-003", f"{folder / 'ctl'}: {error.strerror}", remedy="make the simulated GPUs: vgpu inventory"
        ) from None
    header = HEADER.unpack_from(data) if len(data) == BYTES else (0,) * 5
    if header[:3] != (MAGIC, VERSION, BYTES) or not 1 <= header[3] <= MAX_GPUS or header[4] != SLOTS:
        raise HostError(
            "VGPU-HOST-003", f"{folder / 'ctl'} is not a state file of this version", remedy="make it anew (replace)"
        )
    return data


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def _live_slots(folder: Path, data: bytes) -> list[int]:
    """Slots whose process holds the slot's lock."""
    high = min(HEADER.unpack_from(data)[5], SLOTS)
    used = [slot for slot in range(high) if SLOT.unpack_from(data, SLOTS_AT + slot * SLOT_BYTES)[0]]
    live = []
    fd = os.open(folder / "ctl", os.O_RDWR | os.O_CLOEXEC)
    try:
        for slot in used:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, SLOTS_AT + slot * SLOT_BYTES, 1, 0)
            if _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK:
                live.append(slot)
    finally:
        os.close(fd)
    return live


def _clock(real: int, virtual: int, now: int, ends: list[int]) -> int:
    """Virtual nanoseconds at real time `now`: 1/n of real time passes while n of `ends` lie ahead. As vgs_clock.c."""
    for end in sorted(ends):
        ahead = sum(each > virtual for each in ends)
        if ahead == 0:
            break
        step = min(end - virtual, (now - real) // ahead)
        if step > 0:
            real, virtual = real + step * ahead, virtual + step
    return virtual


def _gpu(data: bytes, index: int, live: list[int]) -> SimGpu:
    identity, name, pci, memory, _, real, virtual, _, lost, minor, _, launched = GPU.unpack_from(
        data, GPUS_AT + index * GPU.size
    )
    found = {}
    for slot in range(min(HEADER.unpack_from(data)[5], SLOTS)):
        at = SLOTS_AT + slot * SLOT_BYTES
        found[slot] = (SLOT.unpack_from(data, at), SLOT_GPU.unpack_from(data, at + SLOT.size + index * SLOT_GPU.size))
    now = _clock(real, virtual, time.monotonic_ns(), [each[3] for _, each in found.values()])
    processes = []
    for slot in live:
        (pid, namespace, start), (held, busy, contexts, end) = found[slot]
        if held or contexts:
            processes.append(SimProcess(pid, namespace, held, contexts, busy - max(0, end - now), start))
    return SimGpu(
        index=index,
        uuid=_text(identity),
        name=_text(name),
        memory_bytes=memory,
        used_bytes=sum(process.memory_bytes for process in processes),
        busy_ns=launched - sum(max(0, each[3] - now) for _, each in found.values()),
        pci_bus_id=_text(pci),
        minor=minor,
        lost=bool(lost),
        processes=tuple(processes),
    )


def read_state(folder: Path) -> SimState:
    """The GPUs as they are now. Raises HostError (VGPU-HOST-003) when there are none that this version can read."""
    data = _load(folder)
    header = HEADER.unpack_from(data)
    try:
        live = _live_slots(folder, data)
    except OSError as error:
        raise HostError("VGPU-HOST-003", f"{folder / 'ctl'}: {error.strerror}", remedy="run as root") from None
    gpus = tuple(_gpu(data, index, live) for index in range(header[3]))
    return SimState(_text(header[9]), header[6], header[8], _text(header[10]), gpus)


def set_fault(folder: Path, fault: str) -> None:
    """Faults for every process, at its next call; "" ends them. The language is that of VGPU_SIM_FAULT."""
    text = fault.encode()
    if len(text) >= FAULT_BYTES:
        raise HostError("VGPU-CFG-003", f"fault {shown(fault)}", remedy=f"shorten it to {FAULT_BYTES - 1} bytes")
    _load(folder)
    with open(folder / "ctl", "r+b") as file:
        file.seek(FAULT_AT)
        file.write(text.ljust(FAULT_BYTES, b"\0"))
        file.flush()
        _count_fault(file.fileno())


def lose_gpu(folder: Path, index: int, lost: bool = True) -> None:
    """The GPU falls off the bus for every process, or comes back."""
    _require_gpu(folder, index)
    with open(folder / "ctl", "r+b") as file:
        file.seek(GPUS_AT + index * GPU.size + GPU_LOST_AT)
        file.write(struct.pack("<I", lost))
        file.flush()
        _count_fault(file.fileno())


def raise_xid(folder: Path, index: int, xid: int) -> None:
    """A critical error of the GPU, which whoever has registered for such events is told. No program fails of it."""
    _require_gpu(folder, index)
    with open(folder / "ctl", "r+b") as file:
        at = GPUS_AT + index * GPU.size + GPU_XID_AT
        _, count = struct.unpack("<QQ", os.pread(file.fileno(), 16, at))
        os.pwrite(file.fileno(), struct.pack("<Q", xid), at)
        os.pwrite(file.fileno(), struct.pack("<Q", count + 1), at + 8)


def _require_gpu(folder: Path, index: int) -> None:
    count = len(read_state(folder).gpus)
    if not 0 <= index < count:
        raise HostError("VGPU-CFG-003", f"simulated GPU {index}", remedy=f"choose 0 to {count - 1}")


def _count_fault(fd: int) -> None:
    """Last of all: the libraries read the fault anew when this number has changed."""
    (count,) = struct.unpack("<I", os.pread(fd, 4, FAULT_COUNT_AT))
    os.pwrite(fd, struct.pack("<I", (count + 1) & 0xFFFFFFFF), FAULT_COUNT_AT)
