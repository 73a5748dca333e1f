"""The quota and usage files of a container, read with the structs of include/vgw_quota.h and vgw_usage.h themselves.

Readers take no lock and disturb no program: each figure is one 64-bit word that a process writes at once.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cffi

from oci_hook.errors import HostError, shown

_INCLUDE = Path(__file__).resolve().parent / "include"
_F_OFD_GETLK = 36  # Linux 3.15; not in every Python's fcntl
_FLOCK = "hhxxxxqqixxxx"  # struct flock of 64-bit Linux
DENIALS = ("quota", "slot", "refused", "driver")  # enum vgw_denial; a test holds them together


@dataclass(frozen=True)
class GpuUse:
    """One GPU. used_bytes: charged now; ended_bytes: of it, to processes that have ended and were not reaped yet.

    denied: allocations refused, by reason (keys: DENIALS); denied_bytes: size of the last one. launches: those that a
    limiter has seen; busy_ns: their GPU time as measured; throttled_ns: how long launches waited, summed over threads;
    waits: how many waited, bucket i: less than 2**i microseconds and not less than half that.
    """

    used_bytes: int
    ended_bytes: int
    peak_bytes: int
    denied: dict[str, int]
    denied_bytes: int
    launches: int
    busy_ns: int
    throttled_ns: int
    waits: tuple[int, ...]

    @property
    def denied_count(self) -> int:
        """Allocations refused, whatever the reason."""
        return sum(self.denied.values())


@dataclass(frozen=True)
class ProcessUse:
    """One process. pid: in the container's pid namespace. held_bytes, busy_ns: per GPU. alive: its slot is locked."""

    pid: int
    start_ticks: int
    held_bytes: tuple[int, ...]
    busy_ns: tuple[int, ...]
    alive: bool


@dataclass(frozen=True)
class Usage:
    """armed_ns: CLOCK_BOOTTIME of the wrapper's first use, 0: not yet. gpus: in quota-file order, unused ones last."""

    armed_ns: int
    wrapper_version: int
    gpus: tuple[GpuUse, ...]
    processes: tuple[ProcessUse, ...]


@dataclass(frozen=True)
class GpuQuota:
    """What a container may use of one GPU. priority: 0 low, 1 normal, 2 high. charge_permille: 0: as measured."""

    uuid: str
    memory_bytes: int
    cores_percent: int
    flags: int
    priority: int
    charge_permille: int = 0
    charge_until_s: int = 0


@cache
def ffi() -> Any:
    """The types of both headers. Preprocessor lines and assertions go; array sizes are put in."""
    types = cffi.FFI()
    for name in ("vgw_quota.h", "vgw_usage.h", "vgw_share.h"):
        text = (_INCLUDE / name).read_text("utf-8")
        text = re.sub(r"_Static_assert\(.*?\);\n", "", text, flags=re.DOTALL)
        text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
        for size in set(re.findall(r"\[(VGW_\w+)\]", text)):
            text = text.replace(f"[{size}]", f"[{constants()[size]}]")
        types.cdef(text)
    return types


@cache
def constants() -> dict[str, int]:
    """The headers' numbers by name, VGW_QUOTA_MAGIC and so on."""
    found: dict[str, int] = {}
    for name in ("vgw_quota.h", "vgw_usage.h", "vgw_share.h"):
        for key, value in re.findall(r"#define (VGW_\w+)\s+(0x[0-9a-f]+|\d+)u\b", (_INCLUDE / name).read_text("utf-8")):
            found[key] = int(value, 0)
    return found


def read_quota(path: Path) -> tuple[GpuQuota, ...]:
    """The GPUs of a quota file, in its order. Raises HostError (VGPU-HOST-009) for a file of another version."""
    quota = _struct(path, "quota", path.read_bytes() if path.is_file() else b"")
    if not 0 < quota.gpu_count <= constants()["VGW_MAX_GPUS"]:
        raise _bad(path, f"{quota.gpu_count} GPUs, 1 to {constants()['VGW_MAX_GPUS']} expected")
    return tuple(
        GpuQuota(
            ffi().string(gpu.uuid).decode(errors="backslashreplace"),
            gpu.memory_bytes,
            gpu.cores_percent,
            gpu.flags,
            gpu.priority,
            gpu.charge_permille,
            gpu.charge_until_s,
        )
        for gpu in quota.gpus[0 : quota.gpu_count]
    )


def read_usage(path: Path) -> Usage:
    """What is in use, and by whom. Raises HostError (VGPU-HOST-009) for no file, or one of another version."""
    try:
        # not blocked by a FIFO: in a user's own folder there may be anything
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as err:
        raise _bad(path, os.strerror(err.errno or 0)) from None
    try:
        usage = _struct(path, "usage", os.pread(fd, ffi().sizeof("struct vgw_usage"), 0))
        processes = tuple(
            ProcessUse(
                pid=slot.pid,
                start_ticks=slot.start_ticks,
                held_bytes=tuple(gpu.held >> 20 for gpu in slot.gpus),
                busy_ns=tuple(gpu.busy_ns for gpu in slot.gpus),
                alive=_locked(fd, number),
            )
            for number, slot in enumerate(usage.slots[0 : min(usage.slot_high, constants()["VGW_MAX_SLOTS"])])
            if slot.pid
        )
    finally:
        os.close(fd)
    gpus = tuple(
        GpuUse(
            used_bytes=gpu.word >> 20,
            ended_bytes=sum(process.held_bytes[number] for process in processes if not process.alive),
            peak_bytes=gpu.peak_bytes,
            denied=dict(zip(DENIALS, gpu.denied, strict=False)),
            denied_bytes=gpu.denied_bytes,
            launches=gpu.launches,
            busy_ns=gpu.busy_ns,
            throttled_ns=gpu.throttled_ns,
            waits=tuple(gpu.waits),
        )
        for number, gpu in enumerate(usage.gpus)
    )
    return Usage(usage.armed_ns, usage.wrapper_version, gpus, processes)


def _struct(path: Path, kind: str, data: bytes) -> Any:
    """The file's bytes as its struct, once magic, version and size are what the header says."""
    size, number = ffi().sizeof(f"struct vgw_{kind}"), constants()
    if len(data) < size:
        raise _bad(path, f"{len(data)} bytes, {size} expected")
    value = ffi().new(f"struct vgw_{kind} *")
    ffi().memmove(value, data, size)
    prefix = f"VGW_{kind.upper()}"
    if value.magic != number[f"{prefix}_MAGIC"]:
        raise _bad(path, f"starts with {value.magic:#010x}, {number[f'{prefix}_MAGIC']:#010x} expected")
    if (value.version, value.bytes) != (number[f"{prefix}_VERSION"], size):
        raise _bad(path, f"version {value.version} of {value.bytes} bytes, {number[f'{prefix}_VERSION']} expected")
    return value


def _locked(fd: int, slot: int) -> bool:
    """Whether a process owns the slot: somebody holds the lock on its first byte."""
    start = ffi().offsetof("struct vgw_usage", "slots") + slot * ffi().sizeof("struct vgw_usage_slot")
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)
    found: int = struct.unpack(_FLOCK, fcntl.fcntl(fd, _F_OFD_GETLK, asked))[0]
    return found != fcntl.F_UNLCK


def _bad(path: Path, what: str) -> HostError:
    remedy = "use the vgpu that started this container, or start the container again"
    return HostError("VGPU-HOST-009", f"{shown(str(path), 200)}: {what}", remedy=remedy)
