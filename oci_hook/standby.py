"""A hook that is ready when it is called: the shim leaves it behind, and it loads while the runtime is at work.

An interpreter and our modules take some 20 ms to start. The shim has just paid for one, so it forks before it becomes
the runtime; the fork loads the hook and listens on the container's folder/hook.sock. The runtime then starts
vgpu-hook (launcher/vgpu-hook.c), which only passes the state on. Nothing depends on it: if it is not there, vgpu-hook
starts the hook as a program of its own. It ends with its one answer, or with the runtime that it waits for.
"""

from __future__ import annotations

import _socket
import os

from oci_hook import ledger
from oci_hook.values import TYPE_CHECKING

if TYPE_CHECKING:
    from oci_hook.records import Plan, Policy

_SOCKET = "hook.sock"
_LISTENER = 3
_PATIENCE_S = 60.0  # longer than any runtime takes to its prestart hooks
_PEERCRED_BYTES = 12  # struct ucred: pid, uid, gid


def leave(settings: Policy, container: str, plan: Plan, inside: tuple[str, list[str], str]) -> None:
    """Never fails a start: it is only slower then.

    inside: path of the container's root file tree; environment and working folder of its process. The caller will
    become the runtime.
    """
    try:
        listener = _listen(ledger.folder(settings.state_dir, container))
    except OSError:
        return
    runtime = os.getpid()
    try:
        child = os.fork()
        if child == 0:
            # forked twice, so that the runtime does not find a child that it never started
            if os.fork() == 0:
                _serve(listener.fileno(), runtime, settings, plan, inside)
            os._exit(0)
        os.waitpid(child, 0)
    except OSError:
        return
    finally:
        listener.close()


def _listen(folder: str) -> _socket.socket:
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        os.chdir(folder)  # a socket's path has room for 108 bytes only
        listener.bind(_SOCKET)
        listener.listen(1)
        return listener
    finally:
        os.fchdir(before)
        os.close(before)


def _serve(listener: int, runtime: int, settings: Policy, plan: Plan, inside: tuple[str, list[str], str]) -> None:
    """In the fork: one answer, then the end. What goes wrong before it, vgpu-hook sees as no answer."""
    try:
        _let_go(listener)
        watched = os.pidfd_open(runtime)
        import select

        from oci_hook import hook  # the time that this takes is what we are here for

        prepared = hook.Prepared(plan, *inside)
        poll = select.poll()
        poll.register(_LISTENER, select.POLLIN)
        poll.register(watched, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(_PATIENCE_S * 1000)}
        if watched in ready or _LISTENER not in ready:
            return
        channel = _accept()
        raw = hook.read_state(channel)
        os.dup2(channel, 2)
        code, armed = 1, None
        try:
            code, armed = hook.answer(settings, raw, prepared)
        except BaseException:
            import traceback  # a bug: it is told where the program of its own would tell it

            os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
        os.write(channel, bytes((0, code)))
        _socket.socket(fileno=channel).shutdown(_socket.SHUT_RDWR)  # our end takes 3 ms; nobody shall wait for it
        hook.tell(settings, armed)
    finally:
        os._exit(0)


def _let_go(listener: int) -> None:
    """Keep nothing of the engine's: its pipes would not end before we do."""
    os.setsid()
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR)
    held = os.dup(listener) if listener == null else listener
    for descriptor in range(3):
        os.dup2(null, descriptor)
    if held != _LISTENER:
        os.dup2(held, _LISTENER)
    os.closerange(_LISTENER + 1, os.sysconf("SC_OPEN_MAX"))


def _accept() -> int:
    listener = _socket.socket(fileno=_LISTENER)
    channel, _ = listener._accept()  # type: ignore[attr-defined]  # what socket.accept is made of
    connection = _socket.socket(fileno=channel)
    peer = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _PEERCRED_BYTES)
    if int.from_bytes(peer[4:8], "little") not in (0, os.geteuid()):
        raise OSError("a stranger calls")
    return connection.detach()
