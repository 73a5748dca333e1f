"""What `vgpu doctor` looks at on the host. Each check is a small generator over an explicit `Host`."""

from __future__ import annotations

from vgpu.doctor import finding
from vgpu.doctor.finding import Check
from vgpu.doctor.host import kernel
from vgpu.doctor.host.machine import Host

CHECKS = (*kernel.CHECKS,)


def examine(host: Host) -> tuple[Check, ...]:
    """All checks, in the order of the manual. Changes nothing."""
    return tuple(finding.run(group, name, check(host)) for group, name, check in CHECKS)
