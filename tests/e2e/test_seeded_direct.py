"""Faults of a container that gets its GPUs by CDI, without our runtime: each mended by what its remedy says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oci_hook.records import Inventory
from tests.e2e.test_direct_hook import ASKED, host, made_by_an_engine
from tests.harness import bundle
from tests.harness.installed import Vgpu

__all__ = ["host"]  # the fixture
pytestmark = [pytest.mark.e2e, pytest.mark.parametrize("low_level", ["runc"], indirect=True)]


@pytest.mark.seeds("VGPU-REQ-007")
def test_a_device_without_a_request(
    low_level: Path, stub_vgpu: Vgpu, host: Inventory, plain_tree: Path, tmp_path: Path
) -> None:
    for asked, code in ({}, "VGPU-REQ-007"), (ASKED, ""):
        with bundle.container(low_level, tmp_path / "b", plain_tree, ["true"], annotations=asked) as box:
            made_by_an_engine(box, host, stub_vgpu, "all")
            result = box.run()
        assert (result.code == 0) == (code == ""), result
        if code:
            failure = stub_vgpu.failures()[-1]
            assert (failure["id"], failure["code"]) == (box.id, code)
            assert "vgpu.memory=8GiB" in failure["remedy"]


@pytest.mark.seeds("VGPU-PLC-006")
def test_a_request_whose_device_is_not_there(
    low_level: Path, stub_vgpu: Vgpu, host: Inventory, plain_tree: Path, tmp_path: Path
) -> None:
    for works in (False, True):
        with bundle.container(low_level, tmp_path / "b", plain_tree, ["true"], annotations=ASKED) as box:
            made_by_an_engine(box, host, stub_vgpu, "all")
            config = json.loads(box.config.read_text())
            config["linux"]["devices"] = config["linux"]["devices"] if works else []
            box.config.write_text(json.dumps(config))
            result = box.run()
        assert (result.code == 0) == works, result
        if not works:
            failure = stub_vgpu.failures()[-1]
            assert (failure["id"], failure["code"]) == (box.id, "VGPU-PLC-006"), failure
            assert "--device vgpu.dev/gpu=all" in failure["remedy"]
