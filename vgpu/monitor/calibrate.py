"""The limiter's outer loop: what part of a launch's measured time was the container's own.

Events around a launch also measure the time slices that neighbours had meanwhile. The driver's own account tells how
much of the GPU the container really had; their ratio is what the limiter should charge.

The quota page has the field, `charge_permille`, but nothing may write it yet: `publish` does so once the bindings have
a writer. The ratio is of what was measured; who charges by an earlier one already must be told the product.
"""

from __future__ import annotations

from pathlib import Path

from libcuda_wrap import bindings
from oci_hook import ledger
from vgpu.monitor.rates import Rate, rates
from vgpu.monitor.rows import Row
from vgpu.monitor.sample import Sample

FULL = 1000  # permille: all that is measured is charged
_LEAST_BUSY = 0.05  # below, the driver's figure is too coarse: whole percents
_LEAST_CHARGE = 100  # a container is never charged less than a tenth: its neighbours' load must not set it free


def charge_permille(rate: Rate) -> int | None:
    """What to charge of the measured time; None where the driver does not say, or too little ran to tell."""
    if rate.sm is None or rate.busy < _LEAST_BUSY:
        return None
    return max(_LEAST_CHARGE, min(FULL, round(FULL * rate.sm / rate.busy)))


def publish(state_dir: str, sample: Sample, before: list[Row], after: list[Row]) -> None:
    """Writes the ratio into the quota pages, where the installed layout has a field for it."""
    write = getattr(bindings, "write_charge_permille", None)
    if write is None:
        return
    found = rates(before, after)
    for container in sample.containers:
        for number, part in enumerate(container.slices):
            rate = found.get((container.id, part.index))
            permille = charge_permille(rate) if rate else None
            if permille is not None:
                write(Path(ledger.folder(state_dir, container.id), "box/quota"), number, permille)
