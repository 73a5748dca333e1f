"""vgpu doctor --fix: what can be mended without a question, because nothing that works can lose by it.

Each fix first says what it would do (`plan`); only then, and not with --dry-run, is it done. Whatever needs a decision
(a driver, a configuration, a container that runs) is left to the admin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from oci_hook import decision, inventory, ledger
from oci_hook.errors import VgpuError
from oci_hook.records import Policy
from runtime_config import cdi, cdi_check, files
from vgpu import inventory as inventory_command
from vgpu import output
from vgpu.cdi import expected_text
from vgpu.doctor.host.machine import Host, NoPolicy


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to mend. action: what is done, in the infinitive."""

    code: str
    subject: str
    action: str


@dataclass(frozen=True, slots=True)
class Fix:
    """plan: what there is to mend now. do: mends all of that; it looks again itself, under the ledger's lock."""

    plan: Callable[[Policy], Iterator[Step]]
    do: Callable[[Policy], object]


def _stale_inventory(policy: Policy) -> Iterator[Step]:
    try:
        inventory.load(policy)
    except VgpuError as error:
        if error.code == "VGPU-HOST-002":
            yield Step(error.code, inventory.path(policy), f"make the inventory anew: {error}")


def _orphans(policy: Policy) -> Iterator[Step]:
    containers = f"{policy.state_dir}/containers"
    for name in leftovers(policy.state_dir):
        yield Step("VGPU-STA-001", f"{containers}/{name}", "remove what a start that died has left")
    for name in entries(policy.state_dir):
        allocation = ledger.read(policy.state_dir, name)
        if allocation is not None and not ledger.alive(allocation):
            yield Step("VGPU-STA-001", f"{containers}/{name}", "give back the slice: its process is gone")


def _reap(policy: Policy) -> None:
    with ledger.Ledger(policy.state_dir, timeout_s=5.0) as book:  # taking the lock clears leftovers
        book.reap(lambda dead: decision.ended(policy, dead, book.tick(), "reap"))


def _stale_specs(policy: Policy) -> Iterator[Step]:
    """Ours alone: another program's spec is made anew by that program."""
    for spec in _stale(policy):
        yield Step(cdi_check.OUTDATED, spec.path, "write our CDI spec anew: its devices or hooks have changed")


def _stale(policy: Policy) -> list[cdi.Spec]:
    specs = [spec for spec in cdi.folder_specs(cdi.FOLDERS) if isinstance(spec, cdi.Spec) and spec.kind == cdi.KIND]
    if not specs:
        return []
    wanted = expected_text(policy, refresh=False)
    return [spec for spec in specs if spec.text != wanted]


def _write_specs(policy: Policy) -> None:
    for spec in _stale(policy):
        files.replace(files.read(spec.path), expected_text(policy, refresh=False).encode())


# in this order: what is given out is told from the ledger, the specs from the inventory
FIXES = (Fix(_orphans, _reap), Fix(_stale_inventory, inventory_command.scan), Fix(_stale_specs, _write_specs))


def entries(state_dir: str) -> list[str]:
    """Ids that have a folder in the ledger. Raises HostError VGPU-HOST-003 if it cannot be listed."""
    from vgpu import ps

    return sorted(ps.names(state_dir))


def leftovers(state_dir: str) -> list[str]:
    """Half-made and half-deleted folders. A start that is under way has one for a moment: it holds the lock then."""
    import os

    try:
        return sorted(name for name in os.listdir(f"{state_dir}/containers") if name.startswith((".new-", ".old-")))
    except OSError:
        return []


def _has_policy(host: Host) -> bool:
    try:
        return bool(host.policy)
    except NoPolicy:
        output.message("vgpu: without a policy in force there is nothing that --fix can mend")
        return False


def apply(host: Host, *, dry_run: bool, quiet: bool) -> list[dict[str, Any]]:
    """Mends, and returns a dict a step, `done` among its keys. quiet: print nothing. A failed fix stops no other."""
    steps: list[dict[str, Any]] = []
    for fix in FIXES if _has_policy(host) else ():
        found: list[Step] = []
        trouble = ""
        try:
            found = list(fix.plan(host.policy))
            if found and not dry_run:
                fix.do(host.policy)
        except VgpuError as error:
            trouble = error.line()
            output.message(trouble)
        steps += [{**asdict(step), "done": not dry_run and not trouble} for step in found]
    if not quiet:
        for step in steps:
            word = "done" if step["done"] else "would" if dry_run else "failed"
            print(output.printable(f"{word}: {step['code']} {step['subject']}: {step['action']}"))
        if not steps:
            print("nothing that --fix can mend")
        print()
    return steps
