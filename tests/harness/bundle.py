"""Plain OCI bundles for runc and crun, without Docker: create, start, wait and delete as containerd's shim does it.

with bundle.container(runtime, folder, root_tree, ["sh", "-c", "echo hello"]) as box:
    result = box.run()
    assert result.code == 0 and "hello" in result.output
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness import leftovers, rootfs

CGROUP = f"/vgpu-test-{os.getpid()}"  # parent of our containers' control groups; leftovers.remove_cgroups ends it
_CAPABILITIES = [f"CAP_{name}" for name in (
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
)]  # fmt: skip  # Docker's default set
_TMPFS = ["nosuid", "noexec", "nodev"]
_MOUNTS: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*_TMPFS, "mode=1777"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*_TMPFS, "ro"]},
]


@dataclass(frozen=True, slots=True)
class Result:
    """code: the program's exit status, or the runtime's if it refused. output: both streams of the program.
    refusal: what the runtime said on standard error and in its --log file; empty when the container started."""

    code: int
    output: str
    refusal: str = ""


@dataclass(slots=True)
class Container:
    """One bundle and the runtime that runs it. runtime: absolute path of runc, crun's stand-in or vgpu-runtime."""

    runtime: Path
    folder: Path
    id: str = field(default_factory=lambda: uuid.uuid4().hex * 2)
    env: Mapping[str, str] | None = None  # the runtime's own environment; None: ours

    @property
    def log(self) -> Path:
        return self.folder / "log.json"

    @property
    def config(self) -> Path:
        return self.folder / "config.json"

    @property
    def pid(self) -> int:
        """Of the container's first process, in the host's pid namespace."""
        return int((self.folder / "pid").read_text())

    def output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")

    def command(self, *args: str) -> list[str]:
        state = self.folder.parent / ".runtime-state"
        return [str(self.runtime), "--root", str(state), "--log", str(self.log), "--log-format", "json", *args]

    def _call(self, *args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args),
            cwd=self.folder,
            env=self.env,
            text=True,
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    def spawn_create(self) -> subprocess.Popen[bytes]:
        """Starts `create`, does not wait for it. Output goes to files: the container inherits them."""
        be_subreaper()
        args = self.command("create", "--bundle", str(self.folder), "--pid-file", str(self.folder / "pid"), self.id)
        # never a pipe: it would stay open for as long as the container lives
        with open(self.folder / "output", "ab") as output, open(self.folder / "create.err", "ab") as errors:
            return subprocess.Popen(
                args, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
            )

    def create(self, timeout: float = 60) -> Result:
        code = wait_for(self.spawn_create(), timeout)
        errors = (self.folder / "create.err").read_text(errors="replace")
        return Result(code, errors, "" if code == 0 else errors + self.logged())

    def logged(self) -> str:
        """The runtime's --log file: this is what an engine shows to its user."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def start(self) -> None:
        done = self._call("start", self.id)
        assert done.returncode == 0, done.stderr

    def wait(self, timeout: float = 60) -> int:
        """The program's exit status, 128 + signal if one killed it. We are its parent: see be_subreaper."""
        watch = os.pidfd_open(self.pid)
        try:
            if not select.select([watch], [], [], timeout)[0]:
                raise TimeoutError(f"container {self.id[:12]} still runs after {timeout} s:\n{self.output()}")
        finally:
            os.close(watch)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code if code >= 0 else 128 - code

    def run(self, timeout: float = 60) -> Result:
        """create, start, wait: the program's status and output, or the runtime's refusal."""
        created = self.create(timeout)
        if created.code:
            return created
        self.start()
        code = self.wait(timeout)
        program_errors = (self.folder / "create.err").read_text(errors="replace")
        return Result(code, self.output() + program_errors)

    def exec(self, args: Sequence[str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return self._call("exec", self.id, *args, timeout=timeout)

    def exec_detached(self, args: Sequence[str]) -> int:
        """The host's pid of a process that goes on in the container; whoever ends it calls `end`."""
        pid_file = self.folder / f"pid-{uuid.uuid4().hex}"
        command = self.command("exec", "--detach", "--pid-file", str(pid_file), self.id, *args)
        be_subreaper()
        null = subprocess.DEVNULL
        subprocess.run(
            command, cwd=self.folder, env=self.env, timeout=60, check=True, stdin=null, stdout=null, stderr=null
        )
        return int(pid_file.read_text())

    def state(self) -> dict[str, Any] | None:
        done = self._call("state", self.id)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def delete(self) -> None:
        """What an engine does at the end; no error when the container never came to be."""
        self._call("delete", "--force", self.id)
        with contextlib.suppress(OSError, ValueError):
            os.waitpid(self.pid, os.WNOHANG)


def make(
    runtime: Path,
    folder: Path,
    tree: Path,
    args: Sequence[str],
    *,
    annotations: Mapping[str, str] | None = None,
    env: Sequence[str] = (),
    mounts: Sequence[Mapping[str, Any]] = (),
    readonly: bool = False,
    uid: int = 0,
    container_id: str | None = None,
) -> Container:
    """A new bundle below `folder`, its root a hard-linked copy of `tree`. env: entries NAME=value, as the image has."""
    identity = container_id or uuid.uuid4().hex * 2
    bundle = folder / identity[:12]
    bundle.mkdir(parents=True)
    rootfs.link_tree(tree, bundle / "rootfs")
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": uid, "gid": uid},
            "args": list(args),
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *env],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
        },
        "root": {"path": "rootfs", "readonly": readonly},
        "hostname": identity[:12],
        "mounts": [*_MOUNTS, *map(dict, mounts)],
        "annotations": dict(annotations or {}),
        "linux": {
            "cgroupsPath": f"{CGROUP}/{identity}",
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    }
    (bundle / "config.json").write_text(json.dumps(config, indent=2))
    return Container(runtime, bundle, identity)


@contextlib.contextmanager
def container(runtime: Path, folder: Path, tree: Path, args: Sequence[str], **options: Any) -> Iterator[Container]:
    """`make`, and the end of it: the container is deleted and its folder removed, whatever happened."""
    box = make(runtime, folder, tree, args, **options)
    try:
        yield box
    finally:
        box.delete()
        shutil.rmtree(box.folder)


def low_level(name: str, folder: Path) -> Path:
    """The path of this machine's low-level runtime, "runc" or "crun", made to work here. Raises FileNotFoundError."""
    program = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        raise FileNotFoundError(f"{name} is not installed: apt-get install {name}")
    return fit(Path(program), folder)


def fit(program: Path, folder: Path) -> Path:
    """`program`, a runc or crun, or what has to be called in its place on this machine.

    crun 1.8 refuses control groups in hybrid mode: where the machine has that, each of its calls gets a mount namespace
    with cgroup2 alone. It manages none either way, so that both kinds of machine test the same. The stand-in in
    `folder` ends as crun itself: same process, same arguments, same standard files.
    """
    if program.name != "crun":
        return program
    script = folder / "crun-private"
    call = f'exec {program} --cgroup-manager=disabled "$@"'
    if not (leftovers.CGROUPS / "cgroup.controllers").exists():
        call = f"exec unshare --mount sh -c 'mount -t cgroup2 none {leftovers.CGROUPS} && {call}' crun \"$@\""
    script.write_text(f"#!/bin/sh\n{call}\n")
    script.chmod(0o755)
    return script


def wait_for(process: subprocess.Popen[bytes], timeout: float) -> int:
    """The exit code, the moment that there is one: Popen.wait(timeout) looks after 0.5, 1, 2, 4 … ms, so that what it
    measures comes in steps of up to 50 ms."""
    watch = os.pidfd_open(process.pid)
    try:
        if not select.select([watch], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(process.args, timeout)
    finally:
        os.close(watch)
    return process.wait()


def kill(pid: int) -> None:
    """kill -9; no error when it is gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def end(pid: int) -> None:
    """kill -9 of a process of `exec_detached`, and its exit status taken: nothing of it is left."""
    kill(pid)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def be_subreaper() -> None:
    """When a runtime's `create` ends, the kernel makes us the parent of the container's first process, as it does for
    containerd's shim: only a parent learns the exit status."""
    pr_set_child_subreaper = 36
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
