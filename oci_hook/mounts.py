"""The plan's bind mounts, made in a container's mount namespace through file descriptors alone.

No path is used twice: a source is opened once, and checked and cloned through that descriptor; a target is resolved
below the container's root by the kernel (openat2), and mounted over through the descriptor that this gave. What the
image or another container changes meanwhile can make the start fail, never lead it out of the root.

Order: `open_sources` and `clone` in the host's namespace, `apply` in the container's (without privileges on the host:
`clone` in the container's too, after its user namespace was entered).
"""

from __future__ import annotations

import errno
import os
import stat

from oci_hook import files, foreign_mounts, syscalls
from oci_hook.errors import HostError, ImageError, VgpuError, shown
from oci_hook.mountinfo import MountInfo
from oci_hook.records import Mount
from oci_hook.rootview import INSIDE
from oci_hook.values import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from oci_hook.preflight import Copy, Found

MAX_SHOWN = 256  # characters of a path in a message: whoever mends it needs the whole
_PATH = os.O_PATH | os.O_CLOEXEC
_FOLDER = os.O_PATH | os.O_DIRECTORY
_ONE_NAME = syscalls.BENEATH | syscalls.NO_SYMLINKS | syscalls.NO_XDEV
WRAPPED = {"libcuda.so.1": "cuda", "libnvidia-ml.so.1": "nvml"}  # SONAME of our wrapper -> role
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Source:
    """A file of the host that goes into the container. fd: O_PATH. tree: its detached mount, -1 until cloned."""

    def __init__(self, mount: Mount, fd: int) -> None:
        self.mount = mount
        self.fd = fd
        self.status = os.fstat(fd)
        self.tree = -1

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    def once_more(self) -> Source:
        """For one more place; this one is mounted by now, so its attributes are there already."""
        again = Source(self.mount, self.fd)
        try:
            again.tree = syscalls.clone_tree(self.tree)
        except OSError as error:
            raise kernel_refused(f"prepare the mount of {shown(self.mount.source, MAX_SHOWN)}", error) from None
        return again

    def is_seen_at(self, status: os.stat_result) -> bool:
        return (status.st_dev, status.st_ino) == (self.status.st_dev, self.status.st_ino)


def open_sources(mounts: Sequence[Mount]) -> list[Source]:
    """Each checked through its descriptor. Raises HostError VGPU-DEP-005 or -HOST-006."""
    return [_open_source(mount) for mount in mounts]


def _open_source(mount: Mount) -> Source:
    try:
        source = Source(mount, os.open(mount.source, _PATH | os.O_NOFOLLOW))
    except OSError as error:
        raise _replaced(mount, f"cannot be opened (errno {error.errno})") from None
    status = source.status
    if not stat.S_ISREG(status.st_mode) and not source.is_folder:
        raise _replaced(mount, f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no regular file')}")
    if mount.identity and mount.identity != identity(status):
        raise _replaced(mount, "is another file than at the last look")
    if not files.is_trusted(status.st_uid) or (status.st_mode & 0o022 and not mount.writable):
        raise HostError(
            "VGPU-HOST-006",
            f"{shown(mount.source, MAX_SHOWN)} is user {status.st_uid}'s, with mode {status.st_mode & 0o7777:04o}",
            remedy=f"chown root: {mount.source} && chmod go-w {mount.source}",
        )
    return source


def require_unchanged(sources: Sequence[Source]) -> None:
    """For sources that were opened a while ago: nobody has written to them since. HostError VGPU-DEP-005."""
    for source in sources:
        if source.mount.identity and source.mount.identity != identity(os.fstat(source.fd)):
            raise _replaced(source.mount, "was written to while the container was being set up")


def identity(status: os.stat_result) -> tuple[int, int, int, int]:
    """As records.Library.identity."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _replaced(mount: Mount, what: str) -> HostError:
    return HostError("VGPU-DEP-005", f"{shown(mount.source, MAX_SHOWN)} {what}", remedy="vgpu inventory --refresh")


def clone(source: Source) -> None:
    """Makes the detached mount: private, no setuid, no devices, read-only unless the plan says otherwise."""
    attributes = syscalls.NOSUID | syscalls.NODEV
    if not source.mount.writable:
        attributes |= syscalls.RDONLY
    if source.mount.writable or source.is_folder:
        attributes |= syscalls.NOEXEC  # data: quota, usage, simulated devices
    try:
        source.tree = syscalls.clone_tree(source.fd)
        syscalls.set_private_attributes(source.tree, attributes)
    except OSError as error:
        raise kernel_refused(f"prepare the mount of {shown(source.mount.source, MAX_SHOWN)}", error) from None


def kernel_refused(what: str, error: OSError) -> HostError:
    if error.errno == errno.ENOSYS:
        return HostError(
            "VGPU-HOST-005", f"the kernel has no way to {what} safely", remedy="use Linux 5.12 or newer on this host"
        )
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    remedy = "see what forbids it: dmesg | tail, or a seccomp filter, where the engine is in a container itself"
    return HostError("VGPU-HOST-005", f"the kernel did not {what} ({name})", remedy=remedy)


def reopen(source: Source) -> Source:
    """The same file, through the mount namespace that was entered since."""
    again = _open_source(source.mount)
    if not again.is_seen_at(source.status):
        raise _replaced(source.mount, "changed while the container was being set up")
    return again


class Target:
    """Where a source goes: `path` in the container, and the open folder and name that it stands for."""

    def __init__(self, source: Source, path: str, folder: int) -> None:
        self.source = source
        self.path = path
        self.folder = folder
        self.name = os.path.basename(path)


class Container:
    """The root of a container that is being created, seen from inside its mount namespace.

    root: O_PATH fd. host_devices: "major:minor" of every filesystem that the host has mounted.
    """

    def __init__(self, root: int, host_devices: frozenset[str]) -> None:
        self.root = root
        self.host_devices = host_devices
        self.info = MountInfo.of_this_namespace()
        status = os.fstat(root)
        self.owner = status.st_uid, status.st_gid
        self.folders: dict[str, int] = {}

    def apply(self, sources: Sequence[Source], found: Found, box: str) -> None:
        """All or nothing: after an error the container must not start; its mounts end with its namespace."""
        links: list[Target] = []
        done: list[Target] = []
        box_folder = -1
        for source in sources:
            if source.is_folder and source.mount.where == "path":  # the box, before what goes into it
                self._attach(source, self.folder(source.mount.target), source.mount.target)
                box_folder = source.tree
                continue
            target = self._target(source, found.libdir, box, box_folder)
            done.append(target)
            if not self._over_file(target):
                links.append(target)
        foreign = tuple(foreign_mounts.copies(self.root, self.info, sources))
        for target in links:
            self._over_link(target, foreign)
        done.extend(self._cover(sources, (*found.copies, *foreign)))
        for target in done:
            if not self._is_seen(target):
                raise _image("VGPU-IMG-003", target.path, "shows another file than the one that was mounted there")

    def make_room(self, sources: Sequence[Source], libdir: str) -> None:
        """The folders and files of the root that `apply` will need, made where they are missing: on a disk that is most
        of its time. For a container whose runtime has not made its mounts yet; nothing below /dev, which will be one.
        """
        for source in sources:
            mount = source.mount
            if source.is_folder and mount.where == "path":
                self.folder(mount.target)
            elif mount.where == "library" or (mount.where == "path" and not mount.target.startswith("/dev/")):
                target = self._target(source, libdir, "", -1)
                try:
                    os.close(os.open(target.name, _PATH | os.O_NOFOLLOW, dir_fd=target.folder))
                except FileNotFoundError:
                    os.close(self._placeholder(target))

    def _target(self, source: Source, libdir: str, box: str, box_folder: int) -> Target:
        mount = source.mount
        if mount.where == "box":
            return Target(source, f"{box}/{mount.target}", box_folder)
        path = f"{libdir}/{mount.target}" if mount.where == "library" else mount.target
        return Target(source, path, self.folder(os.path.dirname(path)))

    def _is_seen(self, target: Target) -> bool:
        try:
            fd = syscalls.openat2(self.root, target.path, os.O_PATH, INSIDE)
        except OSError:
            return False
        try:
            return target.source.is_seen_at(os.fstat(fd))
        finally:
            os.close(fd)

    # folders

    def folder(self, path: str) -> int:
        """The folder, made where it is missing, on the root's own filesystem or on the /dev that the runtime made."""
        if path not in self.folders:
            self.folders[path] = self._open_folder(path)
        return self.folders[path]

    def _open_folder(self, path: str) -> int:
        base, rest = self._base(path)
        try:
            return syscalls.openat2(base, rest, _FOLDER, INSIDE | syscalls.NO_XDEV)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise self._no_folder(path, error) from None
        fd, prefix = base, ""
        for name in rest.split("/"):
            prefix = f"{prefix}/{name}"
            fd = self._step(base, fd, prefix, name, path)
        return fd

    def _base(self, path: str) -> tuple[int, str]:
        parts = path.strip("/")
        if parts != "dev" and not parts.startswith("dev/"):
            return self.root, parts
        dev = self._dev()
        return (self.root, parts) if dev < 0 else (dev, parts[4:] or ".")

    def _dev(self) -> int:
        """The container's own /dev, a tmpfs that the runtime made for it; -1 if /dev is no mount."""
        try:
            fd = syscalls.openat2(self.root, "dev", _FOLDER, INSIDE)
        except OSError:
            return -1
        if syscalls.mount_id(fd) == syscalls.mount_id(self.root):
            os.close(fd)
            return -1
        mount = self.info.get(syscalls.mount_id(fd))
        # a host folder bound here would get our files: the host's filesystems are known by their numbers
        if mount is None or mount.kind != "tmpfs" or mount.device in self.host_devices:
            raise _covered("/dev")
        return fd

    def _step(self, base: int, parent: int, prefix: str, name: str, path: str) -> int:
        """The folder `prefix` (below `base`), made in `parent` if there is none."""
        try:
            return syscalls.openat2(base, prefix, _FOLDER, INSIDE | syscalls.NO_XDEV)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise self._no_folder(path, error) from None
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
            os.chown(name, *self.owner, dir_fd=parent, follow_symlinks=False)
            return syscalls.openat2(parent, name, _FOLDER | os.O_NOFOLLOW, _ONE_NAME)
        except FileExistsError:
            raise _image("VGPU-IMG-002", prefix, "is a link to nothing inside the image") from None
        except OSError as error:
            raise self._no_folder(path, error) from None

    def _no_folder(self, path: str, error: OSError) -> VgpuError:
        if error.errno == errno.EXDEV:
            return self._crossing(path)
        if error.errno == errno.ELOOP:
            return _image("VGPU-IMG-002", path, "leads through a link that no image may have")
        if error.errno == errno.ENOTDIR:
            return _image("VGPU-IMG-001", path, "is not a folder")
        if error.errno == errno.EROFS:
            return _image("VGPU-IMG-001", path, "cannot be made: the image's root is read-only even for the runtime")
        return kernel_refused(f"open {shown(path, MAX_SHOWN)} in the image", error)

    def _crossing(self, path: str) -> ImageError:
        """Whether a link of the image leads into another mount, or the container's own mount is in the way."""
        prefix = ""
        for name in path.strip("/").split("/"):
            prefix = f"{prefix}/{name}"
            try:
                fd = syscalls.openat2(self.root, prefix, os.O_PATH | os.O_NOFOLLOW, INSIDE)
            except OSError:
                break
            is_link = stat.S_ISLNK(os.fstat(fd).st_mode)
            os.close(fd)
            if is_link:
                try:
                    os.close(syscalls.openat2(self.root, prefix, os.O_PATH, INSIDE | syscalls.NO_XDEV))
                except OSError:
                    return _image("VGPU-IMG-002", prefix, "is a link that leads into another mount")
        return _covered(path)

    # files

    def _over_file(self, target: Target) -> bool:
        """Mounts over the regular file of that name, made if there is none. False: a link, to be done when all files
        are there.
        """
        try:
            fd = os.open(target.name, _PATH | os.O_NOFOLLOW, dir_fd=target.folder)
        except FileNotFoundError:
            fd = self._placeholder(target)
        except OSError as error:
            raise kernel_refused(f"open {shown(target.path, MAX_SHOWN)} in the image", error) from None
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        there = foreign_mounts.has(fd, self.root, target.source)  # once is enough
        if there or kind == stat.S_IFLNK:
            os.close(fd)
            return there
        if kind != (stat.S_IFDIR if target.source.is_folder else stat.S_IFREG):
            raise _image("VGPU-IMG-001", target.path, f"is {_KINDS.get(kind, 'no regular file')}")
        self._attach(target.source, fd, target.path)
        os.close(fd)
        return True

    def _placeholder(self, target: Target) -> int:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(target.name, flags, 0o444, dir_fd=target.folder)
            os.fchown(fd, *self.owner)  # with user namespaces ours would be nobody's
            return fd
        except FileExistsError:
            raise _image("VGPU-IMG-001", target.path, "appeared while the container was being set up") from None
        except OSError as error:
            raise self._no_folder(target.path, error) from None

    def _over_link(self, target: Target, foreign: Sequence[Copy]) -> None:
        """A link cannot be mounted over, and must not be removed from the image: mount over what it leads to."""
        if self._is_seen(target):
            return  # it leads to a name that is ours already
        try:
            fd = foreign_mounts.behind(self.root, target.path, foreign)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise _image("VGPU-IMG-001", target.path, "is a link to nothing inside the image") from None
            raise _image(
                "VGPU-IMG-002", target.path, "is a link that leads out of the image, or to another mount"
            ) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _image("VGPU-IMG-001", target.path, "is a link to something that is no regular file")
        self._attach(target.source, fd, target.path)
        os.close(fd)

    def _cover(self, sources: Sequence[Source], copies: Sequence[Copy]) -> Iterator[Target]:
        """Our wrapper goes over every other copy: they are files that exist, so nothing is made on any filesystem."""
        wrappers = {WRAPPED.get(source.mount.target): source for source in sources if source.mount.where == "library"}
        for copy in copies:
            wrapper = wrappers.get(copy.role)
            if wrapper is None:
                continue  # the container gets no such library of ours, so there is nothing to slice
            try:
                fd = syscalls.openat2(self.root, copy.path, os.O_PATH, INSIDE)
            except OSError:
                raise _image("VGPU-IMG-001", copy.path, "vanished while the container was being set up") from None
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise _image("VGPU-IMG-001", copy.path, "is no regular file any more")
            if not any(source.is_seen_at(status) for source in sources):  # else it is, or leads to, one of ours
                source = wrapper.once_more()
                self._attach(source, fd, copy.path)
                yield Target(source, copy.path, -1)
            os.close(fd)

    def _attach(self, source: Source, target: int, path: str) -> None:
        mount = self.info.get(syscalls.mount_id(target))
        if mount is not None and mount.shared:
            raise _covered(path)  # ours would show wherever that mount is shared with: on the host
        try:
            syscalls.attach(source.tree, target)
        except OSError as error:
            raise kernel_refused(f"mount over {shown(path, MAX_SHOWN)}", error) from None


def _image(code: str, path: str, what: str) -> ImageError:
    return ImageError(code, f"the image's {shown(path, MAX_SHOWN)} {what}", remedy=f"remove {path} from the image")


def _covered(path: str) -> ImageError:
    return ImageError(
        "VGPU-IMG-003",
        f"a mount of the container covers {shown(path, MAX_SHOWN)}, which the slice needs",
        remedy=f"mount it elsewhere than at or above {path}, and not as shared",
    )
