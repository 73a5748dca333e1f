"""Sources are checked through their descriptors, folders are made below the root only; tests/e2e/test_attacks.py has
the same on real runtimes."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from oci_hook import inside, mounts
from oci_hook.errors import HostError, ImageError
from oci_hook.mountinfo import MountInfo
from oci_hook.preflight import Found
from oci_hook.records import Mount
from oci_hook.values import replace


@pytest.fixture
def source(tmp_path: Path) -> Mount:
    path = tmp_path / "libdriver.so"
    path.write_bytes(b"driver")
    return Mount(str(path), "library", "libdriver.so.1", mounts.identity(path.stat()))


def refused(mount: Mount) -> HostError:
    with pytest.raises(HostError) as caught:
        mounts.open_sources([mount])
    return caught.value


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def replace_by_copy(path: Path) -> None:
    copy = path.with_suffix(".new")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)


def grow(path: Path) -> None:
    path.write_bytes(b"driver and more")


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_link(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


@pytest.mark.parametrize(
    "change", [touch, replace_by_copy, grow, make_fifo, make_link, Path.unlink], ids=lambda change: change.__name__
)
def test_a_source_that_is_not_what_was_scanned_is_refused(source: Mount, change: Callable[[Path], None]) -> None:
    change(Path(source.source))
    error = refused(source)
    assert error.code == "VGPU-DEP-005" and source.source in str(error)
    assert "no such file" not in error.line().lower()  # dockerd would take it for something else


@pytest.mark.parametrize(("mode", "owner"), [(0o664, 0), (0o646, 0), (0o644, 1234)])
def test_a_source_that_others_can_write_is_refused(source: Mount, mode: int, owner: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: it gives files away")
    os.chmod(source.source, mode)
    os.chown(source.source, owner, 0)
    assert refused(source).code == "VGPU-HOST-006"


def test_a_file_that_is_to_be_written_may_be_writable(source: Mount) -> None:
    os.chmod(source.source, 0o666)
    mounts.open_sources([replace(source, writable=True)])


def test_an_old_kernel_is_told_as_such() -> None:
    error = mounts.kernel_refused("make mounts", OSError(errno.ENOSYS, "x"))
    assert error.code == "VGPU-HOST-005" and "5.12" in error.remedy


def test_mountinfo_tells_device_kind_and_sharing() -> None:
    info = MountInfo(
        "22 1 0:5 / /dev rw,nosuid shared:2 - devtmpfs udev rw\n"
        "30 22 8:1 /a /b\\040c rw - ext4 /dev/sda rw\n"
        "31 22 0:40 / /d rw master:7 propagate_from:2 - tmpfs tmpfs rw\n"
    )
    shared = {number: mount.shared for number, mount in info.mounts.items()}
    assert shared == {22: True, 30: False, 31: False}
    assert [mount.kind for mount in info.mounts.values()] == ["devtmpfs", "ext4", "tmpfs"]
    assert info.devices() == {"0:5", "8:1", "0:40"}
    assert info.get(99) is None


def in_private_namespace(work: Callable[[], None]) -> None:
    """Runs `work` in a child with a mount namespace of its own, and raises here what it raised there."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes mounts")
    with subprocess.Popen(["unshare", "--mount", "sleep", "60"]) as holder:
        try:
            while Path(f"/proc/{holder.pid}/comm").read_text() != "sleep\n":
                pass
            there = inside.Namespaces(holder.pid)
            assert not there.own_mount and there.own_user

            def enter_and_work() -> None:
                there.enter(user=False)
                work()

            inside.run(enter_and_work, 20)
        finally:
            holder.kill()


def run(command: str, *args: Path) -> None:
    subprocess.run([*command.split(), *args], check=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    (made / "usr/lib").mkdir(parents=True)
    (made / "dev").mkdir()
    return made


def opened(root: Path, host_devices: frozenset[str] = frozenset()) -> mounts.Container:
    return mounts.Container(os.open(root, os.O_PATH | os.O_DIRECTORY), host_devices)


def test_missing_folders_are_made_and_belong_to_the_roots_owner(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: it gives files away")
    os.chown(root, 1234, 1235)
    opened(root).folder("/usr/lib/a/b/c")
    for path in ("usr/lib/a", "usr/lib/a/b/c"):
        status = (root / path).stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (1234, 1235, 0o755)


def test_a_library_is_mounted_read_only_and_seen_by_its_name(root: Path, source: Mount) -> None:
    target = root / "usr/lib/libdriver.so.1"

    def work() -> None:
        run("mount --bind", root, root)
        sources = mounts.open_sources([source])
        mounts.clone(sources[0])
        opened(root).apply(sources, Found("/usr/lib", ()), "/usr/lib/vgpu")
        assert target.read_bytes() == b"driver"
        flags = os.statvfs(target).f_flag
        assert flags & os.ST_RDONLY and flags & os.ST_NOSUID and flags & os.ST_NODEV and not flags & os.ST_NOEXEC
        with pytest.raises(OSError):
            target.write_bytes(b"x")

    in_private_namespace(work)
    assert target.read_bytes() == b""  # outside there is the placeholder only
    assert target.stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("own", [True, False], ids=["the-runtimes-tmpfs", "a-folder-of-the-host"])
def test_files_are_only_made_in_a_dev_that_is_the_containers_own(root: Path, tmp_path: Path, own: bool) -> None:
    host = tmp_path / "host"
    host.mkdir()
    host_devices = MountInfo.of_this_namespace().devices()

    def work() -> None:
        run("mount --bind", root, root)
        if own:
            run("mount -t tmpfs none", root / "dev")
        else:
            run("mount --bind", host, root / "dev")
        opened(root, host_devices).folder("/dev/vgpu-sim")

    if own:
        in_private_namespace(work)
    else:
        with pytest.raises(ImageError, match="covers '/dev'") as caught:
            in_private_namespace(work)
        assert caught.value.code == "VGPU-IMG-003"
    assert list(host.iterdir()) == []
    assert list((root / "dev").iterdir()) == []


def test_nothing_is_mounted_over_what_is_shared(root: Path, source: Mount) -> None:
    def work() -> None:
        run("mount --bind", root, root)
        run("mount --make-shared", root)
        sources = mounts.open_sources([source])
        mounts.clone(sources[0])
        opened(root).apply(sources, Found("/usr/lib", ()), "/usr/lib/vgpu")

    with pytest.raises(ImageError) as caught:
        in_private_namespace(work)
    assert caught.value.code == "VGPU-IMG-003"


def test_a_link_to_a_name_of_ours_is_left_alone(root: Path, source: Mount) -> None:
    """Images that were committed after a start have `libcuda.so -> libcuda.so.1`."""
    (root / "usr/lib/libdriver.so").symlink_to("libdriver.so.1")

    def work() -> None:
        run("mount --bind", root, root)
        sources = mounts.open_sources([replace(source, target="libdriver.so"), source])
        for one in sources:
            mounts.clone(one)
        opened(root).apply(sources, Found("/usr/lib", ()), "/usr/lib/vgpu")
        assert (root / "usr/lib/libdriver.so").read_bytes() == b"driver"
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        assert points.count(str(root / "usr/lib/libdriver.so.1")) == 1

    in_private_namespace(work)
    assert os.readlink(root / "usr/lib/libdriver.so") == "libdriver.so.1"


def test_what_others_have_mounted_is_not_mounted_twice(root: Path, source: Mount) -> None:
    """NVIDIA's toolkit mounts the same driver: once is enough, unless it is only the same file without a mount."""
    mounted, linked = root / "usr/lib/libdriver.so.1", root / "usr/lib/libdriver.so.2"
    mounted.write_bytes(b"")
    os.link(source.source, linked)

    def work() -> None:
        run("mount --bind", root, root)
        run("mount --bind -o ro", Path(source.source), mounted)
        sources = mounts.open_sources([source, replace(source, target=linked.name)])
        for one in sources:
            mounts.clone(one)
        opened(root).apply(sources, Found("/usr/lib", ()), "/usr/lib/vgpu")
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for path in (mounted, linked):
            assert path.read_bytes() == b"driver"
            assert points.count(str(path)) == 1 and os.statvfs(path).f_flag & os.ST_RDONLY

    in_private_namespace(work)
