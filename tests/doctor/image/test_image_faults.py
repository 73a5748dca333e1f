"""Each fault of an image, brought about with real files: its code, the evidence, and that the remedy mends it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from looked import checks as all_checks
from looked import findings, program, seen, unseen

from oci_hook.records import Library
from tests.harness import debian_roots, packed, rootfs, stub_driver
from vgpu.doctor.finding import Finding
from vgpu.doctor.image import driver as drivers
from vgpu.doctor.image.driver import Driver

Root = Callable[..., Path]
NEW = "#include <pthread.h>\nint main(void) { pthread_create(0, 0, 0, 0); return 0; }"  # GLIBC_2.34, where it moved
LIBDIR = rootfs.LIBDIR
WHEELS = Path(__file__).parents[3] / "build/wheels"


def one(found: list[Finding], code: str, *words: str) -> Finding:
    """The only finding, with these words in its evidence."""
    assert [finding.code for finding in found] == [code], found
    for word in words:
        assert word in found[0].evidence, found[0]
    return found[0]


@pytest.mark.seeds("VGPU-DEP-001")
def test_a_library_that_the_driver_needs(debian_root: Root, driver: Driver) -> None:
    root = debian_root("bookworm")
    (root / LIBDIR / "librt.so.1").unlink()
    found = one(findings(root, driver), "VGPU-DEP-001", "'librt.so.1'", "looked for in", str(LIBDIR))
    assert "libc6" in found.remedy
    shutil.copy(debian_roots.packages("bookworm", "libc6") / f"lib/{rootfs.MULTIARCH}/librt.so.1", root / LIBDIR)
    assert findings(root, driver) == []


@pytest.mark.seeds("VGPU-DEP-002")
def test_a_glibc_that_is_too_old_for_the_driver(debian_root: Root, tmp_path: Path) -> None:
    """A driver that needs glibc 2.34, on the oldest glibc that Debian's archive has (2.31, whose newest
    symbol is 2.30's); NVIDIA's own need 2.9."""
    made = program(tmp_path / "libcuda.so.1", NEW, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
    newer = Driver("999.1", (drivers.inventory_scan.library(str(made), "compute"),))
    found = one(
        findings(debian_root("bullseye"), newer), "VGPU-DEP-002", "'libcuda.so.1'", "'GLIBC_2.34'", "'GLIBC_2.30'"
    )
    assert found.remedy == "use an image with glibc 2.34 or newer"
    assert findings(debian_root("bookworm"), newer) == []


@pytest.mark.seeds("VGPU-DEP-003")
def test_musl(musl_root: Path, debian_root: Root, driver: Driver) -> None:
    found = one(findings(musl_root, driver, "/bin/busybox"), "VGPU-DEP-003", "musl", "glibc")
    assert "image with glibc" in found.remedy
    assert seen(all_checks(musl_root, driver), "image").endswith("musl")
    assert findings(debian_root("bookworm", "busybox-static"), driver, "/usr/bin/busybox") == []


@pytest.mark.seeds("VGPU-DEP-004")
def test_no_c_library_at_all(tmp_path: Path, debian_root: Root, driver: Driver) -> None:
    tree = tmp_path / "static"
    tree.mkdir()
    rootfs.static_root(tree)
    found = one(findings(tree, driver, "sh"), "VGPU-DEP-004", "libc.so.6")
    assert "image with glibc" in found.remedy
    assert findings(debian_root("bookworm"), driver) == []


@pytest.mark.seeds("VGPU-DEP-005")
def test_a_driver_library_that_was_cut_short(tmp_path: Path, driver: Driver) -> None:
    libraries = tmp_path / LIBDIR
    libraries.mkdir(parents=True)
    for library in driver.libraries:
        shutil.copy(library.path, libraries)
    cuda = libraries / f"libcuda.so.{driver.version}"
    whole = cuda.read_bytes()
    cuda.write_bytes(whole[:1000])
    with pytest.raises(drivers.HostError) as caught:
        drivers.in_folder(str(tmp_path))
    assert caught.value.code == "VGPU-DEP-005" and "cut short" in str(caught.value)
    assert caught.value.remedy == "install the driver, or vgpu, again"
    cuda.write_bytes(whole)
    assert drivers.in_folder(str(tmp_path)).version == driver.version


@pytest.mark.parametrize("wheel", ["nvidia-cufile-cu12==1.14.1.1", "nvidia-cufile==1.15.1.6"], ids=["cu12", "cu13"])
@pytest.mark.seeds("VGPU-DEP-006")
def test_a_python_package_of_nvidia_with_a_library_removed(debian_root: Root, driver: Driver, wheel: str) -> None:
    root = debian_root("bookworm", "libstdc++6", "libgcc-s1", "libibverbs1", "librdmacm1", "ibverbs-providers",
                       "libnl-3-200", "libnl-route-3-200")  # fmt: skip
    site = root / "usr/lib/python3/dist-packages"
    pip(site, wheel)
    library = next(site.rglob("libcufile.so.0"))
    assert findings(root, driver, deep=True) == []
    library.unlink()
    found = one(findings(root, driver, deep=True), "VGPU-DEP-006", "'libcufile.so.0'", "libcufile_rdma.so.1")
    assert (found.severity, found.subject) == ("warning", "libcufile.so.0")
    assert "pip install nvidia-cufile-cu12" in found.remedy
    pip(site, wheel)
    assert findings(root, driver, deep=True) == []


def pip(site: Path, wheel: str) -> None:
    """Installs one wheel into a tree; it is downloaded once, and a skip says so where it cannot be had."""
    run = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    kept = WHEELS / wheel
    if not kept.exists():
        command = [*run, "download", "--no-deps", "-d", str(kept), wheel]
        done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
        if done.returncode:
            shutil.rmtree(kept, ignore_errors=True)
            pytest.skip(f"{wheel} cannot be downloaded: {done.stderr[-200:]}")
    install = [
        *run,
        "install",
        "--no-deps",
        "--no-index",
        "--upgrade",
        "--target",
        str(site),
        *map(str, kept.iterdir()),
    ]
    subprocess.run(install, capture_output=True, timeout=110, check=True)


@pytest.mark.seeds("VGPU-DEP-006")
def test_a_program_that_needs_what_nobody_ships(debian_root: Root, driver: Driver, tmp_path: Path) -> None:
    root = debian_root("bookworm")
    stub_driver.library(tmp_path / "libhouse.so.3", "libhouse.so.3", "x")
    program(root / "opt/app/server", NEW, str(tmp_path / "libhouse.so.3"))
    found = one(findings(root, driver, "/opt/app/server"), "VGPU-DEP-006", "'libhouse.so.3'", "/opt/app/server")
    assert (found.severity, found.remedy) == ("failure", "add it to the image")
    shutil.copy(tmp_path / "libhouse.so.3", root / LIBDIR)
    assert findings(root, driver, "/opt/app/server") == []


@pytest.mark.seeds("VGPU-DEP-007")
def test_a_program_that_is_newer_than_its_image(debian_root: Root, driver: Driver) -> None:
    for suite, expected in (("bullseye", ["VGPU-DEP-007"]), ("bookworm", [])):
        root = debian_root(suite)
        program(root / "app", NEW)
        found = findings(root, driver, "/app")
        assert [finding.code for finding in found] == expected
        if found:
            assert "'GLIBC_2.34'" in found[0].evidence and "'GLIBC_2.30'" in found[0].evidence
            assert found[0].remedy == "use an image with glibc 2.34 or newer"


@pytest.mark.seeds("VGPU-DEP-008")
def test_a_glibc_program_in_a_musl_image(musl_root: Path, debian_root: Root, driver: Driver) -> None:
    program(musl_root / "app", NEW)
    found = [finding for finding in findings(musl_root, driver, "/app") if finding.code == "VGPU-DEP-008"]
    one(found, "VGPU-DEP-008", "'/lib64/ld-linux-x86-64.so.2'", "does not have")
    assert "image with glibc" in found[0].remedy
    root = debian_root("bookworm")
    shutil.copy(musl_root / "app", root)
    assert findings(root, driver, "/app") == []


@pytest.mark.seeds("VGPU-DEP-009")
def test_a_runpath_into_a_developers_home(debian_root: Root, driver: Driver) -> None:
    """The case that this field knows from the news: it works on the machine of whoever built it."""
    root, home = debian_root("bookworm"), "/home/" + "dana/build/lib"
    library = root / "opt/app/libown.so.1"
    stub_driver.library(library, "libown.so.1", "x")
    app = program(root / "opt/app/server", NEW, str(library), f"-Wl,-rpath,{home}")
    found = findings(root, driver, "/opt/app/server")
    assert {finding.code for finding in found} == {"VGPU-DEP-006", "VGPU-DEP-009"}
    finding = next(finding for finding in found if finding.code == "VGPU-DEP-009")
    assert f"'{home}', which the image does not have" in finding.evidence
    command, arguments = "patchelf --set-rpath '$ORIGIN' /opt/app/server", ["--set-rpath", "$ORIGIN", str(app)]
    assert finding.remedy.startswith(command)
    subprocess.run([str(Path(sys.executable).with_name("patchelf")), *arguments], check=True, timeout=60)
    assert findings(root, driver, "/opt/app/server") == []


@pytest.mark.seeds("VGPU-IMG-001")
def test_a_loader_cache_that_is_larger_than_any(debian_root: Root, driver: Driver) -> None:
    root = debian_root("bookworm")
    with open(root / "etc/ld.so.cache", "wb") as cache:
        cache.truncate(17 << 20)
    found = findings(root, driver)
    assert {finding.code for finding in found} == {"VGPU-IMG-001"}
    assert "'/etc/ld.so.cache' has more than 16777216 bytes" in found[0].evidence
    assert found[0].remedy == "remove it from the image"
    (root / "etc/ld.so.cache").unlink()
    assert findings(root, driver) == []


@pytest.mark.seeds("VGPU-IMG-005")
def test_a_search_through_too_many_folders(debian_root: Root, driver: Driver, tmp_path: Path) -> None:
    root = debian_root("bookworm")
    library = Library("/x", "libcuda.so.1", "cuda", "compute", tuple(f"libnone{n}.so" for n in range(300)), {}, ())
    archive = tmp_path / "image.tar"
    for count in (200, 1):
        config = packed.document(Env=["LD_LIBRARY_PATH=" + ":/usr" * count])
        archive.write_bytes(packed.saved([packed.layer(packed.of_tree(root))], config))
        found = findings(archive, Driver("999.1", (library,)))
        assert ("VGPU-IMG-005" in {finding.code for finding in found}) is (count == 200)
        if count == 200:
            assert "20000 steps" in found[0].evidence and "LD_LIBRARY_PATH" in found[0].remedy


@pytest.mark.seeds("VGPU-IMG-006")
def test_an_image_that_is_not_there(tmp_path: Path, debian_root: Root, driver: Driver) -> None:
    one(findings(tmp_path / "none.tar", driver), "VGPU-IMG-006", "no such file")
    one(findings("debian:13", driver), "VGPU-IMG-006", "Docker at unix:///nowhere/docker.sock")
    text = tmp_path / "text"
    text.write_text("no archive" * 100)
    found = one(findings(text, driver), "VGPU-IMG-006", "no tar archive")
    assert "docker save" in found.remedy
    text.write_bytes(packed.saved([packed.layer(packed.of_tree(debian_root("bookworm")))], packed.document()))
    assert findings(text, driver) == []


@pytest.mark.seeds("VGPU-IMG-007")
def test_an_archive_that_was_cut_short(tmp_path: Path, debian_root: Root, driver: Driver) -> None:
    whole = packed.saved([packed.layer(packed.of_tree(debian_root("bookworm")))], packed.document())
    archive = tmp_path / "image.tar"
    archive.write_bytes(whole[: len(whole) // 2])
    found = one(findings(archive, driver), "VGPU-IMG-007", "cannot be read")
    assert "save the image again" in found.remedy
    archive.write_bytes(whole)
    assert findings(archive, driver) == []


@pytest.mark.seeds("VGPU-IMG-008")
def test_a_command_that_the_image_does_not_have(debian_root: Root, driver: Driver) -> None:
    root = debian_root("bookworm", "busybox-static")
    one(findings(root, driver, "serve"), "VGPU-IMG-008", "no program 'serve'", "nowhere in its PATH")
    script = root / "usr/bin/serve"
    script.write_text("#!/usr/bin/env python3\n")
    script.chmod(0o755)
    one(findings(root, driver, "serve"), "VGPU-IMG-008", "/usr/bin/serve is a script", "'python3'")
    script.write_text("#!/bin/busybox sh\n")
    assert findings(root, driver, "serve") == []
    script.chmod(0o644)
    found = one(findings(root, driver, "serve"), "VGPU-IMG-008")
    assert "add it to the image" in found.remedy
    script.chmod(0o755)
    script.write_text("echo a script without its first line\n")
    one(findings(root, driver, "serve"), "VGPU-IMG-008", "cut short", "exec format error")
    app = bytearray(program(root / "app").read_bytes())
    for at, byte, words in ((18, 183, "ELF machine 183"), (4, 1, "not a 64-bit")):
        (root / "app").write_bytes(app[:at] + bytes([byte]) + app[at + 1 :])
        found = one(findings(root, driver, "/app"), "VGPU-IMG-008", words)
        assert found.remedy == "put a 64-bit program for this processor at /app"
    (root / "app").write_bytes(app)
    assert findings(root, driver, "/app") == []


@pytest.mark.seeds("VGPU-IMG-009")
def test_a_copy_of_the_driver_that_only_a_runpath_leads_to(debian_root: Root, driver: Driver) -> None:
    root = debian_root("bookworm")
    copy = root / "opt/own/libcuda.so.1"
    stub_driver.library(copy, "libcuda.so.1", "x")
    app = program(root / "app", NEW, str(copy), "-Wl,-rpath,/opt/own")
    found = one(findings(root, driver, deep=True), "VGPU-IMG-009", "'/app', whose RUNPATH leads there")
    assert (found.subject, found.severity) == ("/opt/own/libcuda.so.1", "warning")
    assert "remove /opt/own/libcuda.so.1" in found.remedy
    assert findings(root, driver, "/app", deep=True) == []  # what a container starts itself is covered
    copy.unlink()
    assert findings(root, driver, deep=True) == [] and app.exists()


def test_what_the_program_lacks_is_told_once(debian_root: Root, driver: Driver) -> None:
    """With --deep too, which looks at every file: the program's own line is the one to act on."""
    root = debian_root("bookworm")
    missing = root / "usr/lib/libgone.so.7"
    stub_driver.library(missing, "libgone.so.7", "x")
    for name in ("app", "other"):
        program(root / name, NEW, str(missing), "-Wl,-rpath,/home/" + "dana/lib")
    missing.unlink()
    (root / "link").symlink_to("app")
    told = [(found.subject, found.code) for found in findings(root, driver, "/link", deep=True)]
    assert sorted(told) == [
        ("/link", "VGPU-DEP-006"), ("/link", "VGPU-DEP-009"),
        ("/other", "VGPU-DEP-009"), ("libgone.so.7", "VGPU-DEP-006"),
    ]  # fmt: skip


@pytest.mark.seeds("VGPU-IMG-010")
def test_a_toolkit_that_is_newer_than_the_driver(debian_root: Root, driver: Driver) -> None:
    root = debian_root("bookworm")
    version = root / "usr/local/cuda-13.0/version.json"
    (version.parent / "compat").mkdir(parents=True)
    stub_driver.library(version.parent / "compat/libcuda.so.1", "libcuda.so.1", "x")
    for text, severity, words in (
        ("13.0.1", "failure", ("CUDA 13.0", "is made for 12.2", "/usr/local/cuda-13.0/compat", "is covered")),
        ("12.6.0", "warning", ("CUDA 12.6", "is made for 12.2", "PTX")),
    ):
        version.write_text(f'{{"cuda": {{"version": "{text}"}}}}')
        found = one(findings(root, driver), "VGPU-IMG-010", *words)
        assert found.severity == severity and "use an image with CUDA 12.2 or older" in found.remedy
    version.write_text('{"cuda": {"version": "12.2.2"}}')
    assert findings(root, driver) == []
    package = root / "usr/local/lib/python3.12/site-packages/nvidia_cuda_runtime-13.0.96.dist-info"
    package.mkdir(parents=True)
    one(findings(root, driver), "VGPU-IMG-010", "nvidia_cuda_runtime-13.0.96.dist-info is CUDA 13.0")
    package.rename(package.with_name("nvidia_cuda_runtime_cu12-12.1.105.dist-info"))
    assert findings(root, driver) == []


@pytest.mark.seeds("VGPU-IMG-011", "VGPU-IMG-012")
def test_what_the_image_says_it_requires(debian_root: Root, driver: Driver, tmp_path: Path) -> None:
    archive, layer = tmp_path / "image.tar", packed.layer(packed.of_tree(debian_root("bookworm")))

    def found(*env: str) -> list[Finding]:
        archive.write_bytes(packed.saved([layer], packed.document(Env=list(env))))
        return findings(archive, driver)

    unmet = "NVIDIA_REQUIRE_CUDA=cuda>=12.9 driver>=550,driver<551"
    one(found(unmet), "VGPU-IMG-011", "cuda>=12.9", f"driver {driver.version}, CUDA 12.2")
    assert found(unmet, "NVIDIA_DISABLE_REQUIRE=1") == []
    assert found("NVIDIA_REQUIRE_CUDA=cuda>=12.9 driver>=535,driver<536") == []
    one(found("NVIDIA_REQUIRE_CUDA=cuda~12"), "VGPU-IMG-012", "'cuda~12' is no constraint")
    assert "NVIDIA_REQUIRE_CUDA" in unseen(all_checks(archive, driver)) or found("NVIDIA_REQUIRE_CUDA=cuda>=12.0") == []


@pytest.mark.seeds("VGPU-IMG-013")
def test_an_image_for_another_processor(debian_root: Root, driver: Driver, tmp_path: Path) -> None:
    archive, layer = tmp_path / "image.tar", packed.layer(packed.of_tree(debian_root("bookworm")))
    archive.write_bytes(packed.saved([layer], packed.document().replace(b"amd64", b"arm64")))
    found = one(findings(archive, driver), "VGPU-IMG-013", "made for aarch64", "this host is x86_64")
    assert "docker pull --platform linux/amd64" in found.remedy
    archive.write_bytes(packed.saved([layer], packed.document()))
    assert findings(archive, driver) == []
