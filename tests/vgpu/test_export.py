"""vgpu export: the policy as HAMi's and Volcano's settings, against files that were read by people."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from oci_hook.errors import HostError
from oci_hook.records import Policy
from vgpu import export

GOLDEN = Path(__file__).parent / "export"
PLAIN = Policy(runtime="/usr/bin/runc", prefix="/opt/vgpu")
FULL = Policy(
    runtime="/usr/bin/runc",
    prefix="/opt/vgpu",
    placement="spread",
    overcommit_memory=1.5,
    overcommit_cores=2.0,
    max_memory_bytes=16 << 30,
    max_gpus=2,
    burst="soft",
)


@pytest.mark.parametrize("target", export.TARGETS)
@pytest.mark.parametrize(("name", "policy"), [("plain", PLAIN), ("full", FULL)])
def test_an_export_is_what_was_agreed(target: str, name: str, policy: Policy) -> None:
    text, notes = export.translate(policy, target)
    assert text == (GOLDEN / f"{target}-{name}.yaml").read_text()
    assert all(f"# not exported: {note}\n" in text for note in notes)


def test_volcano_has_both_factors_where_its_plugin_reads_them() -> None:
    scheduler, devices = yaml.safe_load_all(export.translate(FULL, "volcano")[0])
    plugins = yaml.safe_load(scheduler["data"]["volcano-scheduler.conf"])["tiers"][0]["plugins"]
    assert plugins[-1]["arguments"] == {"deviceshare.VGPUEnable": True, "deviceshare.SchedulePolicy": "spread"}
    nvidia = yaml.safe_load(devices["data"]["device-config.yaml"])["nvidia"]
    assert nvidia == {"deviceSplitCount": 10, "deviceMemoryScaling": 1.5, "deviceCoreScaling": 2}


def test_all_that_hami_cannot_say_is_said() -> None:
    notes = export.translate(FULL, "hami")[1]
    for name in ("overcommit.cores", "max.memory: 16 GiB", "max.gpus: 2", "burst: soft", "slices"):
        assert any(name in note for note in notes), name


def test_slices_are_exported_and_other_policies_are_told() -> None:
    policy = Policy(runtime="/usr/bin/runc", prefix="/opt/vgpu", placement="topology", max_slices=4)
    text, notes = export.translate(policy, "hami")
    assert yaml.safe_load(text)["devicePlugin"]["deviceSplitCount"] == 4
    assert notes == ["placement: topology; binpack is written in its place"]


def test_another_target_is_refused() -> None:
    with pytest.raises(HostError, match="--as='slurm'") as caught:
        export.run("/nonexistent", "slurm")
    assert caught.value.code == "VGPU-CFG-003"
