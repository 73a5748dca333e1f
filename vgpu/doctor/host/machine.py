"""The host as the checks see it: files below a root, so that a test can point them at a prepared tree."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from oci_hook import files, policy
from oci_hook.errors import VgpuError
from oci_hook.records import Policy
from runtime_config.policy_file import DEFAULT_PATH, compiled_path
from vgpu.doctor.finding import CannotSee, Result

PROGRAM_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
LIMIT_BYTES = 4 << 20  # of one file: /proc, /sys and configuration are far smaller


class NoPolicy(Exception):
    """There is no policy that can be used. The check of the policy says why; those that need one are left out."""


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
        """The policy in force. Raises NoPolicy."""
        try:
            return policy.load(compiled_path(self.config))
        except VgpuError as error:
            raise NoPolicy(error.line()) from error

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

    def clock_is_synchronised(self) -> bool:
        """Whether the kernel says so: adjtimex(2) does not return TIME_ERROR."""
        import ctypes

        buffer = ctypes.create_string_buffer(512)  # struct timex, all zero: only asked, nothing set
        return ctypes.CDLL(None).adjtimex(buffer) in range(5)

    def processes(self, *names: str) -> Iterator[tuple[int, list[str]]]:
        """(pid, command line) of each process whose program is called so. Those that end meanwhile are left out."""
        for pid in self.names("/proc"):
            if not pid.isdigit():
                continue
            try:
                comm = (self.read(f"/proc/{pid}/comm") or "").rstrip("\n")
                if comm in {name[:15] for name in names}:  # the kernel keeps 15 characters
                    yield int(pid), (self.read(f"/proc/{pid}/cmdline") or "").rstrip("\0").split("\0")
            except CannotSee:
                continue

    def program(self, name: str) -> str | None:
        """Where a program is, as its name below the root; None if it is nowhere."""
        for folder in PROGRAM_FOLDERS:
            if os.access(self.path(f"{folder}/{name}"), os.X_OK):
                return f"{folder}/{name}"
        return None

    def output(self, program: str, *arguments: str, timeout_s: float = 5.0) -> str:
        """What a program of the host prints. Raises CannotSee."""
        if not self.ask:
            raise CannotSee(program, "not asked: --offline")
        try:
            done = subprocess.run(
                [self.path(program), *arguments], capture_output=True, text=True, errors="replace",
                timeout=timeout_s, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            raise CannotSee(program, why(error)) from None
        except subprocess.TimeoutExpired:
            raise CannotSee(program, f"does not answer in {timeout_s:g} s") from None
        return done.stdout


def why(error: OSError | ValueError) -> str:
    """For an `Unseen`."""
    if isinstance(error, PermissionError):
        return "may not be read: run the doctor as root"
    return (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)


Run = Callable[[Host], Iterator[Result]]
