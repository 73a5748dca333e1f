"""The ledger of what is given out: one folder per container below <state>/containers, changed only under <state>/lock.

A folder is built beside its place and renamed into it (the allocation), or renamed away and deleted (the release), so
whoever dies at any moment leaves either nothing, a name that begins with a dot, or an entry whose owner is dead.
The next start clears both. Nothing here raises for a dead owner; all that cannot be understood is refused
(VGPU-HOST-003): an entry of unknown size must not be counted as nothing.
"""

from __future__ import annotations

import os
import time

from oci_hook import fastjson, files, lock, neighbours
from oci_hook.errors import HostError, shown
from oci_hook.records import Allocation, Plan, Process
from oci_hook.values import TYPE_CHECKING, as_json, from_json, replace

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

ID_CHARACTERS = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.+-")
MAX_ID = 200  # a folder name is at most 255 bytes, and ours get a prefix and a pid
RESIZING = ".resize-"  # and a container's id: see resize.py
BOX_PLACEHOLDERS = ("libvgpu-driver.so", "libvgpu-nvml.so")
_MAX_FILE = 16 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_id(text: str) -> bool:
    """Whether a container id can be a folder's name here. Leading dots are ours."""
    return 0 < len(text) <= MAX_ID and ID_CHARACTERS.issuperset(text) and not text.startswith(".")


def folder(state_dir: str, container: str) -> str:
    """The container's folder; the id must have passed `is_id`."""
    assert is_id(container), container
    return f"{state_dir}/containers/{container}"


def process(pid: int) -> Process | None:
    """The living process `pid`, or None. A zombie is dead: it holds nothing any more."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # field 2 is the program's name in brackets and may hold anything; the last bracket ends it
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else Process(pid=pid, start_ticks=int(fields[19]))


def alive(allocation: Allocation) -> bool:
    """Whether the process that stands for the allocation runs: its creator until it is armed, then its init."""
    owner = allocation.init or allocation.creator
    return process(owner.pid) == owner


def read(state_dir: str, container: str) -> Allocation | None:
    """The container's allocation, or None. Raises HostError VGPU-HOST-003 for one that cannot be read."""
    path = f"{folder(state_dir, container)}/allocation.json"
    try:
        allocation = from_json(Allocation, fastjson.loads(files.read(path, _MAX_FILE)[0]))
        if allocation.id != container:
            raise ValueError(f"it is the entry of {allocation.id}")
        _check(allocation)
    except FileNotFoundError:
        if not os.path.lexists(folder(state_dir, container)):
            return None
        raise _unreadable(path, "it is not there, though its folder is") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unreadable(path, str(error)) from error
    return allocation


def read_plan(state_dir: str, container: str) -> Plan:
    """The container's plan. Raises HostError VGPU-HOST-003 if there is none that can be read."""
    path = f"{folder(state_dir, container)}/plan.json"
    try:
        return from_json(Plan, fastjson.loads(files.read(path, _MAX_FILE)[0]))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unreadable(path, str(error)) from error


def arm(state_dir: str, container: str, init: Process, *, timeout_s: float = 8.0) -> Allocation:
    """State "armed", owned by `init` from now on. Raises HostError: VGPU-HOST-003 if there is nothing to arm,
    VGPU-OCI-002 if that was done before.
    """
    with Ledger(state_dir, timeout_s=timeout_s) as ledger:
        return ledger.arm(container, init)


def release(state_dir: str, container: str, *, timeout_s: float = 8.0) -> bool:
    """Take the container's folder away; False if there was none."""
    with Ledger(state_dir, timeout_s=timeout_s) as ledger:
        return ledger.remove(container)


class Ledger:
    """The ledger, locked: `with Ledger(state_dir) as ledger`. The state folder is made if it is not there.

    timeout_s: how long to wait for the lock; then HostError VGPU-HOST-003. in_turn: of those who ask so only one waits
    for the lock at a time; so a hook, which its runtime kills after ten seconds, never waits behind all that start.
    """

    def __init__(self, state_dir: str, *, timeout_s: float = 30.0, in_turn: bool = False) -> None:
        self.state_dir = state_dir
        self.timeout_s = timeout_s
        self.in_turn = in_turn
        self._lock = -1
        self._containers = -1

    def __enter__(self) -> Ledger:
        try:
            prepare(self.state_dir)
            self._take_lock()
            self._containers = os.open(f"{self.state_dir}/containers", _DIRECTORY)
            self._clear_leftovers()
        except OSError as error:
            self._close()
            raise state_error(self.state_dir, error) from error
        except HostError:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def names(self) -> list[str]:
        """The ids that have an entry. Files are none of ours: an entry is a folder."""
        with os.scandir(self._containers) as found:
            return sorted(item.name for item in found if is_id(item.name) and item.is_dir(follow_symlinks=False))

    def entries(self) -> list[Allocation]:
        """All allocations. Raises HostError VGPU-HOST-003 if one cannot be read: what it holds is not known."""
        found = (read(self.state_dir, name) for name in self.names())
        return [allocation for allocation in found if allocation is not None]

    def reap(self, last: Callable[[Allocation], None] | None = None) -> list[Allocation]:
        """Remove the entries whose owner is dead, and return them. last: called with each, before its folder goes."""
        dead = [allocation for allocation in self.entries() if not alive(allocation)]
        for allocation in dead:
            if last is not None:
                last(allocation)
            self.remove(allocation.id)
        return dead

    def tick(self) -> int:
        """The next sequence number: above all before it, and not below Unix time in nanoseconds, so that numbers rise
        through reboots as well. Kept in the lock file; 0 if that cannot be written."""
        try:
            before = os.pread(self._lock, 20, 0)
            number = max(time.time_ns(), int(before) + 1 if before.isdigit() else 0)
            os.pwrite(self._lock, b"%020d" % number, 0)
        except OSError:
            return 0
        return number

    def add(self, allocation: Allocation, plan: Plan, quota: bytes, usage: bytes, usage_bytes: int) -> None:
        """Give out the slice. usage: the header; the file gets `usage_bytes`. Raises HostError VGPU-OCI-004 if the id
        has an entry, VGPU-HOST-003 if the files cannot be written.
        """
        new = f".new-{allocation.id}-{os.getpid()}"
        try:
            # 0700: usage can be written by everyone in the container, but by no one else on the host
            os.mkdir(new, 0o700, dir_fd=self._containers)
            base = os.open(new, _DIRECTORY, dir_fd=self._containers)
            try:
                os.mkdir("box", 0o755, dir_fd=base)
                box = os.open("box", _DIRECTORY, dir_fd=base)
                try:
                    os.fchmod(box, 0o755)  # whatever the umask
                    _write(box, "quota", quota, 0o644)
                    _write(box, "usage", usage, 0o666, size=usage_bytes)
                    used = neighbours.used_bytes(len(allocation.placement.slices))
                    _write(box, "share", b"", 0o666, size=used, length=neighbours.SHARE_BYTES)
                    for name in BOX_PLACEHOLDERS:
                        _write(box, name, b"", 0o644)
                    for number in range(len(allocation.placement.slices)):
                        os.mkdir(f"gpu{number}", 0o755, dir_fd=box)
                    neighbours.enter(self.state_dir, box, allocation.placement.slices, quota)
                finally:
                    os.close(box)
                _write(base, "plan.json", _text(plan), 0o600)
                _write(base, "allocation.json", _text(allocation), 0o600)
            finally:
                os.close(base)
            if allocation.id in self.names():
                raise self.occupied(allocation.id)
            os.rename(new, allocation.id, src_dir_fd=self._containers, dst_dir_fd=self._containers)
        except OSError as error:
            _remove(self._containers, new)
            raise state_error(self.state_dir, error) from error
        except HostError:
            _remove(self._containers, new)
            raise

    def arm(self, container: str, init: Process) -> Allocation:
        """As the function `arm`."""
        allocation = read(self.state_dir, container)
        if allocation is None:
            raise HostError(
                "VGPU-HOST-003",
                f"the slice of container {shown(container)} is gone from {self.state_dir}/containers",
                remedy="start the container again; if it happens again, look whether something clears that folder",
            )
        if allocation.state != "creating":
            raise HostError(
                "VGPU-OCI-002",
                f"the slice of container {shown(container)} is {allocation.state} already",
                remedy="let runc or crun call the hook, once for each start; it is no command for people",
            )
        return self.rewrite(replace(allocation, state="armed", init=init))

    def rewrite(self, allocation: Allocation) -> Allocation:
        """Put `allocation` in the place of its container's entry, at once. Raises HostError VGPU-HOST-003."""
        try:
            base = os.open(allocation.id, _DIRECTORY, dir_fd=self._containers)
            try:
                _discard(base, ".allocation.json")
                _write(base, ".allocation.json", _text(allocation), 0o600)
                os.rename(".allocation.json", "allocation.json", src_dir_fd=base, dst_dir_fd=base)
            finally:
                os.close(base)
        except OSError as error:
            raise state_error(self.state_dir, error) from error
        return allocation

    def mark(self, container: str) -> None:
        """Note that entry and quota file are about to differ: whoever next has the lock makes them equal again."""
        try:
            _discard(self._containers, RESIZING + container)
            _write(self._containers, RESIZING + container, b"", 0o600)
        except OSError as error:
            raise state_error(self.state_dir, error) from error

    def unmark(self, container: str) -> None:
        _quietly(os.unlink, RESIZING + container, self._containers)

    def remove(self, container: str) -> bool:
        """As the function `release`. An entry that cannot be read is removed as well."""
        if not is_id(container):
            return False
        old = f".old-{container}-{os.getpid()}"
        try:
            os.rename(container, old, src_dir_fd=self._containers, dst_dir_fd=self._containers)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise state_error(self.state_dir, error) from error
        _remove(self._containers, old)
        return True

    def occupied(self, container: str) -> HostError:
        """The refusal of a second container with the id of a living one."""
        return HostError(
            "VGPU-OCI-004",
            f"container {shown(container)} already has a slice, and its process still runs",
            remedy=f"delete that container first; its entry is {self.state_dir}/containers/{container}",
        )

    def _take_lock(self) -> None:
        turn = lock.take(f"{self.state_dir}/turn", self.timeout_s) if self.in_turn else -1
        try:
            self._lock = lock.take(f"{self.state_dir}/lock", self.timeout_s)
        finally:
            if turn >= 0:
                os.close(turn)

    def _clear_leftovers(self) -> None:
        # all changes are made under the lock, so whoever left a half-made folder is dead
        for name in os.listdir(self._containers):
            if name.startswith((".new-", ".old-")):
                _remove(self._containers, name)
            elif name.startswith(RESIZING):
                from oci_hook import resize  # no start needs it, unless a `vgpu set` was killed

                resize.repair(self, name.removeprefix(RESIZING))

    def _close(self) -> None:
        for descriptor in (self._containers, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._containers = self._lock = -1


def prepare(state_dir: str) -> None:
    """The state folder with its sub-folders, mode 0755. Raises OSError, or HostError VGPU-HOST-006 if others own it."""
    for path in (state_dir, f"{state_dir}/containers", f"{state_dir}/failures"):
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            os.makedirs(path, 0o755, exist_ok=True)
            os.chmod(path, 0o755)  # whatever the umask
            found = os.lstat(path)
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022 or (found.st_mode & 0o170000) != 0o040000:
            raise HostError(
                "VGPU-HOST-006",
                f"the state folder {path} is not a folder that only root or we can write",
                remedy=f"remove it, or `chown root {path} && chmod 755 {path}`",
            )


def state_error(state_dir: str, error: OSError) -> HostError:
    """`error` while working in the state folder, as a refusal."""
    return HostError(
        "VGPU-HOST-003",
        f"the state folder {state_dir} cannot be used ({os.strerror(error.errno or 0).lower()})"
        if error.errno not in (2, 13)  # dockerd reads a meaning of its own into the texts of these two
        else f"the state folder {state_dir} cannot be used (errno {error.errno})",
        remedy=f"make {state_dir} a folder of root with room in it (`df {state_dir}`), or set state_dir in the policy",
    )


def _unreadable(path: str, why: str) -> HostError:
    return HostError(
        "VGPU-HOST-003",
        f"the ledger's {path} cannot be read: {shown(why, 120)}",
        remedy=f"if no such container runs, remove the folder {os.path.dirname(path)}",
    )


def _check(allocation: Allocation) -> None:
    """Raises TypeError or AttributeError unless all that the ledger adds up and compares is there."""
    owner = allocation.init or allocation.creator
    numbers = [owner.pid, owner.start_ticks]
    for part in allocation.placement.slices:
        numbers += [part.memory_bytes, part.cores_percent]
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise TypeError("a number in it is none")


def _text(record: object) -> bytes:
    return fastjson.dumps(as_json(record)).encode()


def _write(folder_fd: int, name: str, data: bytes, mode: int, *, size: int = 0, length: int = 0) -> None:
    """size: bytes that are there for sure; length: of the file, if more."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, mode, dir_fd=folder_fd)
    try:
        os.fchmod(descriptor, mode)  # whatever the umask
        while data:
            data = data[os.write(descriptor, data) :]
        if size:
            os.posix_fallocate(descriptor, 0, size)  # a full disk refuses here, not a program by SIGBUS later
        if length:
            os.ftruncate(descriptor, length)
    finally:
        os.close(descriptor)


def _discard(folder_fd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=folder_fd)
    except FileNotFoundError:
        return


def _remove(parent: int, name: str) -> None:
    """Delete what is at `name`, whatever it is, following no link. Never raises: the next start tries again."""
    try:
        inner = os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError:
        _quietly(os.unlink, name, parent)
        return
    try:
        for child in os.listdir(inner):
            _remove(inner, child)
    finally:
        os.close(inner)
    _quietly(os.rmdir, name, parent)


def _quietly(remove: Callable[..., None], name: str, parent: int) -> None:
    try:
        remove(name, dir_fd=parent)
    except OSError:
        return
