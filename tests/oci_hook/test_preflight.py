"""Preflight foresees what the loader would do: compared with the loader itself on every library of this machine."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from oci_hook import elf, inventory_scan, preflight
from oci_hook.errors import ImageError
from oci_hook.preflight import Copy, Found
from oci_hook.records import Library, Start
from oci_hook.rootview import RootView
from tests.harness import rootfs, stub_driver
from tests.oci_hook.machine import LIBC, LOADER, libraries

MACHINE = os.uname().machine
TIME_S = 60


def opened(root: Path) -> RootView:
    return RootView(os.open(root, os.O_PATH | os.O_DIRECTORY))


@pytest.fixture
def machine_root() -> Iterator[RootView]:
    view = opened(Path("/"))
    yield view
    os.close(view.fd)


@pytest.mark.slow  # the loader takes 10 ms a file
def test_every_library_of_this_machine_loads_or_not_as_its_loader_says(machine_root: RootView) -> None:
    image_of_all = preflight.Image(machine_root, preflight.MACHINES[MACHINE])
    differing, compared, until = [], 0, time.monotonic() + TIME_S
    paths = libraries()
    for path in paths:
        if time.monotonic() > until:
            break
        try:
            facts = elf.parse_bytes(path.read_bytes())
        except elf.ElfError:
            continue
        if not facts.needed or facts.interpreter and path.name.startswith("ld-"):
            continue
        listed = subprocess.run(
            [LOADER, "--list", path], capture_output=True, text=True, env={}, timeout=20, check=False
        )
        wanted = listed.returncode != 0 or "not found" in listed.stdout + listed.stderr  # a name, or a version
        own = preflight.needs_of(str(path), preflight.Provider(str(path), facts))
        found = list(preflight.problems(image_of_all.another(), [own], set()))
        compared += 1
        if bool(found) != wanted:
            differing.append(f"{path}: {found}\n{listed.stdout}{listed.stderr}")
    print(f"{compared} of {len(paths)} files compared, {len(differing)} differ")
    assert differing == [], chr(10).join(differing)
    assert compared > 100


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    rootfs.glibc_root(root)
    return root


def driver(needed: tuple[str, ...] = ("libc.so.6", "libm.so.6"), **versions: str) -> Library:
    wanted = {"libc.so.6": ("GLIBC_2.2.5",)} | {"libc.so.6": tuple(versions.values())} if versions else {}
    return Library("/host/libcuda.so.1", "libcuda.so.1", "cuda", "compute", needed, wanted, ())


def check(
    root: Path, *wanted: Library, env: tuple[str, ...] = (), cwd: str = "/", program: str = "", machine: str = MACHINE
) -> Found:
    view = opened(root)
    try:
        return preflight.check(view, wanted or [driver()], ["libvgpu-driver.so"], Start(env, cwd, program), machine)
    finally:
        os.close(view.fd)


def refusal(root: Path, *wanted: Library, machine: str = MACHINE) -> ImageError:
    with pytest.raises(ImageError) as caught:
        check(root, *wanted, machine=machine)
    return caught.value


def test_a_plain_image_has_all(tree: Path) -> None:
    found = check(tree)
    assert (found.libdir, found.copies) == (f"/lib/{rootfs.MULTIARCH}", ())


def test_our_own_names_need_not_be_in_the_image(tree: Path) -> None:
    check(tree, driver(("libvgpu-driver.so", "libc.so.6")))


def test_a_missing_library_is_named_with_who_needs_it_and_its_package(tree: Path) -> None:
    (tree / rootfs.LIBDIR / "libm.so.6").unlink()
    error = refusal(tree)
    assert error.code == "VGPU-DEP-001"
    assert "'libm.so.6'" in str(error) and "'libcuda.so.1'" in str(error)
    assert "libc6" in error.remedy


def test_all_problems_are_counted_and_the_first_is_told(tree: Path) -> None:
    error = refusal(tree, driver(("libc.so.6", "libnone.so.1", "libnothing.so.2")))
    assert "'libnone.so.1'" in str(error) and "(and 1 more)" in str(error)
    assert "\n" not in error.line()


def test_a_library_of_the_image_that_lacks_its_own_is_found_too(tree: Path) -> None:
    (tree / rootfs.LIBDIR / "libm.so.6").unlink()
    stub_driver.library(tree / rootfs.LIBDIR / "libmine.so.1", "libmine.so.1", "x", libraries=("m",))
    error = refusal(tree, driver(("libmine.so.1",)))
    assert error.code == "VGPU-DEP-001" and "'libmine.so.1' needs it" in str(error)


def test_a_library_is_found_where_the_images_own_environment_says(tree: Path) -> None:
    (tree / "opt/own").mkdir(parents=True)
    (tree / rootfs.LIBDIR / "libm.so.6").rename(tree / "opt/own/libm.so.6")
    assert refusal(tree).code == "VGPU-DEP-001"
    check(tree, env=("LD_LIBRARY_PATH=/nowhere:/opt/own",))
    check(tree, env=("LD_LIBRARY_PATH=/nowhere:",), cwd="/opt/own")  # an empty entry is the working folder


def test_an_rpath_holds_for_those_further_down_and_a_runpath_does_not(tree: Path) -> None:
    below = tree / "opt/below"
    below.mkdir(parents=True)
    stub_driver.library(below / "libdeep.so.1", "libdeep.so.1", "x")
    flags: tuple[str, ...] = (f"-L{below}",)
    stub_driver.library(below / "libmiddle.so.1", "libmiddle.so.1", "y", libraries=(":libdeep.so.1",), flags=flags)
    for tag, found in (("--disable-new-dtags", 0), ("--enable-new-dtags", 1)):
        top = tree / rootfs.LIBDIR / "libtop.so.1"
        flags = (f"-L{below}", f"-Wl,{tag},-rpath,$ORIGIN/../../../opt/below")
        stub_driver.library(top, "libtop.so.1", "z", libraries=(":libmiddle.so.1",), flags=flags)
        view = opened(tree)
        image = preflight.Image(view, preflight.MACHINES[MACHINE])
        listed = list(preflight.problems(image, [preflight.of_driver(driver(("libtop.so.1",)))], set()))
        os.close(view.fd)
        assert [problem.soname for problem in listed] == ["libdeep.so.1"] * found


def test_libraries_that_need_each_other_are_followed_once(tree: Path) -> None:
    first, second = tree / rootfs.LIBDIR / "libfirst.so.1", tree / rootfs.LIBDIR / "libsecond.so.1"
    stub_driver.library(first, "libfirst.so.1", "x")
    stub_driver.library(second, "libsecond.so.1", "y", needed=first)
    stub_driver.library(first, "libfirst.so.1", "x", needed=second)
    check(tree, driver(("libfirst.so.1",)))
    second.unlink()
    assert "'libfirst.so.1' needs it" in str(refusal(tree, driver(("libfirst.so.1",))))


def test_a_file_that_a_loader_would_refuse_is_missing_and_the_reason_is_told(tree: Path) -> None:
    """What is left of a library where large files were not fetched."""
    library = tree / rootfs.LIBDIR / "libm.so.6"
    library.unlink()
    library.write_text("version https://git-lfs.github.com/spec/v1\n" + "oid sha256:0\n" * 4)
    error = refusal(tree)
    assert error.code == "VGPU-DEP-001" and "libm.so.6' is not an ELF file)" in str(error)


def test_a_part_of_another_glibc_is_told_to_be_one(tree: Path) -> None:
    wanted = Library("/x", "libown.so.1", "plain", "compute", ("libc.so.6",), {"libc.so.6": ("GLIBC_PRIVATE",)}, ())
    check(tree, wanted)
    library = tree / rootfs.LIBDIR / "libc.so.6"
    image = library.read_bytes()
    library.unlink()
    library.write_bytes(image.replace(b"GLIBC_PRIVATE", b"GLIBC_PUBLIC0"))
    assert "from one and the same glibc" in refusal(tree, wanted).remedy


def test_a_search_that_would_not_end_is_refused(tree: Path) -> None:
    names = tuple(f"libnone{number}.so.1" for number in range(300))
    with pytest.raises(ImageError) as caught:
        check(tree, driver(names), env=("LD_LIBRARY_PATH=" + ":/usr" * 200,))
    assert caught.value.code == "VGPU-IMG-005"


def test_a_glibc_that_is_too_old_is_told_with_both_versions(tree: Path) -> None:
    error = refusal(tree, driver(("libc.so.6",), needs="GLIBC_2.99"))
    highest = max((v for v in elf.parse_bytes(LIBC.read_bytes()).provides if "PRIV" not in v), key=preflight.order)
    assert error.code == "VGPU-DEP-002"
    assert "'GLIBC_2.99'" in str(error) and f"'{highest}'" in str(error)
    assert "glibc 2.99 or newer" in error.remedy


def test_a_library_without_versions_is_taken_as_the_loader_takes_it(tree: Path) -> None:
    own = tree / rootfs.LIBDIR / "libold.so.1"
    stub_driver.library(own, "libold.so.1", "x")
    check(tree, Library("/x", "libcuda.so.1", "cuda", "compute", ("libold.so.1",), {"libold.so.1": ("V_1",)}, ()))


def test_musl_is_told_from_nothing_at_all(tmp_path: Path) -> None:
    musl, empty = tmp_path / "musl", tmp_path / "empty"
    for root in (musl, empty):
        root.mkdir()
    rootfs.musl_root(musl)
    rootfs.static_root(empty)
    assert refusal(musl).code == "VGPU-DEP-003"
    error = refusal(empty)
    assert error.code == "VGPU-DEP-004" and "glibc" in error.remedy


def test_a_libc_for_another_machine_is_said_to_be_one(tree: Path) -> None:
    libc = tree / rootfs.LIBDIR / "libc.so.6"
    data = bytearray(libc.read_bytes())
    libc.unlink()
    data[18:20] = (40).to_bytes(2, "little")
    libc.write_bytes(data)
    error = refusal(tree)
    assert error.code == "VGPU-DEP-004" and "machine 40" in str(error)
    data[4] = 1  # 32 bits
    libc.write_bytes(data)
    assert "64-bit" in str(refusal(tree))


@pytest.mark.parametrize(
    "folder", [f"usr/lib/{rootfs.MULTIARCH}", "usr/lib64", "usr/lib"], ids=["debian", "fedora", "arch"]
)
def test_the_library_folder_is_where_the_image_has_its_libc(tmp_path: Path, folder: str) -> None:
    libdir = tmp_path / folder
    libdir.mkdir(parents=True)
    for name in ("libc.so.6", "libm.so.6", LOADER.name):
        (libdir / name).write_bytes((LIBC.parent / name).read_bytes())
    found = check(tmp_path)
    assert os.path.realpath(f"{tmp_path}{found.libdir}") == str(libdir)


def test_copies_are_found_where_loaders_look(tree: Path) -> None:
    places = {
        f"/lib/{rootfs.MULTIARCH}/libcuda.so.1": "cuda",
        f"/lib/{rootfs.MULTIARCH}/libnvidia-ml.so": "nvml",
        "/usr/local/cuda-12/compat/libcuda.so.535.1": "cuda",
        "/opt/x/libnvidia-ml.so.1": "nvml",
    }
    for place in (*places, "/opt/unseen/libcuda.so.1", f"/lib/{rootfs.MULTIARCH}/libcudart.so.1"):
        path = tree / place.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = check(tree, env=("LD_LIBRARY_PATH=/opt/x:", "PATH=/opt/unseen"))
    assert set(found.copies) == {Copy(path, role) for path, role in places.items()}


@pytest.mark.parametrize(
    ("program", "env", "cwd"),
    [
        ("/opt/app/bin/server", (), "/"),
        ("server", ("PATH=/nowhere:/opt/app/bin",), "/"),
        ("./server", (), "/opt/app/bin"),
        ("/usr/bin/link", (), "/"),  # $ORIGIN is where the file is, not where its link is
        ("/usr/bin/script", (), "/"),
        ("by-env", ("PATH=/usr/bin:/opt/app/bin",), "/"),
    ],
)
@pytest.mark.parametrize("tag", ["--enable-new-dtags", "--disable-new-dtags"])
def test_copies_are_found_where_the_containers_own_program_looks(
    tree: Path, program: str, env: tuple[str, ...], cwd: str, tag: str
) -> None:
    folder = tree / "opt/app/bin"
    folder.mkdir(parents=True)
    rpath = f"-Wl,{tag},-rpath,/nowhere:$ORIGIN/../lib"
    subprocess.run(
        ["gcc", "-x", "c", "-", "-o", folder / "server", rpath], input=b"int main(void) { return 0; }", check=True
    )
    (tree / "usr/bin").mkdir(parents=True, exist_ok=True)
    (tree / "usr/bin/link").symlink_to("/opt/app/bin/server")
    for name, line in (("script", "/opt/app/bin/server -x"), ("by-env", "/usr/bin/env -S A=1 server")):
        (tree / "usr/bin" / name).write_text(f"#!{line}\n")
        (tree / "usr/bin" / name).chmod(0o755)
    (tree / "usr/bin/env").write_bytes((folder / "server").read_bytes())
    (tree / "opt/app/lib").mkdir()
    (tree / "opt/app/lib/libcuda.so.1").write_bytes(b"")
    (copy,) = check(tree, program=program, env=env, cwd=cwd).copies
    assert copy.role == "cuda" and os.path.normpath(copy.path) == "/opt/app/lib/libcuda.so.1"
    assert check(tree, program="/usr/bin/nothing").copies == check(tree).copies == ()


def test_a_program_that_leads_in_circles_or_is_none_finds_nothing(tree: Path) -> None:
    folder = tree / "app"
    folder.mkdir()
    (folder / "circle").write_text("#!/app/circle\n")
    (folder / "broken").write_bytes(b"\x7fELF" + bytes(60))
    (folder / "empty").write_bytes(b"#!")
    for path in folder.iterdir():
        path.chmod(0o755)
    os.mkfifo(folder / "fifo", 0o755)
    (folder / "out").symlink_to("../../../../../bin/sh")
    for name in ("circle", "broken", "empty", "fifo", "out", "", "\0", "/"):
        assert check(tree, program=f"/app/{name}").copies == ()


def test_a_folder_with_too_many_copies_is_refused(tree: Path) -> None:
    for number in range(100):
        (tree / rootfs.LIBDIR / f"libcuda.so.{number}").write_bytes(b"")
    assert refusal(tree).code == "VGPU-IMG-001"


def test_this_machines_root_takes_less_than_ten_milliseconds(machine_root: RootView) -> None:
    durations = []
    for _ in range(5):
        started = time.perf_counter()
        preflight.check(machine_root, [driver()], [], Start(), MACHINE)
        durations.append(time.perf_counter() - started)
    assert min(durations) < 0.010


def test_real_driver_libraries_load_in_a_debian_root(tree: Path, real_driver: Path) -> None:
    found = {path.name: path for path in real_driver.rglob("*.so.*") if not path.is_symlink()}
    wanted = []
    for start, capability in inventory_scan.LIBRARIES.items():
        names = [name for name in found if name.startswith(f"{start}.so.")]
        wanted += [inventory_scan.library(str(found[name]), capability) for name in names]
    assert {library.soname for library in wanted} >= {
        "libcuda.so.1",
        "libnvidia-ml.so.1",
        "libnvidia-ptxjitcompiler.so.1",
    }
    check(tree, *wanted)
    (tree / rootfs.LIBDIR / "librt.so.1").unlink()
    error = refusal(tree, *wanted)
    assert error.code == "VGPU-DEP-001" and "'librt.so.1'" in str(error)
