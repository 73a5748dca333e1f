"""Read and replace configuration files that are not ours alone.

A file is either replaced in full or left as it was: the new bytes are written beside it, synced, and renamed over it.
Owner, mode, ACLs and labels stay. A link is followed once and stays a link. Nothing is replaced that changed since it
was read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from oci_hook.errors import HostError, VgpuError

SIZE_LIMIT_BYTES = 4 << 20  # far above any real configuration file
BACKUP_SUFFIX = ".vgpu-backup"
NEW_FILE_MODE = 0o644


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A configuration file as it was read.

    path: as named by the user. target: the file itself, behind at most one link.
    data: its bytes, None if it does not exist. stat: what it was when read, None if it does not exist.
    """

    path: str
    target: str
    data: bytes | None
    stat: os.stat_result | None

    @property
    def backup_path(self) -> str:
        return self.target + BACKUP_SUFFIX


def _cannot_read(path: str, why: str, remedy: str) -> VgpuError:
    return HostError("VGPU-CFG-001", f"{path}: {why}", remedy=remedy)


def _cannot_write(path: str, error: OSError) -> VgpuError:
    remedies = {
        errno.ENOSPC: "free some space on its file system; the file is as it was",
        errno.EDQUOT: "free some space in its quota; the file is as it was",
        errno.EROFS: "remount its file system writable, or name another file; the file is as it was",
        errno.EACCES: "run the command as root; the file is as it was",
        errno.EPERM: "run the command as root, and check the file's attributes with lsattr; the file is as it was",
        errno.EBUSY: "the file is itself a mount: edit it where it is mounted from; it is as it was",
        errno.ENOENT: "create its folder, or name another file",
    }
    remedy = remedies.get(error.errno or 0, "mend that and run the command again; the file is as it was")
    return HostError("VGPU-CFG-002", f"{path} cannot be written: {error.strerror}", remedy=remedy)


def _target(path: str) -> str:
    """The file behind `path`, which may be one link. A link to a link is refused: which file is meant is not clear."""
    try:
        link = os.readlink(path)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):  # not a link; or nothing there
            return path
        raise
    target = os.path.normpath(os.path.join(os.path.dirname(path), link))
    if os.path.islink(target):
        raise _cannot_read(path, f"a link to {target}, which is a link too", f"name the file itself instead of {path}")
    return target


def read(path: str, limit_bytes: int = SIZE_LIMIT_BYTES) -> ConfigFile:
    """The file at `path`; a missing one is a ConfigFile without data. Raises VGPU-CFG-001."""
    path = os.path.abspath(path)
    try:
        target = _target(path)
        try:
            # O_NONBLOCK: a FIFO in its place must not make us wait
            fd = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return ConfigFile(path, target, None, None)
        with open(fd, "rb") as stream:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise _cannot_read(path, "not a regular file", "name a regular file, or remove what is there")
            data = stream.read(limit_bytes + 1)
    except OSError as error:
        raise _cannot_read(path, f"cannot be read: {error.strerror}", "run as root, or name another file") from None
    if len(data) > limit_bytes:
        raise _cannot_read(path, f"larger than {limit_bytes} bytes", "check that this is the right file")
    return ConfigFile(path, target, data, status)


def decode(file: ConfigFile) -> str:
    """The text of `file`, "" if it is missing. Line ends stay as they are. Raises VGPU-CFG-001 if it is not UTF-8."""
    try:
        return (file.data or b"").decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _cannot_read(file.path, f"line {line}: not UTF-8", "save the file as UTF-8") from None


def _identity(status: os.stat_result | None) -> tuple[int, ...] | None:
    return status and (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


@contextmanager
def _unchanged(file: ConfigFile) -> Iterator[None]:
    """Holds the folder's lock, so that two of our commands cannot both replace what both have read."""
    folder = os.open(os.path.dirname(file.target), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if _identity(_stat(file.target)) != _identity(file.stat):
            raise HostError(
                "VGPU-CFG-002",
                f"{file.path} was changed by somebody else while it was being edited",
                remedy="run the command again",
            )
        yield
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def _copy_ownership(fd: int, file: ConfigFile, mode: int) -> None:
    """What a plain rewrite would have kept: owner, mode, ACLs and security labels."""
    if file.stat is None:
        os.fchmod(fd, mode)
        return
    os.fchown(fd, file.stat.st_uid, file.stat.st_gid)
    os.fchmod(fd, stat.S_IMODE(file.stat.st_mode))
    try:
        attributes = os.listxattr(file.target)
    except OSError:  # a file system without attributes
        return
    for name in attributes:
        with suppress(OSError):  # one that only the kernel sets
            os.setxattr(fd, name, os.getxattr(file.target, name))


def _write_beside(file: ConfigFile, data: bytes, mode: int) -> str:
    """A synced new file in the folder of `file`; nothing is left behind if that fails. Raises OSError."""
    folder, name = os.path.split(file.target)
    temporary = os.path.join(folder, f".{name}.vgpu-{os.getpid()}-{os.urandom(4).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as stream:
            _copy_ownership(fd, file, mode)
            stream.write(data)
            stream.flush()
            os.fsync(fd)
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary


def replace(file: ConfigFile, data: bytes, mode: int = NEW_FILE_MODE) -> None:
    """Makes `data` the content of `file`, all or nothing. mode: for a file that did not exist, else the old one stays.

    Raises VGPU-CFG-002; the file is then as it was.
    """
    try:
        with _unchanged(file):
            temporary = _write_beside(file, data, mode)
            try:
                os.rename(temporary, file.target)
            except BaseException:
                os.unlink(temporary)
                raise
    except OSError as error:
        raise _cannot_write(file.path, error) from None


def remove(file: ConfigFile) -> None:
    """Deletes `file`. Raises VGPU-CFG-002."""
    try:
        with _unchanged(file):
            os.unlink(file.target)
    except OSError as error:
        raise _cannot_write(file.path, error) from None


def keep_backup(file: ConfigFile) -> str | None:
    """Writes the bytes of `file` to `<name>.vgpu-backup`, and returns that path; None if there is nothing to keep.

    An older backup with other bytes is not lost: it gets the time when it was made as a suffix. Raises VGPU-CFG-002.
    """
    backup = read(file.backup_path)
    if file.data is None or file.stat is None:
        _set_aside(backup)  # it is of an older file, and no longer what an undo should bring back
        return None
    if backup.data == file.data:
        return file.backup_path
    _set_aside(backup)
    absent = ConfigFile(file.backup_path, file.backup_path, None, None)
    replace(absent, file.data, mode=stat.S_IMODE(file.stat.st_mode))
    with suppress(OSError):
        os.chown(file.backup_path, file.stat.st_uid, file.stat.st_gid)
    return file.backup_path


def _set_aside(backup: ConfigFile) -> None:
    if backup.stat is None:
        return
    made = datetime.fromtimestamp(backup.stat.st_mtime, UTC).strftime("%Y%m%dT%H%M%SZ")
    try:
        os.rename(backup.target, f"{backup.target}.{made}")
    except OSError as error:
        raise _cannot_write(backup.path, error) from None
