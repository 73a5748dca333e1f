"""One image, packed in every way that it can come: the doctor sees the same in each."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from looked import checks, findings, seen

from tests.harness import packed, rootfs
from tests.harness.dockerd import Docker
from tests.harness.packed import Entry
from vgpu.doctor.image import layer, source
from vgpu.doctor.image.driver import Driver
from vgpu.doctor.image.layer import Budget
from vgpu.doctor.image.tree import Tree

Root = Callable[..., Path]
ROOT = Path(__file__).parents[3]
CONFIG = packed.document(Entrypoint=["serve"], Env=["PATH=/usr/bin"], Labels={"vgpu.cores": "30"})


@pytest.fixture
def lacking(debian_root: Root) -> Path:
    """A root without libm.so.6, and with a program."""
    root = debian_root("bookworm", "busybox-static")
    (root / rootfs.LIBDIR / "libm.so.6").unlink()
    (root / "usr/bin/serve").symlink_to("busybox")
    return root


def as_layout(root: Path, target: Path) -> Path:
    return packed.written(packed.layout([packed.layer(packed.of_tree(root))], CONFIG), target / "layout")


def as_file(data: bytes, path: Path) -> Path:
    path.write_bytes(data)
    return path


PACKINGS: dict[str, Callable[[Path, Path], Path]] = {
    "folder": lambda root, target: root,
    "tree": lambda root, target: as_file(packed.layer(packed.of_tree(root)), target / "tree.tar"),
    "tree.gz": lambda root, target: as_file(gzip.compress(packed.layer(packed.of_tree(root)), 1), target / "tree.tgz"),
    "saved": lambda root, target: as_file(
        packed.saved([packed.layer(packed.of_tree(root))], CONFIG), target / "saved.tar"
    ),
    "layout": as_layout,
    "layout.tar": lambda root, target: as_file(
        packed.layer(packed.layout([packed.layer(packed.of_tree(root))], CONFIG)), target / "layout.tar"
    ),
    "saved, unpacked": lambda root, target: unpacked(
        packed.saved([packed.layer(packed.of_tree(root))], CONFIG), target / "unpacked"
    ),
}


def unpacked(data: bytes, target: Path) -> Path:
    target.mkdir()
    subprocess.run(["tar", "-C", target, "-x"], input=data, check=True, timeout=60)
    return target


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_same_fault_is_found_however_it_is_packed(
    packing: str, lacking: Path, tmp_path: Path, driver: Driver
) -> None:
    image = PACKINGS[packing](lacking, tmp_path)
    found = checks(image, driver, deep=True)
    assert [one.code for check in found for one in check.findings] == ["VGPU-DEP-001", "VGPU-DEP-006"]
    if packing not in ("folder", "tree", "tree.gz"):
        assert "its labels ask for vgpu.cores" in seen(found, "request")
        assert "/usr/bin/serve is a static program" in seen(found, "program")
    shutil.copy(Path("/usr/lib", rootfs.MULTIARCH, "libm.so.6"), lacking / rootfs.LIBDIR)
    for name in ("layout", "unpacked"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    assert findings(PACKINGS[packing](lacking, tmp_path), driver, deep=True) == []


def test_a_plain_user_can_look_at_a_root_and_is_told_what_he_cannot_see(lacking: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: it becomes another user")
    (lacking / "root/secret").mkdir(parents=True)
    (lacking / "root/secret").chmod(0o700)
    for folder in (lacking, *lacking.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    code = "import sys; from looked import *; found = checks(sys.argv[1], None, deep=True); print(unseen(found))"
    done = subprocess.run(
        [sys.executable, "-c", code, lacking], capture_output=True, text=True, user=65534, group=65534, extra_groups=[],
        env={"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "PYTHONDONTWRITEBYTECODE": "1"}, timeout=60, check=True,
    )  # fmt: skip
    assert "/root/secret: Permission denied" in done.stdout


def tree(*layers: list[Entry]) -> Tree:
    return Tree([layer.read(as_stream(packed.layer(entries)), Budget()) for entries in layers])


def as_stream(data: bytes) -> layer.Stream:
    import io

    return io.BytesIO(data)


def test_whiteouts_take_away_what_lies_below_and_nothing_else() -> None:
    found = tree(
        [Entry("a/one", b"1"), Entry("a/two", b"2"), Entry("b/c/three", b"3"), Entry("keep", b"4")],
        [Entry("a/.wh.one"), Entry("b/.wh..wh..opq"), Entry("b/new", b"5"), Entry(".wh.none"), Entry(".wh..wh.plnk")],
    )
    assert sorted(found.files()) == ["/a/two", "/b/new", "/keep"]


def test_a_whiteout_of_everything_leaves_its_own_layer() -> None:
    assert sorted(tree([Entry("a/b", b"1")], [Entry(".wh..wh..opq"), Entry("c", b"2")]).files()) == ["/c"]


def test_layers_meet_through_links_and_replace_what_is_of_another_kind() -> None:
    found = tree(
        [packed.folder("usr/lib"), packed.link("lib", "usr/lib"), Entry("was/folder", b"1"), Entry("file", b"2")],
        [Entry("lib/libx.so", b"3"), Entry("was", b"4"), Entry("file/in", b"5")],
        [packed.hard("again", "usr/lib/libx.so"), packed.hard("never", "missing"), Entry("usr/lib/libx.so", b"6")],
    )
    assert sorted(found.files()) == ["/again", "/file/in", "/usr/lib/libx.so", "/was"]
    assert found.real("/lib/libx.so") == "/usr/lib/libx.so" and found.names("/lib") == ["libx.so"]
    assert found.identity("/again") != found.identity("/usr/lib/libx.so")  # a new file took the name


def test_of_several_images_the_named_one_or_that_of_this_processor_is_taken(tmp_path: Path) -> None:
    first = packed.written(packed.layout([packed.layer([Entry("first", b"1")])], CONFIG), tmp_path / "both")
    index = json.loads((first / "index.json").read_text())["manifests"][0]
    second = packed.written(packed.layout([packed.layer([Entry("second", b"2")])], CONFIG), tmp_path / "both")
    other = json.loads((second / "index.json").read_text())["manifests"][0]
    index["platform"]["architecture"] = "arm64"
    other["annotations"] = {"org.opencontainers.image.ref.name": "v2"}
    (first / "index.json").write_text(json.dumps({"manifests": [index, other]}))
    for name, machine, expected in (
        (first, "x86_64", "/second"),
        (first, "aarch64", "/first"),
        (f"{first}:v2", "aarch64", "/second"),
    ):
        with source.opened(str(name), machine, "", lambda _: None) as image:
            assert list(image.root.files()) == [expected]
    assert findings(f"{first}:v3", None)[0].code == "VGPU-IMG-006"


@pytest.mark.parametrize("program", ["xz", "bzip2"])
def test_a_packing_that_is_not_read_is_named_with_what_unpacks_it(program: str, tmp_path: Path) -> None:
    if shutil.which(program) is None:
        heads = {"xz": b"\xfd7zXZ\0", "bzip2": b"BZh9"}
        as_file(heads[program] + bytes(600), tmp_path / "packed")
    else:
        data = subprocess.run(
            [program, "-c"], input=packed.layer([Entry("a", b"1")]), stdout=subprocess.PIPE, check=True
        )
        as_file(data.stdout, tmp_path / "packed")
    found = findings(tmp_path / "packed", None)
    assert [one.code for one in found] == ["VGPU-IMG-006"]
    assert f"packed with {program}" in found[0].evidence and f"{program} -d" in found[0].remedy


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "loop"])
def test_what_is_no_file_is_refused_and_blocks_nobody(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path)
    assert [one.code for one in findings(path, None)] == ["VGPU-IMG-006"]


@pytest.mark.e2e
def test_an_image_of_docker_itself(docker: Docker, c_tree: Path, tmp_path: Path, driver: Driver) -> None:
    """Through Docker's API, and from what its own `docker save` writes."""
    from tests.harness import images

    tag = images.load(docker, c_tree, "doctor-image:1", ['ENTRYPOINT ["/usr/bin/cuda_client"]', "LABEL vgpu.cores=30"])
    broken = tmp_path / "broken"
    rootfs.link_tree(c_tree, broken)
    (broken / rootfs.LIBDIR / "libpthread.so.0").unlink()
    images.load(docker, broken, "doctor-image:2", ['ENTRYPOINT ["/usr/bin/cuda_client"]'])
    found = checks(tag, driver, docker=docker.host)
    assert [one for check in found for one in check.findings] == []
    assert "its labels ask for vgpu.cores" in seen(found, "request")
    assert "/usr/bin/cuda_client has all libraries" in seen(found, "program")
    docker("save", "-o", str(tmp_path / "saved.tar"), "doctor-image:2")
    for name in ("doctor-image:2", tmp_path / "saved.tar"):
        lacking = findings(name, driver, docker=docker.host)
        assert {one.code for one in lacking} <= {"VGPU-DEP-001", "VGPU-DEP-006"} and "libpthread.so.0" in lacking[
            0
        ].evidence
    # a file that a later layer takes away: Docker's own whiteout
    lost = f"/{rootfs.LIBDIR}/librt.so.1"
    docker("run", "--name", "cut", "--entrypoint", "/usr/bin/busybox", tag, "rm", lost, check=True)
    docker("commit", "cut", "doctor-image:cut", check=True)
    docker("rm", "cut", check=True)
    docker("save", "-o", str(tmp_path / "cut.tar"), "doctor-image:cut", check=True)
    for name in ("doctor-image:cut", tmp_path / "cut.tar"):
        (lacking,) = (one for one in findings(name, driver, docker=docker.host) if one.code == "VGPU-DEP-001")
        assert "'librt.so.1' is not in the image" in lacking.evidence
    missing = findings("doctor-image:3", driver, docker=docker.host)
    assert (missing[0].code, missing[0].remedy) == ("VGPU-IMG-006", "docker pull doctor-image:3, or name a folder")


@pytest.mark.e2e
@pytest.mark.parametrize("form", ["oci-archive", "oci-dir", "docker-archive"])
def test_what_podman_saves(form: str, podman_saved: Path, driver: Driver) -> None:
    """Written by Podman itself, of an image without libpthread.so.0."""
    found = checks(podman_saved / form, driver)
    listed = [one for check in found for one in check.findings]
    assert {one.code for one in listed} == {"VGPU-DEP-001"}
    assert "'libpthread.so.0' is not in the image" in listed[0].evidence
    assert "/usr/bin/busybox" in seen(found, "program") or "/bin/sh" in seen(found, "program")


@pytest.fixture(scope="module")
def podman_saved(e2e_folder: Path, needs_root: None, needs_build: None) -> Iterator[Path]:
    """A folder with what `podman save` writes in each form."""
    from tests.harness import debian, images, podman

    tree = images.tree(e2e_folder / "trees", "no-libpthread")
    folder = e2e_folder / "podman-image"
    try:
        with podman.running(folder, "bookworm") as made:
            archive = folder / "image.tar"
            subprocess.run(["tar", "-C", tree, "--numeric-owner", "-cf", archive, "."], check=True)
            made("import", "--quiet", "--change", 'CMD ["sh"]', archive, "doctor:1", check=True)
            for form in ("oci-archive", "oci-dir", "docker-archive"):
                made("save", "--quiet", "--format", form, "-o", folder / form, "doctor:1", check=True)
            yield folder
    except debian.NotOffered as missing:
        pytest.skip(str(missing))
