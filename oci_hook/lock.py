"""An exclusive flock on a file that is made if it is not there, and that somebody may remove at any time."""

from __future__ import annotations

import fcntl
import os

from oci_hook.errors import HostError

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def take(path: str, timeout_s: float) -> int:
    """Descriptor of the file, locked; closing it unlocks. Raises HostError VGPU-HOST-003 if that takes too long."""
    while True:
        descriptor = os.open(path, _FLAGS, 0o600)
        try:
            _wait(descriptor, path, timeout_s)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # someone cleared the folder meanwhile: others lock another file by now


def _wait(descriptor: int, path: str, timeout_s: float) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        from oci_hook import deadline  # no start that waits for nobody needs it

        if not deadline.within(timeout_s, lambda: fcntl.flock(descriptor, fcntl.LOCK_EX)):
            raise HostError(
                "VGPU-HOST-003",
                f"{path} has been held by another process for {timeout_s:g} s",
                remedy=f"find it with `fuser -v {path}` and end it if it hangs",
            ) from None
