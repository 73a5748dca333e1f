"""The limiter's outer loop: what a container is charged, brought to what the driver says that it had.

Between neighbours that leave no pause the limiter measures their time slices with its own kernels; kernels whose
duration varies it charges by their shorter runs. Both show in the driver's account. Their ratio goes into the quota
page, `charge_permille`, with the moment until which it holds: without a monitor what the limiter measures counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from oci_hook import ledger, resize
from oci_hook.errors import VgpuError
from vgpu.monitor.rates import Rate, rates
from vgpu.monitor.rows import REST, Row
from vgpu.monitor.sample import Sample

FULL = 1000  # permille: what is measured is charged
LEAST, MOST = 250, 2000  # whatever the driver says: CHARGE_… in libcuda_wrap/src/bucket.c
_STEP = 0.5  # of the way, each time: the driver's figures are whole percents of a part of the time
_LEAST_BUSY = 0.05  # below, they are too coarse
_KEEP = 0.9  # of what was found before, at each look
_ROUNDS = 3  # looks that may fail before it ends


class Account:
    """What a container had and what was measured of it, over its last looks: one kernel can be longer than a look."""

    def __init__(self) -> None:
        self._had = self._charged = self._measured = self._seconds = 0.0

    def charge_permille(self, before: int, rate: Rate) -> int | None:
        """before: in force while the container was charged rate.busy. None: it cannot be told, so it is left alone.

        A driver that says nothing but 0 for a container that was at work does not know.
        """
        if rate.sm is None:
            return None
        self._had = self._had * _KEEP + rate.sm * rate.seconds
        self._charged = self._charged * _KEEP + rate.busy * rate.seconds
        self._measured = self._measured * _KEEP + rate.busy * rate.seconds * FULL / before
        self._seconds = self._seconds * _KEEP + rate.seconds
        if not self._had or self._charged < _LEAST_BUSY * self._seconds:
            return None
        right = FULL * self._had / self._measured
        return max(LEAST, min(MOST, round(before + (right - before) * _STEP)))


class Charges:
    """What was written for whom; it is written again with every look, since it holds for a few looks only."""

    def __init__(self, state_dir: str, interval_s: float) -> None:
        self._state_dir = state_dir
        self._hold_s = int(_ROUNDS * interval_s) + 1
        self._rows: list[Row] = []
        self._now: dict[tuple[str, int], int] = {}
        self._accounts: dict[tuple[str, int], Account] = {}

    def look(self, sample: Sample, rows: Sequence[Row]) -> None:
        """rows: the sample's. A container that ends meanwhile, or whose files cannot be used, is passed over."""
        rows = [row for row in rows if row.id != REST]
        for key, rate in rates(self._rows, list(rows)).items():
            account = self._accounts.setdefault(key, Account())
            value = account.charge_permille(self._now.get(key, FULL), rate)
            if value is not None:
                self._now[key] = value
        self._rows = list(rows)
        present = {(row.id, row.gpu) for row in rows}
        self._now = {key: value for key, value in self._now.items() if key in present}
        self._accounts = {key: account for key, account in self._accounts.items() if key in present}
        until_s = sample.time_ns // 1_000_000_000 + self._hold_s
        for container in sample.containers:
            indices = [part.index for part in container.slices]
            values = {number: self._now.get((container.id, index)) for number, index in enumerate(indices)}
            with contextlib.suppress(VgpuError):
                self._write(container.id, {number: value for number, value in values.items() if value}, until_s)

    def _write(self, container: str, values: dict[int, int], until_s: int) -> None:
        allocation = ledger.read(self._state_dir, container) if values else None
        if allocation is None:
            return
        with resize.LiveQuota(self._state_dir, allocation) as live:
            for number, value in values.items():
                live.charge(number, value, until_s)
