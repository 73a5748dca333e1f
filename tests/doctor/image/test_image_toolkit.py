"""CUDA versions against drivers, and the grammar of NVIDIA_REQUIRE_*."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from looked import real_driver

from tests.harness import drivers
from vgpu.doctor.image import toolkit
from vgpu.doctor.image.toolkit import Facts, RequireError

ASK = "import ctypes as c, sys; v = c.c_int(); c.CDLL(sys.argv[1]).cuDriverGetVersion(c.byref(v)); print(v.value)"
HOST = Facts(driver=(535, 161, 8), cuda=(12, 2), brand="tesla")


@pytest.mark.parametrize("branch", drivers.PACKAGES)
def test_the_table_says_what_the_real_driver_says(branch: int) -> None:
    """Asked in a process of its own; cuDriverGetVersion needs no GPU."""
    driver = real_driver(branch)
    path = next(one.path for one in driver.libraries if one.soname == "libcuda.so.1")
    said = int(subprocess.run([sys.executable, "-c", ASK, path], capture_output=True, check=True, timeout=60).stdout)
    assert toolkit.cuda_of(driver.number) == (said // 1000, said % 1000 // 10)


@pytest.mark.parametrize(
    ("cuda", "driver", "fits"),
    [
        ("12.2", "535.161.08", "full"), ("11.8", "535.161.08", "full"), ("12.4", "535.161.08", "minor"),
        ("12.4", "525.60.13", "minor"), ("12.4", "525.60.12", "none"), ("13.0", "575.57.08", "none"),
        ("11.8", "470.82.01", "minor"), ("10.2", "440.32", "none"), ("12.9", "580.65.06", "full"),
        ("99.0", "999.0", "none"), ("13.9", "999.0", "minor"),
    ],
)  # fmt: skip
def test_a_toolkit_runs_on_a_driver_in_full_in_part_or_not(cuda: str, driver: str, fits: str) -> None:
    assert toolkit.compatible(toolkit.version(cuda), toolkit.version(driver)) == fits


def test_versions_are_written_as_nvidia_writes_them() -> None:
    assert toolkit.shown((470, 82, 1)) == "470.82.01" and toolkit.shown((12, 4)) == "12.4"
    assert toolkit.driver_for((12, 4)) == (550, 54, 14) and toolkit.driver_for((99, 0)) == (590, 44, 1)


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("cuda>=12.0", True), ("cuda>=12.3", False), ("cuda>=11.8 cuda>=99", True), ("cuda>=12.0,driver>=550", False),
        # as NVIDIA's own images have it
        ("cuda>=12.4 brand=tesla,driver>=470,driver<471 brand=tesla,driver>=535,driver<536", True),
        ("cuda>=12.4 brand=quadro,driver>=535,driver<536", False), ("driver=535.161.8", True), ("cuda!=12.2", False),
        ("cuda=12.2.0", True), ("arch>=7.0", None), ("arch>=7.0 cuda>=12", True), ("arch>=7.0,cuda>=99", False),
        ("brand!=geforce", True), ("", True),
    ],
)  # fmt: skip
def test_requirements_hold_or_not(text: str, held: bool | None) -> None:
    assert toolkit.holds(text, HOST) is held


@pytest.mark.parametrize("text", ["cuda", "cuda>=", "cuda>=x", "cuda>=1..2", "speed>=2", "brand>=x", "cuda >= 1", ";"])
def test_what_is_no_requirement_is_said_to_be_none(text: str) -> None:
    with pytest.raises(RequireError):
        toolkit.holds(text, HOST)


@given(st.text(alphabet="cuda driver>=<!,.0123456789brandx", max_size=60))
@settings(max_examples=400, deadline=None)
def test_any_text_is_a_requirement_or_the_one_error(text: str) -> None:
    try:
        assert toolkit.holds(text, HOST) in (True, False, None)
    except RequireError:
        return


def test_requirements_can_be_turned_off_and_are_all_taken() -> None:
    env = ["NVIDIA_REQUIRE_CUDA=cuda>=99", "NVIDIA_REQUIRE_OURS=driver>=1", "NVIDIA_REQUIRE_NOTHING= ", "X=1"]
    assert sorted(toolkit.requirements(env)) == ["NVIDIA_REQUIRE_CUDA", "NVIDIA_REQUIRE_OURS"]
    assert toolkit.requirements([*env, "NVIDIA_DISABLE_REQUIRE=true"]) == {}


@pytest.mark.parametrize(
    ("name", "brand"), [("Tesla V100-SXM2-16GB", "tesla"), ("NVIDIA GeForce GTX 1080", "geforce"), ("NVIDIA H100", "")]
)
def test_a_brand_is_taken_from_a_name_that_leaves_no_doubt(name: str, brand: str) -> None:
    assert toolkit.brand(name) == brand
