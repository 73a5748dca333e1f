"""Grants of users' rootless engines, as the doctor sees them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prepared import Installation, fault, look, mended

from oci_hook import policy, standing
from oci_hook.records import Host
from oci_hook.values import replace

UID = 4711


@pytest.fixture
def granted(here: Installation) -> Iterator[Installation]:
    here.vgpu("grant", str(UID), "--memory=8GiB")
    yield here
    standing.save(policy.load(str(here.vgpu.prefix / "etc/policy.json")), Host())
    shutil.rmtree(here.vgpu.state / "users", ignore_errors=True)


def test_a_grant_that_can_be_used_is_counted(granted: Installation) -> None:
    check = look(granted.host, "grants")
    assert check.findings == () and "users with a grant: 1" in check.seen


@pytest.mark.seeds("VGPU-HOST-012")
@pytest.mark.parametrize("damage", ["gone after a boot", "somebody else's"])
def test_a_grant_without_the_users_folder(granted: Installation, damage: str) -> None:
    folder = Path(granted.vgpu.state, f"users/{UID}")
    if damage == "somebody else's":
        os.chown(folder, UID + 1, UID + 1)
    else:
        shutil.rmtree(folder.parent)
    found = fault(granted.host, "grants", "VGPU-HOST-012", str(folder), str(UID))
    granted.follow(found.remedy)
    mended(granted.host, "grants", "VGPU-HOST-012")
    assert folder.stat().st_uid == UID


@pytest.mark.seeds("VGPU-STA-005")
def test_a_grant_of_a_gpu_that_is_not_there(granted: Installation) -> None:
    settings = policy.load(str(granted.vgpu.prefix / "etc/policy.json"))
    host = standing.load(settings)
    gone = tuple(replace(item, uuid="GPU-gone") for item in host.reservations)
    standing.save(settings, replace(host, reservations=gone))
    found = fault(granted.host, "grants", "VGPU-STA-005", "GPU-gone", "8192 MiB")
    granted.follow(found.remedy)
    mended(granted.host, "grants", "VGPU-STA-005")
