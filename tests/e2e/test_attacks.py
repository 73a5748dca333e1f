"""Images and mounts that try to lead the hook out of the container's root, on real runc and crun.

Either the slice is where it should be in spite of them, or the container does not start, with a code. In both cases the
host is as it was (hostile.ground). Numbers A1… are those of docs/threat-model.md.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.harness import hostile, rootfs
from tests.harness.hostile import Ground

pytestmark = pytest.mark.e2e
LIBDIR = f"/{rootfs.LIBDIR}"
CUDA = f"{LIBDIR}/libcuda.so.1"
WRAPPED = "MARK-wrapper-cuda-MARK"


def mark(path: str) -> str:
    """A shell command that prints the mark of the library at `path`."""
    return f"grep -ao 'MARK-[a-z-]*-MARK' {path}"


def put(root: Path, name: str, *, link: str = "", data: bytes = b"") -> Path:
    """A new file or link in the root, in the place of what was there: the tree's own files are hard links."""
    path = root / name.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    if link:
        path.symlink_to(link)
    else:
        path.write_bytes(data)
    return path


# what must be refused: (edit of the root, code)


def box_is_absolute_link(root: Path, canary: Path) -> None:
    put(root, "usr/lib/vgpu", link=str(canary))


def box_climbs_out(root: Path, canary: Path) -> None:
    put(root, "usr/lib/vgpu", link="../" * 20 + str(canary))


def box_is_magic_root(root: Path, canary: Path) -> None:
    put(root, "usr/lib/vgpu", link=f"/proc/self/root{canary}")


def box_is_magic_cwd(root: Path, canary: Path) -> None:
    put(root, "usr/lib/vgpu", link="/proc/1/cwd")


def box_is_loop(root: Path, canary: Path) -> None:
    put(root, "usr/lib/vgpu", link="vgpu")


def box_is_file(root: Path, canary: Path) -> None:
    put(root, "usr/lib/vgpu", data=b"in the way")


def lib_climbs_out(root: Path, canary: Path) -> None:
    put(root, "usr/lib", link="../" * 20 + str(canary))


def target_is_fifo(root: Path, canary: Path) -> None:
    os.mkfifo(root / CUDA.lstrip("/"))


def target_is_folder(root: Path, canary: Path) -> None:
    (root / CUDA.lstrip("/")).mkdir()


def target_is_device(root: Path, canary: Path) -> None:
    os.mknod(root / CUDA.lstrip("/"), 0o020666, os.makedev(1, 5))


def target_is_socket(root: Path, canary: Path) -> None:
    here = os.getcwd()
    os.chdir(root / LIBDIR.lstrip("/"))  # a socket's path has at most 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("libcuda.so.1")
    finally:
        os.chdir(here)


def target_links_to_host(root: Path, canary: Path) -> None:
    put(root, CUDA, link=str(canary / "file"))


def target_links_to_magic(root: Path, canary: Path) -> None:
    put(root, CUDA, link="/proc/self/exe")


def target_links_to_device(root: Path, canary: Path) -> None:
    put(root, CUDA, link="/dev/null")


def cache_is_huge(root: Path, canary: Path) -> None:
    put(root, "etc/ld.so.cache")
    os.truncate(root / "etc/ld.so.cache", 1 << 30)


REFUSED = [
    (box_is_absolute_link, "VGPU-IMG-002"),  # A1
    (box_climbs_out, "VGPU-IMG-002"),  # A2
    (lib_climbs_out, "VGPU-DEP-004"),  # A2: inside the root there is nothing, so no libc either
    (target_links_to_host, "VGPU-IMG-001"),  # A3
    (box_is_magic_root, "VGPU-IMG-002"),  # A4
    (box_is_magic_cwd, "VGPU-IMG-002"),  # A4
    (target_links_to_magic, "VGPU-IMG-002"),  # A4
    (box_is_loop, "VGPU-IMG-002"),
    (box_is_file, "VGPU-IMG-001"),  # A5
    (target_is_fifo, "VGPU-IMG-001"),  # A5
    (target_is_folder, "VGPU-IMG-001"),  # A5
    (target_is_device, "VGPU-IMG-001"),  # A5
    (target_is_socket, "VGPU-IMG-001"),  # A5
    (target_links_to_device, "VGPU-IMG-002"),  # A20
    (cache_is_huge, "VGPU-IMG-001"),  # A6
]


@pytest.mark.parametrize(("edit", "code"), REFUSED, ids=lambda value: getattr(value, "__name__", value))
def test_an_image_that_leads_out_is_refused(ground: Ground, edit: hostile.Edit, code: str) -> None:
    outcome = ground.attack(edit)
    assert outcome.code == code, outcome
    assert "\n" not in outcome.message


# what is contained: (edit of the root, where the wrapper must be seen)


def box_link_stays_inside(root: Path, canary: Path) -> None:
    put(root, "usr/lib/vgpu", link=str(canary))
    (root / str(canary).lstrip("/")).mkdir(parents=True)


def lib_link_stays_inside(root: Path, canary: Path) -> None:
    inside = root / str(canary).lstrip("/")
    inside.parent.mkdir(parents=True)
    (root / "usr/lib").rename(inside)
    (root / "usr/lib").symlink_to("../" * 20 + str(canary).lstrip("/"))


def target_is_empty(root: Path, canary: Path) -> None:
    put(root, CUDA)


def target_is_other_driver(root: Path, canary: Path) -> None:
    put(root, f"{LIBDIR}/libcuda.so.470.1", data=b"MARK-image-MARK")
    put(root, CUDA, link="libcuda.so.470.1")
    put(root, f"{LIBDIR}/libcuda.so", link="libcuda.so.1")


def target_link_is_absolute(root: Path, canary: Path) -> None:
    put(root, "opt/cuda", data=b"MARK-image-MARK")
    put(root, CUDA, link="/opt/cuda")


def cache_is_fifo(root: Path, canary: Path) -> None:
    os.mkfifo(root / "etc/ld.so.cache")


def cache_is_device(root: Path, canary: Path) -> None:
    put(root, "etc/ld.so.cache", link="/dev/zero")


def cache_is_folder(root: Path, canary: Path) -> None:
    (root / "etc/ld.so.cache").mkdir()


def cache_is_garbage(root: Path, canary: Path) -> None:
    put(root, "etc/ld.so.cache", data=b"glibc-ld.so.cache1.1" + b"\xff" * 4096)


def dev_null_is_link(root: Path, canary: Path) -> None:
    put(root, "dev/null", link=str(canary / "file"))


CONTAINED = [
    box_link_stays_inside,  # A1
    lib_link_stays_inside,  # A2
    target_is_empty,  # A5, and a container that was committed
    target_is_other_driver,
    target_link_is_absolute,  # A3
    cache_is_fifo,  # A6
    cache_is_device,  # A6
    cache_is_folder,  # A6
    cache_is_garbage,  # A6
    dev_null_is_link,  # A20
]


@pytest.mark.parametrize("edit", CONTAINED, ids=lambda edit: edit.__name__)
def test_the_slice_is_there_in_spite_of_the_image(ground: Ground, edit: hostile.Edit) -> None:
    script = f"{mark(CUDA)}; {mark('/usr/lib/vgpu/libvgpu-driver.so')}"
    outcome = ground.attack(edit, script)
    assert outcome.code == "", outcome
    assert outcome.output.split() == [WRAPPED, "MARK-driver-cuda-MARK"]


def test_dev_that_is_a_link_gets_nothing_of_ours(ground: Ground) -> None:
    """A20. runc before 1.5 writes its own links to where /dev leads (CVE-2026-41579), with or without us: those are
    taken away here, so that the canary shows what we did.
    """

    def edit(root: Path, canary: Path) -> None:
        put(root, "dev", link=str(canary))

    ground.attack(edit)
    for name in ("fd", "ptmx", "stdin", "stdout", "stderr", "core"):
        (ground.canary / name).unlink(missing_ok=True)


COPIES = {
    "/usr/local/cuda-12.4/compat/libcuda.so.1": [],
    "/usr/local/cuda-12.4/compat/libcuda.so.550.1": [],
    "/usr/lib/wsl/lib/libcuda.so.1": [],
    f"{LIBDIR}/glibc-hwcaps/x86-64-v3/libcuda.so.1": [],
    "/lib64/libcuda.so": [],
    "/opt/own/libcuda.so.1": ["LD_LIBRARY_PATH=/nowhere:/opt/own"],
    "/own/libcuda.so.1": ["LD_LIBRARY_PATH=own"],
}


@pytest.mark.parametrize("path", COPIES)
def test_every_copy_that_a_loader_could_find_is_covered(ground: Ground, path: str) -> None:
    def edit(root: Path, canary: Path) -> None:
        put(root, path, data=b"MARK-image-MARK")

    outcome = ground.attack(edit, mark(path), env=COPIES[path])
    assert outcome.output.split() == [WRAPPED], outcome


def test_a_copy_with_two_names_is_covered_under_both(ground: Ground) -> None:
    names = ("/opt/own/libcuda.so.1", "/opt/own/libcuda.so.2")

    def edit(root: Path, canary: Path) -> None:
        os.link(put(root, names[0], data=b"MARK-image-MARK"), root / names[1].lstrip("/"))

    outcome = ground.attack(edit, "; ".join(map(mark, names)), env=["LD_LIBRARY_PATH=/opt/own"])
    assert outcome.output.split() == [WRAPPED, WRAPPED], outcome


def bind(source: Path, target: str, *options: str) -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": str(source), "options": ["rbind", "rw", *options]}


@pytest.mark.parametrize("target", ["/usr/lib/vgpu", "/usr/lib", LIBDIR, "/dev"])
def test_a_mount_over_our_folders_is_refused(ground: Ground, target: str, tmp_path: Path) -> None:
    volume = tmp_path / "volume"  # A16, A17
    if target == "/dev":
        volume.mkdir()
    else:
        source = ground.tree / target.lstrip("/")
        shutil.copytree(source, volume, symlinks=True) if source.exists() else volume.mkdir()
    before = hostile.snapshot(volume)

    def change(config: dict[str, Any]) -> None:
        config["mounts"] = [mount for mount in config["mounts"] if not mount["destination"].startswith(target)]
        config["mounts"].append(bind(volume, target))

    outcome = ground.attack(lambda root, canary: None, change=change)
    if target == "/dev":  # the runtime puts its own devices there; ours must not follow
        assert outcome.code in ("VGPU-IMG-003", ""), outcome
        assert not (volume / "vgpu-sim").exists()
    else:
        assert outcome.code == "VGPU-IMG-003", outcome
        assert hostile.snapshot(volume) == before


def test_a_file_that_the_user_mounted_there_is_covered(ground: Ground, tmp_path: Path) -> None:
    own = tmp_path / "own.so"  # A16
    own.write_bytes(b"MARK-user-MARK")
    outcome = ground.attack(lambda root, canary: None, mark(CUDA), mounts=[bind(own, CUDA)])
    assert outcome.output.split() == [WRAPPED], outcome
    assert own.read_bytes() == b"MARK-user-MARK"


def test_nothing_of_ours_shows_in_a_shared_mount(ground: Ground, tmp_path: Path) -> None:
    """A19: a mount that we made in a shared one would appear on the host."""
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "libcuda.so.1").write_bytes(b"MARK-user-MARK")
    subprocess.run(["mount", "--bind", volume, volume], check=True)
    try:
        subprocess.run(["mount", "--make-shared", volume], check=True)
        outcome = ground.attack(
            lambda root, canary: None,
            mounts=[bind(volume, "/opt/own", "rshared")],
            env=["LD_LIBRARY_PATH=/opt/own"],
            change=lambda config: config["linux"].update(rootfsPropagation="shared"),
        )
        assert (volume / "libcuda.so.1").read_bytes() == b"MARK-user-MARK"
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        assert [point for point in points if point.startswith(str(volume))] == [str(volume)]
    finally:
        subprocess.run(["umount", volume], check=True)
    assert outcome.code == "VGPU-IMG-003", outcome


@pytest.mark.parametrize("propagation", ["private", "slave", "shared"])
def test_our_mounts_stay_in_the_container(ground: Ground, propagation: str) -> None:
    outcome = ground.attack(
        lambda root, canary: None,
        mark(CUDA),
        change=lambda config: config["linux"].update(rootfsPropagation=propagation),
    )
    assert outcome.output.split() == [WRAPPED] or outcome.code, outcome  # the canary's fixture looks at the host


@pytest.mark.slow  # fifteen starts
def test_a_volume_that_changes_all_the_time_leads_nowhere(ground: Ground, tmp_path: Path) -> None:
    """A7: another container swaps a folder and a link to the host under a name that our path leads through."""
    volume = tmp_path / "volume"
    (volume / "a").mkdir(parents=True)
    (volume / "b").symlink_to(ground.canary)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for source, target in (("a", "c"), ("b", "a"), ("c", "b")):
                os.rename(volume / source, volume / target)

    def edit(root: Path, canary: Path) -> None:
        put(root, "usr/lib/vgpu", link="/volume/a")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(15):
            outcome = ground.attack(edit, mounts=[bind(volume, "/volume")])
            assert outcome.code in ("VGPU-IMG-001", "VGPU-IMG-002", "VGPU-IMG-003"), outcome
    finally:
        stop.set()
        swapper.join()


def test_the_quota_cannot_be_written_from_inside(ground: Ground) -> None:
    script = (  # A21
        "for name in quota libvgpu-driver.so; do echo x > /usr/lib/vgpu/$name && echo written; done;"
        "mount -o remount,rw,bind /usr/lib/vgpu && echo remounted;"
        f"echo x > {CUDA} && echo written; echo done"
    )
    outcome = ground.attack(lambda root, canary: None, script)
    assert "done" in outcome.output
    assert "written" not in outcome.output and "remounted" not in outcome.output
