"""The container's two files on the host: do they still say what the ledger says, and has the wrapper been in use?"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from libcuda_wrap import bindings
from oci_hook import ledger, quota_file
from oci_hook.errors import VgpuError
from oci_hook.records import Allocation
from vgpu.doctor.finding import CannotSee, Result, Seen, found, refused
from vgpu.doctor.host.machine import why

_SIZES = {"quota": quota_file.QUOTA_BYTES, "usage": quota_file.USAGE_BYTES}
_MAGIC = {"quota": quota_file.QUOTA_MAGIC, "usage": quota_file.USAGE_MAGIC}


def identities(box: str) -> dict[str, tuple[int, int]]:
    """(st_dev, st_ino) of the files that are there."""
    found_files = {}
    for name in _SIZES:
        try:
            status = os.lstat(f"{box}/{name}")
        except OSError:
            continue
        found_files[name] = status.st_dev, status.st_ino
    return found_files


def usage(state_dir: str, container: str) -> bindings.Usage | None:
    """None where it cannot be read; `files` says why."""
    try:
        return bindings.read_usage(Path(ledger.folder(state_dir, container), "box/usage"))
    except (VgpuError, OSError, ValueError):
        return None


def files(state_dir: str, allocation: Allocation) -> Iterator[Result]:
    """Both files against their layout, and the quota against the ledger's entry."""
    box = f"{ledger.folder(state_dir, allocation.id)}/box"
    whole = True
    for name in _SIZES:
        for finding in _damage(box, name):
            whole = False
            yield finding
    if not whole:
        return
    try:
        yield from _quota(f"{box}/quota", allocation)
        yield _armed(bindings.read_usage(Path(box, "usage")))
    except VgpuError as error:  # of another version
        yield refused(error, box)


def _damage(box: str, name: str) -> Iterator[Result]:
    path, wanted = f"{box}/{name}", _SIZES[name]
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        yield found("VGPU-CTR-003", path, "it is not there any more")
        return
    except OSError as error:
        raise CannotSee(path, why(error)) from None
    try:
        size, head = os.fstat(descriptor).st_size, os.pread(descriptor, 4, 0)
    finally:
        os.close(descriptor)
    if size != wanted:
        yield found("VGPU-CTR-003", path, f"it has {size} bytes instead of {wanted}: it was cut or replaced")
    elif int.from_bytes(head, "little") != _MAGIC[name]:
        yield found("VGPU-CTR-003", path, f"it begins with {head.hex()}: it was overwritten")


def _quota(path: str, allocation: Allocation) -> Iterator[Result]:
    with open(path, "rb") as file:
        whose = quota_file.read_identity(file.read(quota_file.QUOTA_BYTES))
    if whose != quota_file.identity(allocation.id, allocation.placement.slices):
        yield found("VGPU-CTR-003", path, "it is of another container, or of other GPUs")
        return
    for part, live in zip(allocation.placement.slices, bindings.read_quota(Path(path)), strict=False):
        said = part.memory_bytes, part.cores_percent or 100
        if said != (live.memory_bytes, live.cores_percent):
            ledgers = f"the ledger has {said[0]}, {said[1]} %"
            evidence = f"GPU {part.index}: {live.memory_bytes} bytes, {live.cores_percent} %; {ledgers}"
            yield found("VGPU-CTR-003", path, evidence)


def _armed(use: bindings.Usage) -> Seen:
    if not use.armed_ns:
        return Seen("the wrapper has not been used yet")
    since_s = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - use.armed_ns) // 1_000_000_000
    version = ".".join(str(use.wrapper_version >> shift & 255) for shift in (16, 8, 0))
    return Seen(f"armed by wrapper {version}, {since_s} s ago")
