"""The few figures of a usage file that placement and bills need, without the wrapper's bindings. Source: vgw_usage.h,
version 2. The container writes the file: every figure can be anything, and is held to what is possible.
"""

from __future__ import annotations

import os
import time
from _struct import Struct

from oci_hook import ledger
from oci_hook.quota_file import USAGE_BYTES, USAGE_MAGIC, USAGE_VERSION
from oci_hook.values import TYPE_CHECKING, dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oci_hook.records import Allocation

_HEADER = Struct("<4IQ")
_HEADER_BYTES, _GPU_BYTES = 128, 1024
_FIGURES = Struct("<64xQ128x2Q")  # peak_bytes at 64, busy_ns at 200, throttled_ns at 208


@dataclass(frozen=True)
class Use:
    """Of one GPU, since the container's start. throttled_ns: summed over threads."""

    uuid: str
    peak_bytes: int
    busy_ns: int
    throttled_ns: int


def read(state_dir: str, allocation: Allocation) -> tuple[int, tuple[Use, ...]]:
    """CLOCK_BOOTTIME of the wrapper's first use, 0: none; and the figures of each slice; 0 and none where it cannot be
    read."""
    try:
        path = f"{ledger.folder(state_dir, allocation.id)}/box/usage"
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            wanted = _HEADER_BYTES + _GPU_BYTES * len(allocation.placement.slices)
            data = os.pread(descriptor, wanted, 0)
        finally:
            os.close(descriptor)
        if len(data) < wanted:
            return 0, ()
        magic, version, size, _, armed_ns = _HEADER.unpack_from(data)
        if (magic, version, size) != (USAGE_MAGIC, USAGE_VERSION, USAGE_BYTES):
            return 0, ()
        used = []
        for number, part in enumerate(allocation.placement.slices):
            peak, busy, throttled = _FIGURES.unpack_from(data, _HEADER_BYTES + number * _GPU_BYTES)
            used.append(Use(part.uuid, min(peak, part.memory_bytes), busy, throttled))
        return armed_ns, tuple(used)
    except OSError:
        return 0, ()


def load(state_dir: str, given: Sequence[Allocation]) -> dict[str, float]:
    """UUID -> share of its time that its containers were busy or waited, each on average since it first used a GPU."""
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    shares: dict[str, float] = {}
    for allocation in given:
        armed_ns, used = read(state_dir, allocation)
        for item in used if 0 < armed_ns < now else ():
            share = (item.busy_ns + item.throttled_ns) / (now - armed_ns)
            shares[item.uuid] = round(shares.get(item.uuid, 0.0) + min(share, 1.0), 6)
    return shares
