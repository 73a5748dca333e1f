"""The bytes of the quota file and of a fresh usage file. Source: vgw_quota.h, version 1, and vgw_usage.h, version 2."""

from __future__ import annotations

from _struct import Struct  # `import struct` is a file more to look for

from oci_hook.records import Slice
from oci_hook.values import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_GPUS = 16
FLAG_SOFT = 1
PRIORITIES = {"low": 0, "normal": 1, "high": 2}

_HEADER = Struct("<4I80sQ24x")
_GPU = Struct("<48sQ3I60x")
QUOTA_BYTES = _HEADER.size + MAX_GPUS * _GPU.size
QUOTA_MAGIC, QUOTA_VERSION = 0x51574756, 1
GENERATION_AT = 96  # live, as the three of each GPU that follow: offsets from `gpu_at`
MEMORY_AT, CORES_AT, FLAGS_AT, CHARGE_AT = 48, 56, 60, 68
_LIVE_FLAGS = Struct("<2I")

_USAGE_HEADER = Struct("<4IQ2I96x")
USAGE_BYTES = 606336
USAGE_SLOTS = 1024
USAGE_MAGIC, USAGE_VERSION = 0x55574756, 2


def quota(container: str, slices: Sequence[Slice], *, burst: str, priority: str) -> bytes:
    """The quota file, generation 1. slices: 1 to MAX_GPUS, in the container's device order."""
    assert 0 < len(slices) <= MAX_GPUS, len(slices)
    parts = [_HEADER.pack(QUOTA_MAGIC, QUOTA_VERSION, QUOTA_BYTES, len(slices), _text(container, 80), 1)]
    flags = FLAG_SOFT if burst == "soft" else 0
    for part in slices:
        cores = part.cores_percent or 100  # in the file 100 says: no limit
        parts.append(_GPU.pack(_text(part.uuid, 48), part.memory_bytes, cores, flags, PRIORITIES[priority]))
    return b"".join(parts).ljust(QUOTA_BYTES, b"\0")


def gpu_at(number: int) -> int:
    """Where the container's GPU `number` begins."""
    return _HEADER.size + number * _GPU.size


def live_flags(data: bytes, number: int) -> tuple[int, int]:
    """Flags and priority of the container's GPU `number`; zeros for a file that is none."""
    if len(data) != QUOTA_BYTES:
        return 0, 0
    flags, priority = _LIVE_FLAGS.unpack_from(data, gpu_at(number) + FLAGS_AT)
    return flags, priority


def identity(container: str, slices: Sequence[Slice]) -> tuple[object, ...]:
    """What stays the same in a quota file as long as it lives, as `read_identity` finds it."""
    uuids = tuple(_text(part.uuid, 48).ljust(48, b"\0") for part in slices)
    header = (QUOTA_MAGIC, QUOTA_VERSION, QUOTA_BYTES, len(slices))
    return (*header, _text(container, 80).ljust(80, b"\0"), uuids)


def read_identity(data: bytes) -> tuple[object, ...]:
    """data: QUOTA_BYTES bytes, whatever they hold."""
    magic, version, size, count, container, _ = _HEADER.unpack_from(data)
    uuids = tuple(data[gpu_at(number) :][:48] for number in range(min(count, MAX_GPUS)))
    return magic, version, size, count, container, uuids


def usage_header() -> bytes:
    """The start of a usage file that nobody has used; the rest of its USAGE_BYTES is zero."""
    return _USAGE_HEADER.pack(USAGE_MAGIC, USAGE_VERSION, USAGE_BYTES, USAGE_SLOTS, 0, 0, 0)


def _text(text: str, room: int) -> bytes:
    return text.encode()[: room - 1]  # pack fills up with NUL, and the last byte stays one
