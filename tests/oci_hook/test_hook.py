"""The hook as a runtime calls it: a process of its own, the state on standard input, a container that waits."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from oci_hook import hook, inventory, ledger, plan, policy, quota_file
from oci_hook.errors import VgpuError
from oci_hook.records import Allocation, Ask, Placement, Request, Slice
from tests.harness import rootfs, seccomp, stub_driver
from tests.harness.installed import Vgpu

GIB = 1 << 30
# beyond what the interpreter has loaded by itself: `os` with its parts, and modules in C
ALLOWED = {
    "os", "os.path", "posixpath", "genericpath", "stat", "_stat", "_collections_abc",
    "__future__", "errno", "fcntl", "select", "struct", "_struct", "time", "_json", "_cffi_backend",
}  # fmt: skip


@pytest.fixture(scope="module")
def vgpu(e2e_folder: Path, needs_root: None) -> Vgpu:
    return stub_driver.install(e2e_folder / "hook", Path("/bin/true"))


@pytest.fixture(scope="module")
def tree(e2e_folder: Path) -> Path:
    root = e2e_folder / "hook-tree"
    root.mkdir()
    rootfs.glibc_root(root)
    return root


@dataclass
class Container:
    """A bundle, an allocation and a process with a mount namespace, as when a runtime calls its prestart hooks."""

    vgpu: Vgpu
    bundle: Path
    id: str
    init: subprocess.Popen[bytes]

    def state(self, **changes: Any) -> dict[str, Any]:
        state = {"ociVersion": "1.0.2", "id": self.id, "status": "creating", "pid": self.init.pid}
        return {**state, "bundle": str(self.bundle), **changes}

    def call(
        self,
        stage: str,
        state: bytes | dict[str, Any] | None = None,
        before: Callable[[], None] | None = None,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """before: called in the hook's process, before it is the hook."""
        raw = state if isinstance(state, bytes) else json.dumps(self.state() if state is None else state).encode()
        script = self.vgpu.prefix / "lib/vgpu/python/vgpu_hook.py"
        command = [
            "/usr/bin/python3",
            "-I",
            "-S",
            "-E",
            script,
            stage,
            "--policy",
            self.vgpu.prefix / "etc/policy.json",
        ]
        done = subprocess.run(
            command, input=raw, capture_output=True, env=env, timeout=30, check=False, preexec_fn=before
        )
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())

    def mounts(self) -> list[str]:
        """Mount points below the root, in the container's own namespace."""
        lines = Path(f"/proc/{self.init.pid}/mountinfo").read_text().splitlines()
        root = f"{self.bundle}/rootfs/"
        return [line.split()[4].removeprefix(root) for line in lines if line.split()[4].startswith(root)]

    def end(self) -> None:
        self.init.kill()
        self.init.wait()


@pytest.fixture
def container(vgpu: Vgpu, tree: Path, tmp_path: Path) -> Iterator[Container]:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    rootfs.link_tree(tree, bundle / "rootfs")
    (bundle / "config.json").write_text(
        json.dumps({"root": {"path": "rootfs"}, "process": {"cwd": "/", "env": ["A=1"]}})
    )
    script = 'mount --bind "$0" "$0" && exec sleep 300'
    init = subprocess.Popen(["unshare", "--mount", "sh", "-c", script, bundle / "rootfs"])
    until = time.monotonic() + 5
    while Path(f"/proc/{init.pid}/comm").read_text() != "sleep\n":
        assert time.monotonic() < until
        time.sleep(0.005)
    made = Container(vgpu, bundle, os.urandom(8).hex(), init)
    allocate(made)
    yield made
    made.end()
    with ledger.Ledger(str(vgpu.state)) as book:
        book.remove(made.id)


def allocate(container: Container) -> None:
    settings = policy.load(str(container.vgpu.prefix / "etc/policy.json"))
    request = Request(asks=(Ask(memory_bytes=GIB),))
    placement = Placement("binpack", (Slice(0, "GPU-0", GIB, 0),), ())
    creator = ledger.process(os.getpid())
    assert creator is not None
    allocation = Allocation(
        id=container.id, name="", image="", state="creating", created_ns=1, creator=creator, init=None, request=request,
        placement=placement, clamped=(), simulated=True, driver_version=stub_driver.VERSION,
    )  # fmt: skip
    folder = ledger.folder(settings.state_dir, container.id)
    mounts = plan.make(inventory.load(settings), placement, request, folder)
    with ledger.Ledger(settings.state_dir) as book:
        limits = quota_file.quota(container.id, placement.slices, burst="hard", priority="normal")
        book.add(allocation, mounts, limits, b"usage", 4096)


def is_armed(container: Container) -> bool:
    found = ledger.read(str(container.vgpu.state), container.id)
    return found is not None and found.state == "armed"


def test_prestart_mounts_and_arms_and_poststop_gives_back(container: Container) -> None:
    done = container.call("prestart")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert is_armed(container)
    inside = ("", "/usage", "/share", "/gpu0", "/libvgpu-driver.so")
    assert {f"usr/lib/vgpu{name}" for name in inside} <= set(container.mounts())
    assert f"{rootfs.LIBDIR}/libcuda.so.1" in container.mounts()
    container.end()
    done = container.call("poststop", {"id": container.id, "bundle": str(container.bundle), "status": "stopped"})
    assert (done.returncode, done.stderr) == (0, "")
    assert container.id not in container.vgpu.containers()
    events = [entry["event"] for entry in container.vgpu.audit() if entry["id"] == container.id]
    assert events == ["arm", "release"]


def test_a_state_that_is_printed_over_many_lines_is_the_same(container: Container) -> None:
    raw = json.dumps(container.state(status="created", root="/x"), indent=4).replace("/", "\\/")  # crun with json-c
    assert container.call("prestart", raw.encode()).returncode == 0
    assert is_armed(container)


STATES = [
    ({"pid": 0}, "VGPU-OCI-002"),
    ({"pid": 1}, "VGPU-OCI-002"),
    ({"pid": -5}, "VGPU-OCI-002"),
    ({"pid": True}, "VGPU-OCI-002"),
    ({"pid": "77"}, "VGPU-OCI-002"),
    ({"pid": 77.5}, "VGPU-OCI-002"),
    ({"pid": 1 << 40}, "VGPU-OCI-002"),
    ({"pid": None}, "VGPU-OCI-002"),
    pytest.param({"pid": os.getpid()}, "VGPU-OCI-002", id="our-own-mount-namespace"),
    ({"pid": 1 << 22}, "VGPU-IMG-004"),  # nobody
    ({"bundle": "relative"}, "VGPU-OCI-002"),
    ({"bundle": "/a\0b"}, "VGPU-OCI-002"),
    ({"bundle": 7}, "VGPU-OCI-002"),
    ({"bundle": "/"}, "VGPU-OCI-001"),
    ({"status": "running"}, "VGPU-OCI-002"),
    ({"status": None}, "VGPU-OCI-002"),
]


@pytest.mark.parametrize(("changes", "code"), STATES, ids=str)
def test_a_state_that_no_runtime_gives_is_refused(container: Container, changes: dict[str, Any], code: str) -> None:
    done = container.call("prestart", container.state(**changes))
    assert done.returncode in (5, 6)
    assert done.stderr.startswith(f"vgpu: {code}: ") and done.stderr.count("\n") == 1
    assert container.mounts() == []


RAW = [b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 200000, b'"' + b"x" * (2 << 20) + b'"', b"{}"]


@pytest.mark.parametrize("raw", RAW, ids=lambda raw: repr(raw[:8]))
def test_what_is_no_state_is_refused_in_one_line(container: Container, raw: bytes) -> None:
    done = container.call("prestart", raw)
    assert done.returncode == 5
    assert done.stderr.startswith("vgpu: VGPU-OCI-00") and done.stderr.count("\n") == 1
    assert container.call("poststop", raw).returncode == 0


@pytest.mark.parametrize("identity", ["../x", "", "..", "a/b", "a\nb", "x" * 300, ".new-x", 7, None], ids=repr)
def test_an_id_that_is_no_name_is_refused(container: Container, identity: object) -> None:
    done = container.call("prestart", container.state(id=identity))
    assert (done.returncode, done.stderr[:19]) == (5, "vgpu: VGPU-OCI-003:")


def test_a_refusal_is_kept_and_frees_the_slice(container: Container) -> None:
    (container.bundle / "rootfs" / rootfs.LIBDIR / "libm.so.6").unlink()
    done = container.call("prestart")
    assert done.returncode == 6
    assert "VGPU-DEP-001" in done.stderr and "libm.so.6" in done.stderr
    assert container.id not in container.vgpu.containers()
    kept = [failure for failure in container.vgpu.failures() if failure["id"] == container.id]
    assert [failure["code"] for failure in kept] == ["VGPU-DEP-001"]
    assert (kept[0]["part"], kept[0]["bundle"]) == ("hook", str(container.bundle))
    assert [entry["event"] for entry in container.vgpu.audit() if entry["id"] == container.id] == ["fail"]


def test_a_container_without_a_slice_does_not_start(container: Container) -> None:
    with ledger.Ledger(str(container.vgpu.state)) as book:
        book.remove(container.id)
    done = container.call("prestart")
    assert (done.returncode, "VGPU-HOST-003" in done.stderr) == (5, True)
    assert container.mounts() == []


def test_an_armed_slice_is_neither_armed_again_nor_taken_away(container: Container) -> None:
    """Whoever calls the hook by hand with the id of a container that runs."""
    assert container.call("prestart").returncode == 0
    before = container.mounts()
    assert container.call("prestart").returncode == 5
    assert container.call("poststop").returncode == 0
    assert is_armed(container) and container.mounts() == before


def test_a_process_that_ended_is_noticed(container: Container) -> None:
    state = container.state()
    container.init.kill()  # not reaped: the pid is still there, as a zombie
    done = container.call("prestart", state)
    assert (done.returncode, "VGPU-IMG-004" in done.stderr) == (6, True)
    assert container.id not in container.vgpu.containers()


def test_no_policy_is_told(container: Container) -> None:
    script = container.vgpu.prefix / "lib/vgpu/python/vgpu_hook.py"
    command = ["/usr/bin/python3", "-I", "-S", "-E", script, "prestart", "--policy", "/nonexistent"]
    done = subprocess.run(command, input=b"{}", capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stderr[:20]) == (5, b"vgpu: VGPU-HOST-001:")
    assert subprocess.run(command[:5] + ["start"], capture_output=True, timeout=30, check=False).returncode == 2


@pytest.mark.seeds("VGPU-HOST-005")
@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSYS, "Linux 5.12"), (errno.EPERM, "seccomp")])
def test_a_kernel_that_refuses_a_mount(container: Container, number: int, remedy: str) -> None:
    """As one before 5.12 does, and one that is asked from within a container whose filter does not let it through."""
    done = container.call("prestart", before=lambda: seccomp.refuse(seccomp.MOUNT_SETATTR, number))
    assert (done.returncode, done.stderr[:20]) == (5, "vgpu: VGPU-HOST-005:")
    assert remedy in done.stderr.partition("to mend it: ")[2]
    assert container.mounts() == [] and container.id not in container.vgpu.containers()
    allocate(container)
    assert container.call("prestart").returncode == 0  # where the kernel lets it


@pytest.mark.parametrize("stage", ["prestart", "direct"])
def test_a_start_without_a_policy_is_kept(container: Container, stage: str) -> None:
    path = (container.vgpu.prefix / "etc/policy.json").resolve()
    text = path.read_bytes()
    try:
        path.write_text("{}")
        done = container.call(stage)
    finally:
        path.write_bytes(text)
    assert (done.returncode, done.stderr[:20]) == (5, "vgpu: VGPU-HOST-001:")
    found = json.loads((container.vgpu.state / f"failures/{container.id}.json").read_text())
    assert (found["code"], found["part"], found["bundle"]) == ("VGPU-HOST-001", "hook", str(container.bundle))


def test_the_hook_loads_little(container: Container) -> None:
    """The import budget: nothing but a few modules in C, none of those that cost milliseconds."""
    code = (
        "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1]); from oci_hook import hook;"
        "status = hook.main(['prestart', '--policy', sys.argv[2]]);"
        "print(*(set(sys.modules) - before)); sys.exit(status)"
    )
    prefix = container.vgpu.prefix
    command = ["/usr/bin/python3", "-I", "-S", "-E", "-c", code, prefix / "lib/vgpu/python", prefix / "etc/policy.json"]
    done = subprocess.run(
        command, input=json.dumps(container.state()), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = {name for name in done.stdout.split() if name.partition(".")[0] != "oci_hook"}
    assert loaded <= ALLOWED, loaded - ALLOWED


def test_a_bug_shows_its_traceback_and_leaves_nothing(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("bug")

    monkeypatch.setattr(hook, "prestart", bug)
    monkeypatch.setattr(hook, "read_state", lambda descriptor: json.dumps(container.state()).encode())
    with pytest.raises(ZeroDivisionError):
        hook.main(["prestart", "--policy", str(container.vgpu.prefix / "etc/policy.json")])
    assert container.id not in container.vgpu.containers()


def test_a_bug_inside_the_container_is_told_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    from oci_hook import inside

    def bug() -> None:
        raise ZeroDivisionError("bug in there")

    with pytest.raises(RuntimeError, match="bug in there"):
        inside.run(bug, 5)
    with pytest.raises(VgpuError, match=r"within 0\.2 s"):
        inside.run(lambda: time.sleep(30), 0.2)
    with pytest.raises(RuntimeError, match="killed"):
        inside.run(lambda: os.kill(os.getpid(), 9), 5)


ROOTLESS = """
import os, sys, subprocess, time
sys.path.insert(0, sys.argv[1])
from oci_hook import hook, records
base = sys.argv[2]
script = 'mount --bind "$0" "$0" && exec sleep 60'
init = subprocess.Popen(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, base + "/rootfs"])
while open(f"/proc/{init.pid}/comm").read() != "sleep\\n":
    time.sleep(0.005)
try:
    plan = records.Plan((
        records.Mount(base + "/box", "path", "/usr/lib/vgpu"),
        records.Mount(base + "/box/usage", "box", "usage", writable=True),
    ), ())
    inside = hook.Inside(base + "/rootfs", records.Start())
    hook.make_mounts(hook.State("x", init.pid, base), inside, plan, os.pidfd_open(init.pid))
    print(open(f"/proc/{init.pid}/root{base}/rootfs/usr/lib/vgpu/usage").read())
finally:
    init.kill()
"""


def test_without_privileges_the_users_own_namespace_is_entered_first(vgpu: Vgpu, tree: Path, e2e_folder: Path) -> None:
    base = e2e_folder / "rootless"
    base.mkdir()
    (base / "box").mkdir()
    (base / "box/usage").write_text("seen in there")
    rootfs.link_tree(tree, base / "rootfs")
    for path in (base, base / "box", base / "box/usage", base / "rootfs", base / "rootfs/usr", base / "rootfs/usr/lib"):
        os.chown(path, 1000, 1000)
    as_user = ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"]
    done = subprocess.run(
        [*as_user, "/usr/bin/python3", "-I", "-c", ROOTLESS, vgpu.prefix / "lib/vgpu/python", base],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "seen in there\n"
