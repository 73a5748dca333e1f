"""Real systems with real drivers: every Debian that the archive has, musl, distroless, and NVIDIA's 470 to 555."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from looked import checks, findings, program, real_driver, seen

from tests.harness import debian_roots, drivers, rootfs, stub_driver
from vgpu.doctor.image.driver import Driver

Root = Callable[..., Path]


@pytest.mark.parametrize("suite", debian_roots.SUITES)
@pytest.mark.parametrize("branch", drivers.PACKAGES)
def test_every_driver_loads_in_every_debian(debian_root: Root, suite: str, branch: int) -> None:
    found = checks(debian_root(suite), real_driver(branch))
    assert [one for check in found for one in check.findings] == []
    assert seen(found, "libraries").startswith(f"all 2 of driver {branch}")


@pytest.mark.parametrize("branch", drivers.PACKAGES)
def test_no_driver_loads_beside_musl(musl_root: Path, branch: int) -> None:
    assert [one.code for one in findings(musl_root, real_driver(branch))] == ["VGPU-DEP-003"]


def test_what_each_driver_needs_is_missed_when_it_is_not_there(debian_root: Root) -> None:
    """Every library of glibc that one of the drivers names, taken away in turn."""
    root = debian_root("bookworm")
    for branch in drivers.PACKAGES:
        driver = real_driver(branch)
        for soname in sorted({name for one in driver.libraries for name in one.needed} - {"libc.so.6"}):
            library = root / rootfs.LIBDIR / soname
            library.rename(root / "aside")
            found = findings(root, driver)
            (root / "aside").rename(library)
            assert [(one.code, f"{soname!r} is not" in one.evidence) for one in found] == [("VGPU-DEP-001", True)]


def test_distroless_is_enough(tmp_path: Path, driver: Driver) -> None:
    """Five files of glibc and the loader: no shell, no cache, no package database."""
    tree = tmp_path / "distroless"
    for name in (*rootfs.GLIBC, "ld-linux-x86-64.so.2"):
        target = tree / rootfs.LIBDIR / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path("/usr/lib", rootfs.MULTIARCH, name), target)
    (tree / "lib64").symlink_to(rootfs.LIBDIR)
    program(tree / "server")
    assert findings(tree, driver, "/server", deep=True) == []


def test_copies_that_the_slice_covers_are_told_and_are_no_fault(debian_root: Root, driver: Driver) -> None:
    root = debian_root("bookworm")
    for place in ("usr/local/cuda-12/compat/libcuda.so.1", f"{rootfs.LIBDIR}/libnvidia-ml.so.1"):
        stub_driver.library(root / place, Path(place).name, "x")
    found = checks(root, driver, deep=True)
    assert [one for check in found for one in check.findings] == []
    assert seen(found, "copies").startswith(
        "the image has 2 of the driver's libraries itself, and the slice covers them"
    )


def test_needs_that_only_the_loading_program_can_meet_are_no_fault(debian_root: Root, driver: Driver) -> None:
    """Parts of Python packages are linked so: their needs lie in folders of other packages."""
    root = debian_root("bookworm")
    stub_driver.library(root / "opt/a/liba.so.1", "liba.so.1", "x")
    stub_driver.library(root / "opt/b/part.so", "part.so", "y", needed=root / "opt/a/liba.so.1")
    found = checks(root, driver, deep=True)
    assert [one for check in found for one in check.findings] == []
    assert "1 needs are met only if the program that loads them" in seen(found, "files")


def test_without_a_driver_the_rest_is_looked_at_all_the_same(debian_root: Root) -> None:
    root = debian_root("bullseye")
    found = checks(root, None, "sh")
    assert [one.code for check in found for one in check.findings] == ["VGPU-IMG-008"]
    libraries = next(check for check in found if check.name == "libraries")
    assert (libraries.state, libraries.unseen[0].why) == ("unseen", "none was given")
    assert "glibc 2.31" in seen(found, "image")
