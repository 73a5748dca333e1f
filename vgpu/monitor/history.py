"""What the monitor has seen, in one file of fixed size: a ring of records, each with a sequence number and a checksum.

Record n lies at place n modulo the number of places. A writer that dies leaves at most one record with a wrong
checksum, which readers pass over. Readers take no lock. The file is made anew if it has another version or size.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Iterable
from types import TracebackType

from libcuda_wrap.bindings import DENIALS
from oci_hook.errors import HostError
from vgpu.monitor import truth
from vgpu.monitor.rows import Row

MAGIC, VERSION = b"VGPUHIST", 1
PLACE_BYTES = 512  # of a record; the header takes one place
DEFAULT_BYTES = 16 << 20
_HEADER = struct.Struct("<8sIIQ")  # magic, version, bytes of a place, places
_CHECK = struct.Struct("<I")
_DENIED_ROOM = 8
# sequence, boot time, Unix time, id, name, GPU, cores; memory, used, peak, denied, launches, busy, throttled, waited;
# processes, flags, driver's bytes, share of the container and of the GPU in 1/100 percent
_RECORD = struct.Struct(f"<4xQQQ200s64sII3Q{_DENIED_ROOM}Q4QIIQii")
_TORN_AT = struct.Struct("<Q")
_NOT_TOLD = -1
_NO_BYTES = (1 << 64) - 1
_UNKNOWN = 1 << 31  # flag: the container's own account could not be read
_KINDS = tuple(truth.KINDS)  # flag bit i: kind i; new kinds are added at the end


def path(state_dir: str) -> str:
    return f"{state_dir}/monitor/history"


class Writer:
    """The ring, open for its one writer.

    Raises HostError VGPU-MON-002 if another monitor has it, VGPU-MON-001 if it cannot be written.
    """

    def __init__(self, file: str, size_bytes: int = DEFAULT_BYTES) -> None:
        self._places = max(1, size_bytes // PLACE_BYTES - 1)
        try:
            os.makedirs(os.path.dirname(file), 0o755, exist_ok=True)
            self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._next = self._prepare()
            except OSError:
                os.close(self._fd)
                raise
        except BlockingIOError:
            remedy = "use that one, or end it first: systemctl stop vgpu-monitor"
            raise HostError("VGPU-MON-002", f"{file} is written by another monitor", remedy=remedy) from None
        except OSError as error:
            raise _unusable(file, error) from None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._fd)

    def append(self, rows: Iterable[Row]) -> None:
        """Each record by one write, which overwrites the oldest."""
        for row in rows:
            place = self._next % self._places
            os.pwrite(self._fd, _pack(self._next, row), (place + 1) * PLACE_BYTES)
            self._next += 1

    def _prepare(self) -> int:
        """The next sequence number; 1 in a new file."""
        header = _HEADER.pack(MAGIC, VERSION, PLACE_BYTES, self._places)
        size = (self._places + 1) * PLACE_BYTES
        if os.fstat(self._fd).st_size == size and os.pread(self._fd, _HEADER.size, 0) == header:
            data = os.pread(self._fd, size, 0)
            return max((sequence for sequence, _ in _places(data)), default=0) + 1
        os.ftruncate(self._fd, 0)
        os.ftruncate(self._fd, size)
        os.posix_fallocate(self._fd, 0, size)  # a full disk is told now, not in the middle
        os.pwrite(self._fd, header, 0)
        return 1


def read(file: str, since_ns: int = 0) -> list[Row]:
    """The rows from `since_ns` (boot time) on, oldest first. Raises HostError VGPU-MON-001 if there is no history."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise _unusable(file, error) from None
    magic, version, place_bytes, _ = _HEADER.unpack_from(data) if len(data) >= PLACE_BYTES else (b"", 0, 0, 0)
    if (magic, version, place_bytes) != (MAGIC, VERSION, PLACE_BYTES):
        remedy = "restart the monitor of this version: it makes the file anew"
        raise HostError("VGPU-MON-001", f"{file} is not a history of version {VERSION}", remedy=remedy)
    found = sorted(_places(data), key=lambda pair: pair[0])
    rows = (_unpack(record) for _, record in found)
    return [row for row in rows if row.time_ns >= since_ns]


def _places(data: bytes) -> Iterable[tuple[int, bytes]]:
    """(sequence, record) of each place that holds a whole one."""
    for at in range(PLACE_BYTES, len(data) - PLACE_BYTES + 1, PLACE_BYTES):
        record = data[at : at + _RECORD.size]
        (sequence,) = _TORN_AT.unpack_from(record, _CHECK.size)
        if sequence and _CHECK.unpack_from(record)[0] == zlib.crc32(record[_CHECK.size :]):
            yield sequence, record


def _pack(sequence: int, row: Row) -> bytes:
    flags = sum(1 << bit for bit, kind in enumerate(_KINDS) if kind in row.findings) | (0 if row.known else _UNKNOWN)
    denied = [_word(count) for count in row.denied] + [0] * (_DENIED_ROOM - len(row.denied))
    record = _RECORD.pack(
        sequence, row.time_ns, row.wall_ns, row.id.encode(), row.name.encode()[:64], row.gpu, row.cores_percent,
        _word(row.memory_bytes), _word(row.used_bytes), _word(row.peak_bytes), *denied,
        *map(_word, (row.launches, row.busy_ns, row.throttled_ns, row.waited)),
        row.processes, flags, _NO_BYTES if row.nvml_bytes is None else _word(row.nvml_bytes),
        _hundredths(row.sm_percent), _hundredths(row.gpu_percent),
    )  # fmt: skip
    checked = record[_CHECK.size :]
    return (_CHECK.pack(zlib.crc32(checked)) + checked).ljust(PLACE_BYTES, b"\0")


def _unpack(record: bytes) -> Row:
    (_, time_ns, wall_ns, identity, name, gpu, cores, *rest) = _RECORD.unpack(record)
    memory, used, peak, *rest = rest
    denied, rest = rest[:_DENIED_ROOM], rest[_DENIED_ROOM:]
    launches, busy, throttled, waited, processes, flags, nvml_bytes, share, gpu_share = rest
    return Row(
        time_ns, wall_ns, _text(identity), _text(name), gpu, cores, memory, used, peak, tuple(denied[: len(DENIALS)]),
        launches, busy, throttled, waited, processes,
        None if nvml_bytes == _NO_BYTES else nvml_bytes,
        None if share == _NOT_TOLD else share / 100,
        None if gpu_share == _NOT_TOLD else gpu_share / 100,
        frozenset(kind for bit, kind in enumerate(_KINDS) if flags >> bit & 1),
        not flags & _UNKNOWN,
    )  # fmt: skip


def _word(count: int) -> int:
    return min(count, _NO_BYTES - 1)  # counters are the container's to write, sums of them may not fit


def _hundredths(percent: float | None) -> int:
    return _NOT_TOLD if percent is None else min(round(percent * 100), 1 << 30)


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode("utf-8", "ignore")  # a name may have been cut within a character


def _unusable(file: str, error: OSError) -> HostError:
    why = "there is none yet" if isinstance(error, FileNotFoundError) else os.strerror(error.errno or 0).lower()
    remedy = "start the monitor as root, and let it run a while: systemctl start vgpu-monitor, or vgpu monitor"
    return HostError("VGPU-MON-001", f"the history {file}: {why}", remedy=remedy)
