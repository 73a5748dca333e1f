"""What `vgpu doctor` looks at on the host. Each check is a small generator over an explicit `Host`."""

from __future__ import annotations

from vgpu.doctor import finding
from vgpu.doctor.finding import Check
from vgpu.doctor.host import disks, driver, engines, gpus, grants, hooks, kernel, libraries, programs, settings, state
from vgpu.doctor.host.machine import Host, NoPolicy

MODULES = (kernel, disks, driver, gpus, libraries, settings, engines, programs, hooks, state, grants)
CHECKS = tuple(check for module in MODULES for check in module.CHECKS)


def examine(host: Host) -> tuple[Check, ...]:
    """All checks, in the order of the manual. Changes nothing."""
    checks, left_out = [], []
    for group, name, look in CHECKS:
        try:
            checks.append(finding.run(group, name, look(host)))
        except NoPolicy:
            left_out.append(name)
    if left_out:
        unseen = finding.Unseen(", ".join(left_out), "they need a policy that is in force")
        checks.append(Check("vgpu", "without policy", (unseen,)))
    return tuple(checks)
