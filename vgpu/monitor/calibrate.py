"""The limiter's outer loop: what part of a launch's measured time was the container's own.

Events around a launch also measure the time slices that neighbours had meanwhile. The driver's own account tells how
much of the GPU the container really had; their ratio is what the limiter should charge.

The quota page has the field, `charge_permille`; nothing writes it yet. The ratio is of what was measured, whatever was
charged for it.
"""

from __future__ import annotations

from vgpu.monitor.rates import Rate

FULL = 1000  # permille: all that is measured is charged
_LEAST_BUSY = 0.05  # below, the driver's figure is too coarse: whole percents
_LEAST_CHARGE = 100  # a container is never charged less than a tenth: its neighbours' load must not set it free


def charge_permille(rate: Rate) -> int | None:
    """What to charge of the measured time; None where the driver does not say, or too little ran to tell."""
    if rate.sm is None or rate.busy < _LEAST_BUSY:
        return None
    return max(_LEAST_CHARGE, min(FULL, round(FULL * rate.sm / rate.busy)))
