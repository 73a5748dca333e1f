"""Work in another process's namespaces.

`run`: by a child, with a time limit, as a namespace that was entered cannot always be left, and an image's storage may
hang. `visit`: by this process, 4 ms quicker, if it is here for nothing else.
"""

from __future__ import annotations

import os
import select

from oci_hook import fastjson, syscalls
from oci_hook.errors import HostError, ImageError, VgpuError
from oci_hook.values import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_KILL = 9  # `import signal` costs 3 ms
_MAX_ANSWER = 1 << 16


class Namespaces:
    """Those of process `pid`, opened. user: -1 when it is the one that we are in."""

    def __init__(self, pid: int) -> None:
        self.mount = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        self.user = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        self.own_mount = _same(self.mount, "/proc/self/ns/mnt")
        self.own_user = _same(self.user, "/proc/self/ns/user")

    def enter(self, *, user: bool) -> None:
        if user:
            syscalls.setns(self.user, syscalls.CLONE_NEWUSER)
        syscalls.setns(self.mount, syscalls.CLONE_NEWNS)


def _same(fd: int, path: str) -> bool:
    status, other = os.fstat(fd), os.stat(path)
    return (status.st_dev, status.st_ino) == (other.st_dev, other.st_ino)


def visit(namespaces: Namespaces, work: Callable[[], None]) -> None:
    """Runs `work` in the mount namespace and comes back; needs root. If there is no way back this process ends on the
    spot: it would take the container's files for the host's.
    """
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    namespaces.enter(user=False)
    try:
        work()
    finally:
        try:
            syscalls.setns(home, syscalls.CLONE_NEWNS)
        except OSError:
            os._exit(1)
        os.close(home)


def run(work: Callable[[], None], timeout_s: float) -> None:
    """Runs `work` in a child and raises here what it raised there. Too slow is HostError VGPU-HOST-005."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os._exit(_child(work, writing))
    os.close(writing)
    try:
        answer = _answer(reading, timeout_s)
    finally:
        os.close(reading)
        os.kill(child, _KILL)  # it has answered, or never will; it is not reaped yet, so the pid is its own
        os.waitpid(child, 0)
    if answer is None:
        raise HostError(
            "VGPU-HOST-005",
            f"the mounts were not made within {timeout_s:g} s",
            remedy="look whether the image's storage is slow or hangs, then start the container again",
        )
    _raise(answer)


def _child(work: Callable[[], None], writing: int) -> int:
    try:
        work()
        answer: dict[str, object] = {"ok": True}
    except VgpuError as error:
        answer = {"exit": error.exit_code, "code": error.code, "text": str(error), "remedy": error.remedy}
    except BaseException:
        import traceback  # a bug: here its cost does not matter

        answer = {"bug": traceback.format_exc()[-8000:]}
    os.write(writing, fastjson.dumps(answer).encode())
    return 0


def _answer(reading: int, timeout_s: float) -> bytes | None:
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    if not poll.poll(timeout_s * 1000):
        return None
    answer = b""
    while len(answer) < _MAX_ANSWER and (more := os.read(reading, _MAX_ANSWER)):
        answer += more
    return answer


def _raise(raw: bytes) -> None:
    answer = fastjson.loads(raw) if raw else {"bug": "the child that makes the mounts was killed"}
    if "bug" in answer:
        raise RuntimeError(answer["bug"])
    if "code" in answer:
        kind = ImageError if answer["exit"] == ImageError.exit_code else HostError
        raise kind(answer["code"], answer["text"], remedy=answer["remedy"])
