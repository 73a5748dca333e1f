"""vgpu doctor image, as a person calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from looked import program

from tests.harness import bundle, installed, rootfs
from vgpu.doctor.image.driver import Driver

Root = Callable[..., Path]
ROOT = Path(__file__).parents[3]
SCHEMA = json.loads((ROOT / "docs/doctor.schema.json").read_text())


def doctor(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vgpu", "doctor", "image", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT, check=False)


@pytest.fixture
def driver_root(driver: Driver) -> str:
    """The folder that NVIDIA's packages were unpacked in."""
    return driver.libraries[0].path.partition("/usr/lib/")[0]


def test_a_good_image_is_well_and_a_bad_one_fails(debian_root: Root, driver_root: str) -> None:
    root = debian_root("bookworm")
    app = program(root / "app")
    options = ("--driver-root", driver_root, "--program", "/app")
    done = doctor(root, *options)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "all well: 7 checks" in done.stdout and "glibc 2.36" in done.stdout
    assert "8 checks" in doctor(root, *options, "--deep").stdout
    app.unlink()
    program(app, "int main(void) { return 0; }", "-Wl,-rpath,/home/" + "dana/lib")
    warned = doctor(root, *options)
    assert (warned.returncode, "VGPU-DEP-009" in warned.stdout, "patchelf" in warned.stdout) == (1, True, True)
    (root / rootfs.LIBDIR / "libm.so.6").unlink()
    failed = doctor(root, *options)
    assert (failed.returncode, failed.stderr) == (2, "")
    lines = failed.stdout.splitlines()
    assert lines.index("driver in this image") < lines.index("its program") < lines.index("CUDA"), "worst first"
    assert max(map(len, lines)) < 80
    text = " ".join(failed.stdout.split())
    assert "VGPU-DEP-001 a library that the driver needs is not in the image" in text
    assert "'libm.so.6' is not in the image, and 'libcuda.so.1' needs it" in text


def test_json_is_as_the_schema_says(debian_root: Root, driver_root: str) -> None:
    root = debian_root("bookworm")
    (root / rootfs.LIBDIR / "libdl.so.2").unlink()
    done = doctor(root, "--driver-root", driver_root, "--json", "--deep")
    found = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA)
    assert (done.returncode, found["kind"], found["state"], found["name"]) == (2, "image", "failure", str(root))
    codes = [one["code"] for check in found["checks"] for one in check["findings"]]
    assert codes[0] == "VGPU-DEP-001"


@pytest.mark.parametrize("name", ["/no/such/image", "no.such.host/image:tag", ""])
def test_an_image_that_is_not_there_is_one_finding_and_no_traceback(name: str, driver_root: str) -> None:
    done = doctor(name, "--driver-root", driver_root, "--host", "unix:///nowhere/docker.sock")
    assert (done.returncode, done.stderr) == (2, "")
    assert "VGPU-IMG-006" in done.stdout


def test_a_driver_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        done = doctor("/", "--driver-root", folder)
        assert (done.returncode, done.stdout, "VGPU-HOST-007" in done.stderr) == (5, "", True)


@pytest.mark.e2e
def test_the_driver_is_that_of_the_installation(
    debian_root: Root, tmp_path: Path, needs_root: None, needs_build: None
) -> None:
    """The simulated one, with the wrapper that ships; an old image loads both."""
    vgpu = installed.install(tmp_path / "here", bundle.low_level("runc", tmp_path))
    done = vgpu("doctor", "image", str(debian_root("bullseye")), "--json")
    found = json.loads(done.stdout)
    libraries = next(check for check in found["checks"] if check["name"] == "libraries")
    assert libraries["state"] == "ok" and "(simulated)" in libraries["seen"][0]
    assert libraries["seen"][0].startswith("all 4 of driver 580")
