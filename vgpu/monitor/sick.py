"""GPUs that have failed take no new container from the moment that the monitor sees it, until `vgpu uncordon`."""

from __future__ import annotations

import time
from collections.abc import Sequence

from oci_hook import inventory, ledger, standing
from oci_hook.records import Policy
from oci_hook.values import replace


def leave_out(policy: Policy, failed: Sequence[tuple[int, str]]) -> list[str]:
    """Marks them sick, as `vgpu cordon --sick` does; one line for each that was not. failed: (index, why).

    Raises HostError when the inventory or the file of cordons cannot be used.
    """
    if not failed:
        return []
    names = {gpu.index: gpu.uuid for gpu in inventory.load(policy).gpus}
    said, now = [], time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    with ledger.Ledger(policy.state_dir):
        host = standing.load(policy)
        sick = dict(host.sick)
        for index, why in failed:
            uuid = names.get(index)
            if uuid is not None and uuid not in sick:
                sick[uuid] = f"{why}, {now}"
                said.append(
                    f"GPU {index} ({uuid}) takes no new container: {why}; when it is well: vgpu uncordon {index}"
                )
        if said:
            standing.save(policy, replace(host, sick=sick))
    return said
