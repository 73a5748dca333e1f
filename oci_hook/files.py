"""Whole files read in one step, as the start path needs them: no buffers, no surprise."""

from __future__ import annotations

import os

OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO does not block


def is_trusted(uid: int) -> bool:
    """Whether a file of that owner's may be believed: root's, or our own."""
    if uid in (0, os.geteuid()):
        return True
    from oci_hook import rootless  # no start of root's engines needs it

    return rootless.is_hosts_root(uid)


def read(path: str, limit: int, *, follow: bool = False, folder: int | None = None) -> tuple[bytes, os.stat_result]:
    """The file's bytes and its status. follow: it may be a link; folder: descriptor that a relative path starts at.

    limit: bytes, whole MiB. Raises OSError, and ValueError for what is no regular file or longer.
    """
    descriptor = os.open(path, OPEN if follow else OPEN | os.O_NOFOLLOW, dir_fd=folder)
    try:
        found = os.fstat(descriptor)
        if found.st_mode & 0o170000 != 0o100000:
            raise ValueError("it is not a regular file")
        data = b""
        while len(data) <= limit and (more := os.read(descriptor, min(found.st_size, limit) + 1)):
            data += more
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise ValueError(f"it is longer than {limit >> 20} MiB")
    return data, found
