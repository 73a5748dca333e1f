"""The kernel and what it is set up for: version, control groups, security modules, clock."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from vgpu.doctor.finding import CannotSee, Result, Seen, Unseen, found
from vgpu.doctor.host.machine import Host, NoPolicy, Run, why

OLDEST = (5, 12)  # mount_setattr, which the hook makes its mounts private and read-only with
_WRITABLE_TYPES = ("container_file_t", "svirt_sandbox_file_t")  # what SELinux lets a container write
_AHEAD_S = 120.0  # clocks of a shared file system may differ by so much


def version(host: Host) -> Iterator[Result]:
    text = (host.read("/proc/sys/kernel/osrelease") or "").strip()
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None:
        raise CannotSee("/proc/sys/kernel/osrelease", f"no kernel's version: {text[:40]!r}")
    if (int(match[1]), int(match[2])) < OLDEST:
        yield found("VGPU-KRN-001", "kernel", f"Linux {text}; mount_setattr came with {OLDEST[0]}.{OLDEST[1]}")
    else:
        yield Seen(f"Linux {text}")


def control_groups(host: Host) -> Iterator[Result]:
    mounts = host.read("/proc/mounts")
    if mounts is None:
        raise CannotSee("/proc/mounts", "there is none")
    by_type: dict[str, list[str]] = {}
    for line in mounts.splitlines():
        _, place, kind, *_ = [*line.split(), "", "", ""]
        by_type.setdefault(kind, []).append(place)
    if "/sys/fs/cgroup" in by_type.get("cgroup2", []):
        yield Seen("control groups version 2")
    elif old := by_type.get("cgroup"):
        yield found("VGPU-KRN-002", "control groups", f"version 1: {len(old)} hierarchies, {old[0]} and others")
    else:
        yield found("VGPU-KRN-002", "control groups", "none are mounted below /sys/fs/cgroup", severity="failure")


def selinux(host: Host) -> Iterator[Result]:
    enforcing = (host.read("/sys/fs/selinux/enforce") or "").strip()
    if enforcing != "1":
        yield Seen("SELinux permissive" if enforcing else "no SELinux")
        return
    folder = f"{host.policy.state_dir}/containers"
    try:
        label = os.getxattr(folder, "security.selinux").decode("utf-8", "replace").rstrip("\0")
    except FileNotFoundError:
        yield Seen("SELinux enforcing; nothing given out yet")
        return
    except OSError as error:
        raise CannotSee(f"the SELinux label of {folder}", why(error)) from None
    kind = [*label.split(":"), "", "", ""][2]
    if kind in _WRITABLE_TYPES:
        yield Seen(f"SELinux enforcing, {folder} is {kind}")
        return
    name = _as_selinux_has_it(host, folder)
    remedy = f"semanage fcontext -a -t {_WRITABLE_TYPES[0]} '{name}(/.*)?' && restorecon -R {folder}"
    yield found("VGPU-KRN-003", folder, f"SELinux is enforcing, and the label is {label}", remedy=remedy)


def _as_selinux_has_it(host: Host, path: str) -> str:
    """semanage refuses a name whose beginning the policy takes for another's: /run is /var/run to RHEL 9, the other way
    round to Debian."""
    settings = host.read("/etc/selinux/config") or ""
    kind = next((line[12:].strip() for line in settings.splitlines() if line.startswith("SELINUXTYPE=")), "targeted")
    aliases = host.read(f"/etc/selinux/{kind}/contexts/files/file_contexts.subs_dist") or ""
    for words in map(str.split, aliases.splitlines()):
        if len(words) == 2 and path.startswith(f"{words[0]}/"):
            return words[1] + path.removeprefix(words[0])
    return path


def apparmor(host: Host) -> Iterator[Result]:
    if not (host.read("/sys/module/apparmor/parameters/enabled") or "").startswith("Y"):
        yield Seen("no AppArmor")
        return
    profiles = host.read("/sys/kernel/security/apparmor/profiles")
    if profiles is None:
        yield Unseen("AppArmor's profiles", "securityfs is not mounted on /sys/kernel/security")
        return
    policy = host.policy
    ours = {policy.runtime, os.path.basename(policy.runtime), f"{policy.prefix}/bin/vgpu-runtime", "vgpu-runtime"}
    enforced = [line.partition(" (")[0] for line in profiles.splitlines() if line.endswith("(enforce)")]
    for name in sorted(ours & set(enforced)):
        yield found("VGPU-KRN-004", name, "AppArmor enforces a profile on it", remedy=f"aa-complain {name}")
    yield Seen(f"AppArmor, {len(enforced)} profiles in force")


def clock(host: Host) -> Iterator[Result]:
    now = host.now_s()
    ahead = [(written - now, path) for path, written in _written(host) if written > now + _AHEAD_S]
    if ahead:
        seconds, path = max(ahead)
        evidence = f"{path} was written {seconds:.0f} s in the future, so the clock was set back"
        yield found("VGPU-KRN-005", "clock", evidence)
    if host.read("/run/systemd/timesync/synchronized") is not None or host.clock_is_synchronised():
        yield Seen("the clock is synchronised")
    else:
        yield found("VGPU-KRN-006", "clock", "the kernel's clock says that nothing synchronises it (adjtimex)")


def _written(host: Host) -> Iterator[tuple[str, float]]:
    """What vgpu itself has written, and when: times that must have been before now."""
    try:
        policy = host.policy
    except NoPolicy:
        return
    for path in (f"{policy.log_dir}/audit.jsonl", f"{policy.state_dir}/inventory.json", f"{policy.prefix}/lib/vgpu"):
        try:
            yield path, os.stat(path).st_mtime
        except OSError:
            continue


CHECKS: tuple[tuple[str, str, Run], ...] = (
    ("host", "kernel", version),
    ("host", "cgroups", control_groups),
    ("host", "SELinux", selinux),
    ("host", "AppArmor", apparmor),
    ("host", "clock", clock),
)
