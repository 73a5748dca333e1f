"""Podman of one Debian release, apart from the machine's own, and run as an admin runs it: without any option.

with podman.running(folder, "bookworm") as made:
    made("run", "--rm", "--runtime", "vgpu", "--annotation", "vgpu.memory=8GiB", IMAGE, "true")

Its packages are laid over /usr, and a folder of ours over /etc, in a mount namespace that everything is run in: so the
paths are the real ones (/etc/containers, /etc/cdi), and the machine's own files are not touched. With a release newer
than the machine's its C library is laid over too, which older programs run on as well.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.harness import bundle, debian, leftovers

ENGINES = debian.DEBIAN.parent / "engines"
_COMMON = ("podman", "conmon", "netavark", "libseccomp2", "libgpg-error0", "libsystemd0", "uidmap")
# what a minimal Debian 12 lacks; the newer ones bring their own C library, and crun
PACKAGES = {
    "bookworm": (*_COMMON, "libgpgme11", "libassuan0", "libsubid4", "libdevmapper1.02.1", "libglib2.0-0"),
    "trixie": (*_COMMON, "crun", "libc6", "libgpgme11t64", "libassuan9", "libsubid5", "libglib2.0-0t64", "libyajl2",
               "libsqlite3-0", "libcap2"),
    "forky": (*_COMMON, "crun", "libc6", "libgpgme45", "libassuan9", "libsubid6", "libglib2.0-0t64", "libjson-c5",
              "libblake3-0", "libsqlite3-0", "libcap2"),
}  # fmt: skip
_OVER_ALL = """
set -e
for place in /run /dev/shm /var/lib; do mount -t tmpfs tmpfs $place; done
for part in etc usr; do
    mount -t overlay overlay -o "lowerdir=$1/$part:/$part,upperdir=$2/$part,workdir=$2/.$part" /$part
done
[ "$3" = crun ] && [ ! -e /sys/fs/cgroup/cgroup.controllers ] && mount -t cgroup2 none /sys/fs/cgroup
echo ready
exec sleep infinity
"""
# the limits are the machine's: in a container or a virtual machine they may not be raised
_CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "none"
pids_limit = 0
cgroupns = "host"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "{runtime}"
"""
_STORAGE = '[storage]\ndriver = "vfs"\ngraphroot = "{folder}/store"\nrunroot = "{folder}/runroot"\n'


_NEW_USER = """
echo "$1:x:$2:$2::$3:/bin/sh" >>/etc/passwd
echo "$1:x:$2:" >>/etc/group
echo "$1:200000:65536" | tee -a /etc/subuid >>/etc/subgid
mkdir -p $3 && echo "$4" >$3/storage.conf && chown -R $2:$2 $3
"""
# real device nodes of our own making, in a /dev that only Podman sees
_NEW_DEV = """
mkdir -p /run/dev && mount -t tmpfs -o mode=755 tmpfs /run/dev && cd /run/dev
for name in null zero full random urandom tty ptmx; do cp -a /dev/$name .; done
mkdir -m 1777 shm && mkdir pts mqueue && ln -s /proc/self/fd fd && mount --bind /dev/pts pts
for node in "$@"; do mknod -m 666 ${node%:*} c 1 ${node#*:}; done
mount --move /run/dev /dev
"""


@dataclass(frozen=True, slots=True)
class Podman:
    """A client, without a daemon. Calling it runs `podman ARGS`."""

    folder: Path  # all of its files
    holder: int  # the process whose mount namespace all runs in

    @property
    def etc(self) -> Path:
        """What is different in /etc, as seen from outside."""
        return self.folder / "over/etc"

    @property
    def usr(self) -> Path:
        """What is different in /usr."""
        return self.folder / "over/usr"

    def inside(self, *command: str | Path, timeout: float = 60, user: str = "") -> subprocess.CompletedProcess[str]:
        """Any command where Podman runs, as root or as `user`."""
        enter = ["nsenter", f"--mount=/proc/{self.holder}/ns/mnt", "--wd=/"]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"] if user else []
        bundle.be_subreaper()
        with open(self.folder / "stdout", "w+") as output, open(self.folder / "stderr", "w+") as errors:
            process = subprocess.Popen(
                [*enter, "--", *become, *map(str, command)], stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": f"/home/{user}" if user else "/root",
                     "XDG_RUNTIME_DIR": f"/run/user/{user}" if user else "/run"},
            )  # fmt: skip
            try:
                _wait(process, timeout)
            finally:
                process.kill()
            texts = [(self.folder / name).read_text(errors="replace") for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(command, process.wait(), *texts)

    def __call__(self, *args: str | Path, check: bool = False, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """`podman ARGS`, its output as text. With check=True a failure raises and shows what Podman said."""
        done = self.inside("podman", *args, timeout=timeout)
        if check and done.returncode:
            raise RuntimeError(f"podman {' '.join(map(str, args))}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done


@dataclass(frozen=True, slots=True)
class Rootless:
    """Podman as an ordinary user runs it, in a home of its own. Calling it runs `podman ARGS`."""

    made: Podman
    uid: int
    home: str

    def run(self, *command: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Any command as that user."""
        own = (f"HOME={self.home}", f"CONTAINERS_STORAGE_CONF={self.home}/storage.conf")
        return self.made.inside("env", *own, *command, user=str(self.uid), timeout=timeout)

    def __call__(self, *args: str | Path, check: bool = False) -> subprocess.CompletedProcess[str]:
        done = self.run("podman", *args)
        if check and done.returncode:
            raise RuntimeError(f"podman {' '.join(map(str, args))}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done


@contextlib.contextmanager
def user(made: Podman, name: str, uid: int, root: Path, tag: str) -> Iterator[Rootless]:
    """A new user with an image of their own, made of `root` without a network. Ends with the containers removed."""
    who = Rootless(made, uid, f"/run/user/{uid}")
    done = made.inside("sh", "-ec", _NEW_USER, "sh", name, str(uid), who.home, _STORAGE.format(folder=who.home))
    assert done.returncode == 0, done
    archive = made.folder / "image.tar"
    subprocess.run(["tar", "-C", root, "--numeric-owner", "-cf", archive, "."], check=True)
    try:
        who("import", "--quiet", archive, tag, check=True)
        archive.unlink()
        yield who
    finally:
        who("rm", "--all", "--force", "--time=0")
        who.run("podman", "system", "migrate")  # ends the process that holds the user's namespace


def device_nodes(made: Podman, **minors: int) -> None:
    """Device files in Podman's /dev: name -> minor number of the memory devices (1:5 is /dev/zero)."""
    done = made.inside("sh", "-ec", _NEW_DEV, "sh", *(f"{name}:{minor}" for name, minor in minors.items()))
    assert done.returncode == 0, done


def tree(release: str) -> Path:
    """The packages, unpacked; downloaded at the first call (25 to 40 MB). Raises debian.NotOffered."""
    folder = ENGINES / f"podman-{release}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        debian.unpack(release, "main", PACKAGES[release], partial)
        for name in ("lib", "sbin", "bin", "lib64"):  # Debian 12's packages still have these; they are links in a root
            if (partial / name).is_dir():
                shutil.copytree(partial / name, partial / "usr" / name, symlinks=True, dirs_exist_ok=True)
                shutil.rmtree(partial / name)
        (partial / "etc").mkdir(exist_ok=True)
        partial.rename(folder)
    return folder


@contextlib.contextmanager
def running(folder: Path, release: str) -> Iterator[Podman]:
    """folder: absent or empty. Ends with every container removed. Raises debian.NotOffered."""
    lower = tree(release)
    runtime = "runc" if release == "bookworm" else "crun"
    for name in ("etc", "usr", ".etc", ".usr"):
        (folder / "over" / name).mkdir(parents=True)
    etc = folder / "over/etc/containers"
    etc.mkdir()
    (etc / "containers.conf").write_text(_CONF.format(runtime=runtime))
    (etc / "storage.conf").write_text(_STORAGE.format(folder=folder))
    (etc / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')
    holder = subprocess.Popen(
        ["unshare", "--mount", "--", "sh", "-c", _OVER_ALL, "sh", lower, folder / "over", runtime],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    said = holder.stdout.readline()
    if said != "ready\n":
        holder.wait()
        raise debian.NotOffered(f"Podman's files cannot be laid over this machine's: {said.strip()}")
    made = Podman(folder, holder.pid)
    try:
        yield made
    finally:
        made("rm", "--all", "--force", "--time=0")
        for _, pid in leftovers.processes(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        holder.kill()
        holder.wait()
        _reap_monitors()
        leftovers.remove_cgroups("/libpod_parent")


def load(made: Podman, root: Path, tag: str) -> str:
    """Imports a root tree as an image. Returns the tag."""
    archive = made.folder / "image.tar"
    subprocess.run(["tar", "-C", root, "--numeric-owner", "-cf", archive, "."], check=True)
    made("import", "--quiet", archive, tag, check=True)
    archive.unlink()
    return tag


def _wait(process: subprocess.Popen[bytes], timeout: float) -> None:
    """Podman waits for its monitor's end as well, up to 20 s, and it is we who reap that: see bundle.be_subreaper."""
    end = time.monotonic() + timeout
    while process.poll() is None:
        if time.monotonic() > end:
            raise subprocess.TimeoutExpired(process.args, timeout)
        _reap_monitors()
        time.sleep(0.01)


def _reap_monitors() -> None:
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().split()[1:3] == ["(conmon)", "Z"]:
                os.waitpid(int(pid), 0)
