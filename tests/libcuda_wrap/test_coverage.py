"""Every function that a known driver exports has been thought about, and the lists of them are the drivers' own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from libcuda_wrap import coverage
from libcuda_wrap.gen import __main__ as gen
from oci_hook.errors import HostError
from tests.harness import debian, drivers
from tests.libcuda_wrap.wrapped import Box


@pytest.mark.parametrize("branch", drivers.PACKAGES)
def test_the_lists_are_what_the_drivers_export(branch: int) -> None:
    """By nm, so that our own reader of ELF files is held against another."""
    try:
        libraries = drivers.libraries(branch)
    except debian.NotOffered as missing:
        pytest.skip(str(missing))
    assert [path.name.split(".so")[0] for path in libraries] == ["libcuda", "libnvidia-ml"]
    names: set[str] = set()
    for path in libraries:
        command = ["nm", "-D", "--defined-only", "--format=posix", path]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        own = {line.split()[0].split("@")[0] for line in said.splitlines()}
        assert coverage.exports(path.read_bytes()) == own
        names |= own
    assert names == coverage.listed(branch)


def test_every_export_of_a_known_driver_has_a_row_or_a_rule() -> None:
    assert coverage.branches() == tuple(drivers.PACKAGES)
    assert all(len(coverage.listed(branch)) > 800 for branch in coverage.branches())
    assert coverage.unknown_in_lists() == {}


def test_a_known_drivers_function_without_a_row_fails_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "470.txt").write_text("# exports\ncuInit\ncuMemAllocNew\nnvmlInit\nnvmlDeviceGetMemoryInfo_v3\n")
    monkeypatch.setattr(coverage, "KNOWN", tmp_path)
    assert gen.main(["--check"]) == 5
    assert "driver 470 exports cuMemAllocNew, nvmlDeviceGetMemoryInfo_v3" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["libvgpu-driver.so", "libvgpu-nvml.so"])
def test_the_simulated_driver_has_no_unknown_function(plain_box: Box, name: str) -> None:
    table = "libcuda" if "driver" in name else "libnvidia-ml"
    names = coverage.exports((plain_box.folder / name).read_bytes()) - {
        "vgsSetKernelTime",
        "vgsSetFillTime",
        "vgsSetPoolPiece",
    }  # its own
    found = coverage.sorted_by_kind(names, coverage.rows(table))
    assert found["unknown"] == ()
    assert len(found["pass"]) > 300 and found["answer"] and found["refuse"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cuMemAlloc_v2", "charge"),
        ("cuMemAlloc_v3", "unknown"),
        ("cuInit", "answer"),
        ("cudbgApiInit", "pass"),
        ("cudbg", "unknown"),
        ("nvmlDeviceGetTemperature", "pass"),
        ("nvmlDeviceGetMemoryInfo_v3", "unknown"),
        ("nvmlDeviceGetHandleByName", "unknown"),
        ("nvmlDeviceGetNewRunningProcesses", "unknown"),
        ("other", "unknown"),
    ],
)
def test_a_name_is_known_by_its_row_or_by_a_written_rule(name: str, kind: str) -> None:
    assert coverage.kind_of(name, coverage.rows("libcuda") | coverage.rows("libnvidia-ml")) == kind


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF\x02\x01" + b"\xff" * 58, b"#!/bin/sh\n", b"\x7fELF\x02\x01" + b"\0" * 58]
)
def test_what_is_no_library_is_refused_with_its_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "libcuda.so.999.1"
    path.write_bytes(data)
    with pytest.raises(HostError, match=r"libcuda\.so\.999\.1") as caught:
        coverage.of(path)
    assert caught.value.code == "VGPU-HOST-007"
