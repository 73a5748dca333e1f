"""The OCI hook: `prestart` makes a container's slice real before its program exists, `poststop` gives it back.

Runs as the engine's user on the host, next to images and containers that nobody trusts: it executes nothing, believes
nothing that the image says, and reaches into the container by file descriptors only (mounts.py). Closed: if anything of
the slice cannot be had, the container does not start.
"""

from __future__ import annotations

import errno
import os

from oci_hook import audit, fastjson, ledger, mounts, policy, preflight, syscalls
from oci_hook.bundle import Bundle
from oci_hook.errors import HostError, ImageError, VgpuError, shown
from oci_hook.inside import Namespaces, run, visit
from oci_hook.mountinfo import MountInfo
from oci_hook.plan import BOX
from oci_hook.records import Allocation, Plan, Policy, Start
from oci_hook.rootview import RootView
from oci_hook.values import TYPE_CHECKING, dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_MAX_STATE = 1 << 20
_MAX_PID = 1 << 22  # PID_MAX_LIMIT of 64-bit Linux
_TIMEOUT_S = 8.0  # below the 10 s after which the runtime kills us and nothing would be said
_NEVER_LIBRARIES = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")  # engines mount them into every container
_UNCLEAR = "\\"
_STATUSES = ("creating", "created")  # runc's and crun's word for the same moment


@dataclass(frozen=True)
class State:
    """What the runtime tells on standard input. pid: of the container's first process, in our pid namespace."""

    id: str
    pid: int
    bundle: str


@dataclass(frozen=True)
class Inside:
    """What the hook reads of config.json. root: absolute path."""

    root: str
    start: Start


def parse_state(raw: bytes, *, starting: bool) -> State:
    """Raises HostError VGPU-OCI-002. pid and status are only looked at when `starting`."""
    if len(raw) > _MAX_STATE:
        raise _bad_state(f"has more than {_MAX_STATE} bytes")
    try:
        value = fastjson.loads(raw)
    except ValueError as error:
        raise _bad_state(f"is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise _bad_state("is no object")
    container, pid, bundle = value.get("id"), value.get("pid", 0), value.get("bundle")
    if not isinstance(container, str) or not ledger.is_id(container):
        raise HostError(
            "VGPU-OCI-003",
            f"the container's id is {shown(container)}",
            remedy="use an id of letters, digits and _.+- that does not begin with a dot",
        )
    if not isinstance(bundle, str) or not bundle.startswith("/") or "\0" in bundle:
        raise _bad_state(f"names the bundle {shown(bundle)}")
    if starting and (type(pid) is not int or not 1 < pid <= _MAX_PID):
        raise _bad_state(f"names the process {shown(pid)}")
    if starting and value.get("status") not in _STATUSES:
        raise _bad_state(f"has the status {shown(value.get('status'))}, not 'creating'")
    return State(container, pid if starting else 0, bundle)


def _bad_state(what: str) -> HostError:
    return HostError(
        "VGPU-OCI-002",
        f"the container state on standard input {what}",
        remedy="let runc or crun call this hook; it is no command for people",
    )


def read_bundle(folder: str) -> Inside:
    """Raises HostError VGPU-OCI-001."""
    bundle = Bundle(folder)
    root, start = bundle.spec.get("root"), bundle.start
    bundle.close()
    path = root.get("path") if isinstance(root, dict) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise _bad_bundle(folder, f"names the root {shown(path)}")
    return Inside(os.path.join(folder, path), start)


def _bad_bundle(folder: str, what: str) -> HostError:
    path = shown(f"{folder}/config.json", 200)
    return HostError("VGPU-OCI-001", f"{path} {what}", remedy="create the container again")


def _ended() -> ImageError:
    return ImageError(
        "VGPU-IMG-004",
        "the container's process ended while its slice was being set up",
        remedy="start it again; if it was killed for memory, raise the container's memory limit",
    )


class Prepared:
    """What a process that is here for one container does before the runtime calls: see standby.py.

    sources: opened, checked and cloned; None if that has to be done when it counts, so that a refusal is told then.
    """

    def __init__(self, plan: Plan, root: str, start: Start) -> None:
        self.plan = plan
        self.inside = Inside(root, start)
        self.sources: list[mounts.Source] | None = None
        self._start = start
        self._root: os.stat_result | None = None
        self._found: preflight.Found | None = None
        self._looked: frozenset[str] = frozenset()
        try:
            if os.geteuid() == 0:  # else they are to be cloned in the container's user namespace
                self.sources = _cloned(plan)
            self._rehearse(root)
        except (OSError, VgpuError):
            return

    def _rehearse(self, root: str) -> None:
        """Preflight before the runtime has made the user's mounts. What it refuses is not said here."""
        view = RootView(os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), noting=True)
        self._root = os.fstat(view.fd)
        self._found = _preflight(view, self.plan, self._start)
        self._looked = frozenset(view.looked)
        mounts.Container(view.fd, frozenset()).make_room(self.sources or (), self._found.libdir)

    def found(self, root: int, inside: Inside, info: MountInfo) -> preflight.Found | None:
        """What preflight would find now, None if it has to be asked: it was asked about another root, or a mount that
        the runtime has made since may hide a file that it looked at. info: of the container's namespace."""
        if self._found is None or self._root is None or inside.start != self._start:
            return None
        if not os.path.samestat(os.fstat(root), self._root):
            return None
        covered = {_top(path) for path in info.below(os.readlink(f"/proc/self/fd/{root}"))}
        return None if covered & {*self._looked, _UNCLEAR} else self._found


def _top(path: str) -> str:
    """The first folder of a path, "/etc"; "" for a file that is in none of those that preflight looks for."""
    if "\\" in path:
        return _UNCLEAR
    return "" if path in _NEVER_LIBRARIES else "/" + path.lstrip("/").partition("/")[0]


def _preflight(root: RootView, plan: Plan, start: Start) -> preflight.Found:
    names = [mount.target for mount in plan.mounts if mount.where != "path"]
    return preflight.check(root, plan.libraries, names, start, os.uname().machine)


def _cloned(plan: Plan) -> list[mounts.Source]:
    sources = mounts.open_sources(plan.mounts)
    for source in sources:
        mounts.clone(source)
    return sources


def prestart(settings: Policy, state: State, prepared: Prepared | None = None) -> Allocation:
    """Preflight, mounts, and the ledger's word that the slice is in force, which is returned; after a VgpuError it is
    not. Whether there is a slice that waits for this is asked first, unless `prepared` was made for it."""
    if prepared is None:
        _require_creating(settings, state)
    plan = prepared.plan if prepared else ledger.read_plan(settings.state_dir, state.id)
    try:
        pidfd = os.pidfd_open(state.pid)
    except ProcessLookupError:
        raise _ended() from None
    except OSError as error:
        raise mounts.kernel_refused("watch the container's process", error) from None
    init = ledger.process(state.pid)
    if init is None:
        raise _ended()
    # crun 1.21 tells its working folder, "/" if it was in a namespace of the container's to bind device files
    lost = prepared is not None and state.bundle == "/" and os.path.isabs(prepared.inside.root)
    inside = prepared.inside if prepared is not None and lost else read_bundle(state.bundle)
    make_mounts(state, inside, plan, pidfd, prepared)
    if syscalls.has_ended(pidfd):
        raise _ended()
    return ledger.arm(settings.state_dir, state.id, init, timeout_s=_TIMEOUT_S)


def _require_creating(settings: Policy, state: State) -> None:
    allocation = ledger.read(settings.state_dir, state.id)
    if allocation is None:
        raise HostError(
            "VGPU-HOST-003",
            f"container {shown(state.id)} has no slice in {settings.state_dir}/containers",
            remedy="create it through vgpu-runtime; do not copy the hook into other containers",
        )
    if allocation.state != "creating":
        raise _bad_state(f"is of a container whose slice is {allocation.state} already")


def make_mounts(state: State, inside: Inside, plan: Plan, pidfd: int, prepared: Prepared | None = None) -> None:
    """The plan, in the namespaces of the container's first process; if `prepared`, this process may go there itself."""
    try:
        namespaces = Namespaces(state.pid)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            raise _ended() from None
        raise mounts.kernel_refused("open the container's namespaces", error) from None
    if syscalls.has_ended(pidfd):  # then the namespaces may be those of whoever got its number
        raise _ended()
    if namespaces.own_mount:
        raise _bad_state("is of a process without a mount namespace of its own")
    host_devices = MountInfo.of_this_namespace().devices()
    unprivileged = os.geteuid() != 0 and not namespaces.own_user
    opened = mounts.open_sources(plan.mounts) if unprivileged else []
    cloned = [] if unprivileged else (prepared and prepared.sources) or _cloned(plan)
    mounts.require_unchanged(cloned)

    def enter_and_apply() -> None:
        namespaces.enter(user=unprivileged)
        # without privileges only in there may we mount; the root is not switched yet, so the host's files are seen
        again = [mounts.reopen(source) for source in opened]
        for source in again:
            mounts.clone(source)
        _apply(inside, plan, again or cloned, host_devices, prepared)

    if prepared and not unprivileged:
        visit(namespaces, lambda: _apply(inside, plan, cloned, host_devices, prepared))
    else:
        run(enter_and_apply, _TIMEOUT_S)


def _apply(
    inside: Inside,
    plan: Plan,
    sources: Sequence[mounts.Source],
    host_devices: frozenset[str],
    prepared: Prepared | None,
) -> None:
    try:
        root = os.open(inside.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _bad_bundle(os.path.dirname(inside.root), f"names a root that cannot be opened ({error.errno})") from None
    if os.path.samestat(os.fstat(root), os.stat("/")):
        raise _bad_bundle(os.path.dirname(inside.root), "names the host's own root")
    container = mounts.Container(root, host_devices)
    if plan.hidden:
        from oci_hook import hide  # only a container that came by way of `direct` has them

        hide.hide(container, plan.hidden)
    found = prepared.found(root, inside, container.info) if prepared else None
    if found is None:
        found = _preflight(RootView(root), plan, inside.start)
    container.apply(sources, found, BOX)


def poststop(settings: Policy, state: State) -> None:
    """The slice is free again, unless its container lives: then someone else than its runtime called us."""
    _give_back(settings, state.id, event="release", even_if_armed=True)


def _give_back(settings: Policy, container: str, *, event: str, even_if_armed: bool, **facts: Any) -> None:
    with ledger.Ledger(settings.state_dir, timeout_s=_TIMEOUT_S) as book:
        try:
            allocation = ledger.read(settings.state_dir, container)
        except HostError:
            allocation = None  # unreadable, and its container is gone: away with it
        if allocation is not None and allocation.state == "armed" and (not even_if_armed or ledger.alive(allocation)):
            return
        if allocation is not None:
            from oci_hook import decision  # not needed by a start that works

            decision.ended(settings, allocation, book.tick(), event, **facts)
        removed = book.remove(container)
    if allocation is None and (removed or event == "fail"):
        audit.append(settings.log_dir, event, container, **facts)


def read_state(descriptor: int) -> bytes:
    """All that is there, or more than any state has: `parse_state` refuses that."""
    raw = b""
    while len(raw) <= _MAX_STATE and (more := os.read(descriptor, _MAX_STATE)):
        raw += more
    return raw


def _say(line: str) -> None:
    os.write(2, line.encode("utf-8", "backslashreplace") + b"\n")


def main(argv: Sequence[str]) -> int:
    """`prestart|poststop|direct --policy PATH`, the state on standard input. Returns the exit code."""
    if len(argv) != 3 or argv[0] not in ("prestart", "poststop", "direct") or argv[1] != "--policy":
        _say("usage: vgpu_hook.py prestart|poststop|direct --policy PATH, with the container's state on standard input")
        return 2
    if argv[0] == "direct":
        from oci_hook import direct  # nothing of it is needed where the shim was before

        return direct.main(argv[2])
    return _prestart(argv[2]) if argv[0] == "prestart" else _poststop(argv[2])


def _prestart(policy_path: str) -> int:
    try:
        settings = load_policy(policy_path)
    except VgpuError as error:
        _say(error.line())
        return error.exit_code
    code, armed = answer(settings, read_state(0))
    tell(settings, armed)
    return code


def load_policy(path: str) -> Policy:
    """As policy.load. Before it refuses it reads the state on standard input, to keep whose start that was."""
    try:
        return policy.load(path)
    except VgpuError as error:
        from oci_hook import no_policy  # a start that works does not need it

        try:
            state = parse_state(read_state(0), starting=True)
        except VgpuError:
            raise error from None  # nobody's, and that there is no policy comes first
        no_policy.keep(path, state.id, error, part="hook", bundle=state.bundle)
        raise


def answer(settings: Policy, raw: bytes, prepared: Prepared | None = None) -> tuple[int, Allocation | None]:
    """What prestart does with the state `raw`: its exit code, and what it has put in force, which is to be told when
    nobody waits any more (`tell`). A refusal is one line on standard error."""
    os.umask(0o022)
    state = None
    try:
        state = parse_state(raw, starting=True)
        _begin(settings, state)
        return 0, prestart(settings, state, prepared)
    except VgpuError as error:
        if state:
            audit.failure(settings.state_dir, state.id, error, **_facts(settings, state))
            _clear(settings, state.id, code=error.code, message=str(error), remedy=error.remedy)
        _say(error.line())
        return error.exit_code, None
    except BaseException as error:
        if state:
            audit.bug(settings.state_dir, state.id, error, **_facts(settings, state))
            _clear(settings, state.id, code="bug", message="the hook failed; its traceback is in the runtime's message")
        raise


def _begin(settings: Policy, state: State) -> None:
    try:
        path = f"{ledger.folder(settings.state_dir, state.id)}/{audit.BEGUN}"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except OSError:
        return  # no such folder: prestart refuses


def _facts(settings: Policy, state: State) -> dict[str, str]:
    """What else is kept of a refusal."""
    try:
        allocation = ledger.read(settings.state_dir, state.id)
    except VgpuError:
        allocation = None
    name, image = (allocation.name, allocation.image) if allocation else ("", "")
    return {"part": "hook", "name": name, "image": image, "bundle": state.bundle}


def tell(settings: Policy, armed: Allocation | None) -> None:
    """The audit log's line for what is in force now."""
    if armed is not None:
        audit.append(settings.log_dir, "arm", armed.id, init=armed.init)


def _clear(settings: Policy, container: str, **facts: Any) -> None:
    """After a refusal: the slice was not given, unless it is another start's, which is armed."""
    try:
        _give_back(settings, container, event="fail", even_if_armed=False, **facts)
    except VgpuError as error:
        _say(error.line())  # the next start clears it: its creator ends now


def _poststop(policy_path: str) -> int:
    """Never fails a delete: what it cannot give back, the next start does."""
    try:
        poststop(policy.load(policy_path), parse_state(read_state(0), starting=False))
    except VgpuError as error:
        _say(error.line())
    return 0
