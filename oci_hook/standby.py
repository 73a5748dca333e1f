"""The hook, ready when it is called: the shim stays, and loads the hook's modules while the runtime is at work.

An interpreter and our modules take some 20 ms to start; the shim has paid for one. It listens on the container's
folder/hook.sock; the runtime then starts vgpu-hook (launcher/vgpu-hook.c), which only passes the state on. No start
depends on it: if it is not there, vgpu-hook starts the hook as a program of its own. It ends with its one answer, or
with the runtime that it waits for.
"""

from __future__ import annotations

import _socket
import fcntl
import os

from oci_hook import ledger
from oci_hook.values import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn

    from oci_hook import hook
    from oci_hook.records import Plan, Policy, Process, Start

_SOCKET = "hook.sock"
_PATIENCE_S = 60.0  # longer than any runtime takes to its prestart hooks
_PEERCRED_BYTES = 12  # struct ucred: pid, uid, gid


class Standby:
    """Listens from the beginning, serves when the launcher has its answer. Never fails a start: it is only slower then.

    runtime: the process that has called the launcher's, and becomes the runtime. inside: path of the container's root
    file tree, and how its process is started.
    """

    def __init__(
        self, settings: Policy, container: str, runtime: Process, plan: Plan, inside: tuple[str, Start]
    ) -> None:
        self.settings = settings
        self.container = container
        self.runtime = runtime
        self.plan = plan
        self.inside = inside
        self._kept: list[int] = []  # the listener, and the runtime
        try:
            self._kept = [_listen(ledger.folder(settings.state_dir, container)), os.pidfd_open(runtime.pid)]
        except OSError:
            return

    def serve(self) -> NoReturn:
        """One answer, then the process ends. What goes wrong before it, vgpu-hook sees as no answer."""
        try:
            self._let_go()
            from oci_hook import hook  # the time that this takes is what we are here for

            if self._kept:
                self._wait(hook.Prepared(self.plan, *self.inside))
        finally:
            os._exit(0)

    def _wait(self, prepared: hook.Prepared) -> None:
        import select

        listener, runtime = self._kept
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(runtime, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(_PATIENCE_S * 1000)}
        if listener in ready and runtime not in ready:
            self._answer(_accept(listener), prepared)

    def _answer(self, channel: int, prepared: hook.Prepared) -> None:
        from oci_hook import hook

        raw = hook.read_state(channel)
        os.dup2(channel, 2)
        code, armed = 1, None
        try:
            code, armed = hook.answer(self.settings, raw, prepared)
        except BaseException:
            import traceback  # a bug: it is told where the program of its own would tell it

            os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
        os.write(channel, bytes((0, code)))
        _socket.socket(fileno=channel).shutdown(_socket.SHUT_RDWR)  # our end takes 3 ms; nobody shall wait for it
        hook.tell(self.settings, armed)

    def _let_go(self) -> None:
        """Keep nothing of the engine's: its pipes would not end before we do."""
        os.setsid()
        os.chdir("/")
        self._kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3) for descriptor in self._kept]
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        first = 3
        for kept in sorted(self._kept):
            os.closerange(first, kept)
            first = kept + 1
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _listen(folder: str) -> int:
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        os.chdir(folder)  # a socket's path has room for 108 bytes only
        listener.bind(_SOCKET)
        listener.listen(1)
        return listener.detach()
    finally:
        os.fchdir(before)
        os.close(before)


def _accept(listener: int) -> int:
    channel, _ = _socket.socket(fileno=listener)._accept()  # type: ignore[attr-defined]  # what socket.accept is made of
    connection = _socket.socket(fileno=channel)
    peer = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _PEERCRED_BYTES)
    if int.from_bytes(peer[4:8], "little") not in (0, os.geteuid()):
        raise OSError("a stranger calls")
    return connection.detach()
