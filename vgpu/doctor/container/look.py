"""vgpu doctor container: looks at everything about one container, in the order that makes the answers fit together."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from oci_hook import elf, inventory, ledger
from oci_hook.errors import HostError, VgpuError
from oci_hook.records import Allocation, Policy
from vgpu import output, ps, resize, users
from vgpu.doctor import finding, report
from vgpu.doctor.container import account, judge, mapped, worker
from vgpu.doctor.finding import Check, Result, Seen, Unseen, found
from vgpu.monitor import truth
from vgpu.monitor.cgroups import Processes
from vgpu.monitor.collect import Collector
from vgpu.monitor.sample import Sample

GROUP = "container"
_AGAIN_S = 0.3  # before a difference of the two accounts is believed


def resolve(policy: Policy, wanted: str) -> tuple[Policy, Allocation]:
    """The container of this id, its beginning, or name, as `vgpu set` finds it, and whose it is: the policy is the
    user's, if it is one of a rootless engine. Raises RequestError VGPU-SET-001.
    """
    if policy.grant is not None and policy.state_dir == policy.host_state_dir:
        raise HostError("VGPU-HOST-003", "a container's folder can only be read by root", remedy="run it as root")
    theirs = {one.id: (user.policy, one) for user in users.every(policy) for one in users.running(user)}
    entries = _entries(policy, wanted)
    own = {one.id: (policy, one) for one in entries}
    found = {**theirs, **own}
    return found[resize.find(wanted, [one for _, one in found.values()]).id]


def _entries(policy: Policy, wanted: str) -> list[Allocation]:
    entries = []
    for name in ps.names(policy.state_dir):
        try:
            entry = ledger.read(policy.state_dir, name)
        except VgpuError as error:
            if name.startswith(wanted):
                raise
            output.message(error.line())
            continue
        entries += [entry] if entry else []
    return entries


def examine(policy: Policy, allocation: Allocation, proc: str = "/proc") -> report.Report:
    """All checks. NVML is asked before the processes' maps, and these before the account: whoever the driver knows must
    have been mapped and accounted by then."""
    collector = Collector(policy, proc)
    try:
        sample = collector.sample()
        processes = look(allocation, proc)
        expected = expectations(policy, allocation)
        on_gpus = _on_gpus(sample, allocation.id)
        checks = [
            finding.run(GROUP, "slice", _slice(policy, allocation)),
            finding.run(GROUP, "account", account.files(policy.state_dir, allocation)),
            finding.run(GROUP, "processes", _processes(processes, expected, on_gpus)),
            finding.run(GROUP, "driver", _driver(sample, collector, allocation.id)),
        ]
    finally:
        collector.close()
    facts = _facts(policy, allocation, checks, processes, expected, on_gpus)
    return report.Report("container", allocation.name or allocation.id[:12], tuple(checks), facts)


def look(allocation: Allocation, proc: str = "/proc") -> list[mapped.Process]:
    """Every process of the container's control group, or of its mount namespace."""
    known = Processes({allocation.id: allocation.init.pid if allocation.init else 0}, proc)
    pids = [int(name) for name in os.listdir(proc) if name.isdigit() and known.container(int(name)) == allocation.id]
    return list(worker.look(sorted(pids), proc))


def expectations(policy: Policy, allocation: Allocation) -> judge.Expected:
    wrappers, drivers = judge.mounted(ledger.read_plan(policy.state_dir, allocation.id))
    box = account.identities(f"{ledger.folder(policy.state_dir, allocation.id)}/box")
    return judge.Expected(wrappers, drivers, box, _installed_builds(policy))


def _installed_builds(policy: Policy) -> dict[str, str]:
    folder, builds = inventory.wrapper_folder(policy), {}
    for role, name in (("cuda", mapped.CUDA), ("nvml", mapped.NVML)):
        try:
            descriptor = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            builds[role] = elf.parse(lambda offset, size, at=descriptor: os.pread(at, size, offset)).build_id  # type: ignore[misc]
        except elf.ElfError:
            continue
        finally:
            os.close(descriptor)
    return builds


def _on_gpus(sample: Sample, container: str) -> dict[int, list[int]]:
    """pid -> GPUs that the driver says it uses."""
    used: dict[int, list[int]] = {}
    for gpu in sample.gpus:
        for process in gpu.processes:
            if process.container == container:
                used.setdefault(process.pid, []).append(gpu.index)
    return used


def _slice(policy: Policy, allocation: Allocation) -> Iterator[Result]:
    who = allocation.name or allocation.id[:12]
    if not ledger.alive(allocation):
        yield found("VGPU-CTR-006", who, f"the process that stands for it is gone; its entry says {allocation.state}")
    elif allocation.state != "armed":
        evidence = "it is being started: its hook has not come to its end yet"
        yield found("VGPU-CTR-006", who, evidence, severity="warning", remedy="wait for its start, then ask again")
    else:
        parts = ", ".join(
            f"GPU {part.index}: {output.size(part.memory_bytes)}, "
            + (f"{part.cores_percent} % of its time" if part.cores_percent else "no limit of time")
            for part in allocation.placement.slices
        )
        yield Seen(parts + (" (simulated)" if allocation.simulated else ""))


def _processes(
    processes: list[mapped.Process], expected: judge.Expected, on_gpus: dict[int, list[int]]
) -> Iterator[Result]:
    for one in processes:
        yield from judge.process(one, expected, on_gpus.get(one.pid, ()))
    looked = [one for one in processes if not one.trouble]
    yield from judge.builds(looked, expected)
    idle = sum(not judge.uses_driver(one) and one.pid not in on_gpus for one in looked)
    yield Seen(f"{len(looked)} of {len(processes)} processes looked at, {idle} without the driver")


def _driver(sample: Sample, collector: Collector, container: str) -> Iterator[Result]:
    """NVML against the account. What does not match is looked at once more: the two are read one after the other."""
    for part, why in sample.troubles:
        if part == "nvml":
            yield Unseen("NVML", why)
            return
    if first := _suspicions(sample, container):
        time.sleep(_AGAIN_S)
        again = _suspicions(collector.sample(), container)
        for kind in sorted(first.keys() & again.keys()):
            yield found("VGPU-CTR-005", kind[1], f"{truth.KINDS[kind[1]]}: {again[kind]}")
    pids = _on_gpus(sample, container)
    held = sum(
        process.memory_bytes or 0 for gpu in sample.gpus for process in gpu.processes if process.container == container
    )
    yield Seen(f"the driver knows {len(pids)} of its processes, with {output.size(held)}")


def _suspicions(sample: Sample, container: str) -> dict[tuple[int, str], str]:
    return {(key.gpu, key.kind): why for key, why in truth.suspicions(sample).items() if key.container == container}


def _facts(
    policy: Policy,
    allocation: Allocation,
    checks: list[Check],
    processes: list[mapped.Process],
    expected: judge.Expected,
    on_gpus: dict[int, list[int]],
) -> dict[str, Any]:
    """For --json: the verdict, and what it stands on, process by process."""
    findings = [one for check in checks for one in check.findings]
    use = account.usage(policy.state_dir, allocation.id)
    armed = bool(use and use.armed_ns)
    return {
        "id": allocation.id,
        "in_force": judge.verdict(findings, processes, armed=armed),
        "backend": "wrapper",
        "simulated": allocation.simulated,
        "armed_ns": use.armed_ns if use else None,
        "processes": [
            {
                "pid": one.pid,
                "command": one.command,
                "trouble": one.trouble,
                "gpus": on_gpus.get(one.pid, []),
                "wrapped": bool(judge.wrapped(one, expected)),
                "libraries": [
                    {"path": library.path, "soname": library.soname, "build_id": library.build_id}
                    for library in one.libraries
                ],
            }
            for one in processes
        ],
    }
