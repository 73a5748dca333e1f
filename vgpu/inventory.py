"""vgpu inventory: the GPUs and the driver that slices are taken from."""

from __future__ import annotations

from pathlib import Path

from libcuda_wrap.sim import create
from oci_hook import inventory, inventory_scan, ledger
from oci_hook.errors import HostError
from oci_hook.records import Gpu, Inventory, Policy
from oci_hook.values import as_json as to_json
from vgpu import grant, inventory_cdi, output
from vgpu.config import load

COLUMNS = ("GPU", "NAME", "MEMORY", "UUID", "PCI", "HEALTH")


def run(config: str, *, refresh: bool, as_json: bool) -> None:
    """Prints the inventory. refresh: makes it first."""
    policy = load(config)
    found = scan(policy) if refresh else inventory.load(policy)
    if as_json:
        output.emit_json({"path": inventory.path(policy), "inventory": to_json(found)})
        return
    kind = "simulated driver" if found.simulated else "driver"
    count = len(found.libraries)
    print(f"{kind} {found.driver_version}, {count} {'library' if count == 1 else 'libraries'}, {len(found.gpus)} GPUs")
    output.table(COLUMNS, [_row(gpu) for gpu in found.gpus])


def _row(gpu: Gpu) -> tuple[str, ...]:
    return (str(gpu.index), gpu.name, output.size(gpu.memory_bytes), gpu.uuid, gpu.pci_bus_id, gpu.health)


def scan(policy: Policy) -> Inventory:
    """Looks at the host, and writes inventory.json; after a boot also makes the folders of users with a grant anew.

    Raises HostError VGPU-HOST-…
    """
    if policy.grant is not None:
        what = f"user {policy.grant.uid} cannot look at the host anew"
        raise HostError("VGPU-HOST-003", what, remedy=f"run it as root: sudo {policy.vgpu_command} inventory --refresh")
    if policy.simulate_gpus:
        found = inventory_scan.simulated(policy, simulate(policy))
    else:
        gpus = inventory_scan.nvml_gpus()
        found = inventory_cdi.real(policy, gpus) if policy.driver_spec else inventory_scan.real(policy, gpus)
    inventory_scan.save(policy, found)
    grant.restore(policy)
    return found


def simulate(policy: Policy) -> tuple[Gpu, ...]:
    """The simulated GPUs, made if they are not there; others than the policy wants are replaced if nobody uses them."""
    folder = Path(policy.state_dir, "sim")
    with ledger.Ledger(policy.state_dir) as held:  # no container may start on GPUs that are about to go
        try:
            state = create.create(folder, policy.simulate_gpus, policy.simulate_memory_bytes)
        except HostError as error:
            if error.code != "VGPU-HOST-003":
                raise
            users = sum(map(ledger.alive, held.entries()))
            if users:
                raise HostError(
                    "VGPU-HOST-003",
                    f"{error}, and {users} of its slices are in use",
                    remedy="end those containers (vgpu ps), or set simulate in config.yaml to what it was",
                ) from None
            state = create.create(folder, policy.simulate_gpus, policy.simulate_memory_bytes, replace=True)
    return tuple(
        Gpu(gpu.index, gpu.uuid, gpu.name, gpu.memory_bytes, gpu.pci_bus_id, gpu.minor, "lost" if gpu.lost else "ok")
        for gpu in state.gpus
    )
