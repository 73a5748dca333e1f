"""What happened between two moments: from counters to shares of the time that passed."""

from __future__ import annotations

from dataclasses import dataclass

from vgpu.monitor.rows import Row


@dataclass(frozen=True, slots=True)
class Rate:
    """One container on one GPU between two samples.

    seconds: the time that passed. busy: share of it that its launches ran on the GPU, as the limiter measured.
    sm: its share as the driver tells, None if not. throttled: seconds that launches waited for the quota per second
    that passed; above 1 when several threads waited at once. denied: refused allocations, by reason.
    """

    seconds: float
    busy: float
    sm: float | None
    throttled: float
    launches: float
    denied: tuple[int, ...]

    @property
    def used(self) -> float:
        """Share of the GPU's time that the container used: the driver's figure, else the limiter's."""
        return self.busy if self.sm is None else self.sm


def rate(before: Row, after: Row) -> Rate | None:
    """None where nothing can be said: no time passed, an account was unreadable, or a counter went back.

    Counters are written by the container: a jump that no time could hold is cut to what fits.
    """
    seconds = (after.time_ns - before.time_ns) / 1e9
    counters = [(one.launches, one.busy_ns, one.throttled_ns, *one.denied) for one in (before, after)]
    if seconds <= 0 or not (before.known and after.known) or any(new < old for old, new in zip(*counters, strict=True)):
        return None
    return Rate(
        seconds=seconds,
        busy=min(1.0, (after.busy_ns - before.busy_ns) / 1e9 / seconds),
        sm=None if after.sm_percent is None else min(1.0, after.sm_percent / 100),
        throttled=(after.throttled_ns - before.throttled_ns) / 1e9 / seconds,
        launches=(after.launches - before.launches) / seconds,
        denied=tuple(new - old for old, new in zip(before.denied, after.denied, strict=True)),
    )


def rates(before: list[Row], after: list[Row]) -> dict[tuple[str, int], Rate]:
    """(container id, GPU) -> rate, for all that are in both."""
    old = {(row.id, row.gpu): row for row in before}
    found = {}
    for row in after:
        earlier = old.get((row.id, row.gpu))
        one = rate(earlier, row) if earlier else None
        if one:
            found[row.id, row.gpu] = one
    return found
