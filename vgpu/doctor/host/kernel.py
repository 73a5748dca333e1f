"""The kernel and what it is set up for: version, control groups, security modules, clock."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vgpu.doctor.finding import CannotSee, Result, Seen, found
from vgpu.doctor.host.machine import Host, Run

OLDEST = (5, 12)  # mount_setattr, which the hook makes its mounts private and read-only with


def version(host: Host) -> Iterator[Result]:
    text = (host.read("/proc/sys/kernel/osrelease") or "").strip()
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None:
        raise CannotSee("/proc/sys/kernel/osrelease", f"no kernel's version: {text[:40]!r}")
    if (int(match[1]), int(match[2])) < OLDEST:
        yield found("VGPU-KRN-001", "kernel", f"Linux {text}; mount_setattr came with {OLDEST[0]}.{OLDEST[1]}")
    else:
        yield Seen(f"Linux {text}")


CHECKS: tuple[tuple[str, str, Run], ...] = (("host", "kernel", version),)
