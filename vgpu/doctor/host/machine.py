"""The host as the checks see it: files below a root, so that a test can point them at a prepared tree."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from oci_hook import files, policy
from oci_hook.records import Policy
from runtime_config.policy_file import DEFAULT_PATH, compiled_path
from vgpu.doctor.finding import CannotSee, Result

LIMIT_BYTES = 4 << 20  # of one file: /proc, /sys and configuration are far smaller


@dataclass(frozen=True)
class Host:
    """root: where /proc, /sys, /dev, /etc, /run and the programs are looked for. config: the policy file, a real path.

    docker: the socket to ask, as docker -H. ask: whether programs are started and engines asked; False is fast.
    """

    root: str = "/"
    config: str = DEFAULT_PATH
    docker: str = "unix:///var/run/docker.sock"
    ask: bool = True

    def path(self, name: str) -> str:
        """The absolute `name` below the root."""
        return name if self.root == "/" else self.root.rstrip("/") + name

    @cached_property
    def policy(self) -> Policy:
        """The policy in force. Raises HostError VGPU-HOST-001 or -006: `finding.run` makes a finding of it."""
        return policy.load(compiled_path(self.config))

    def read(self, name: str) -> str | None:
        """The text of a file, None if there is none. Raises CannotSee."""
        try:
            return files.read(self.path(name), LIMIT_BYTES, follow=True)[0].decode("utf-8", "backslashreplace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise CannotSee(name, why(error)) from None

    def names(self, folder: str) -> list[str]:
        """What is in a folder, sorted; nothing if there is none. Raises CannotSee."""
        try:
            return sorted(os.listdir(self.path(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise CannotSee(folder, why(error)) from None

    def stat(self, name: str) -> os.stat_result | None:
        """Of what `name` leads to, None if to nothing. Raises CannotSee."""
        try:
            return os.stat(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise CannotSee(name, why(error)) from None

    def now_s(self) -> float:
        """Unix time."""
        return time.time()


def why(error: OSError | ValueError) -> str:
    """For an `Unseen`."""
    if isinstance(error, PermissionError):
        return "may not be read: run the doctor as root"
    return (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)


Run = Callable[[Host], Iterator[Result]]
