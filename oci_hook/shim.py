"""Asked by the launcher before it becomes runc: a container that wants a slice gets a place, a folder and our hooks in
its config.json, or is refused. Then this process stays, and is the container's hook (standby.py).

    vgpu_shim.py --policy P --runtime R --bundle B --config C --id I --log L --log-format F --launcher PID --answer FD

The launcher (launcher/shim.c) has read the engine's arguments (launcher/call.c); they are read in one place only. It is
process PID, and becomes the runtime when it reads a zero from the socket FD; any other number is its exit code.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import time

from oci_hook import (
    audit,
    decision,
    fastjson,
    inventory,
    ledger,
    nvidia,
    placement,
    plan,
    pods,
    policy,
    quota_file,
    request,
    standby,
    standing,
)  # fmt: skip
from oci_hook.bundle import Bundle, Docker, Node
from oci_hook.errors import HostError, PlacementError, VgpuError, shown
from oci_hook.records import Allocation, DeviceFile, Inventory, Placement, Plan, Policy, Process, Request
from oci_hook.values import TYPE_CHECKING, dataclass, replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_OPTIONS = (
    "--policy", "--runtime", "--bundle", "--config", "--id", "--log", "--log-format", "--launcher", "--answer"
)  # fmt: skip
_REFRESH_TIMEOUT_S = 30.0
_NO_DOCKER = Docker()


@dataclass(frozen=True)
class Call:
    """What the launcher hands over. log: "" for none. launcher: its pid, and soon the runtime's. answer: descriptor."""

    policy: str
    runtime: str
    bundle: str
    config: str
    id: str
    log: str
    log_format: str
    launcher: int
    answer: int


def main(argv: Sequence[str]) -> int:
    """0, or what the launcher exits with: 3 to 6, 1 for a bug, and 2 for a command line that no launcher wrote."""
    call = _call(argv)
    if call is None:
        _write(2, "usage: vgpu_shim.py is started by vgpu-runtime; it is no command for people")
        return 2
    code, given = 1, None
    try:
        given = _slice(call)
        code = 0
    except VgpuError as error:
        _tell(call, error.line())
        code = error.exit_code
    except Exception as error:
        _tell(
            call,
            f"vgpu: a bug: {type(error).__name__}: {shown(str(error), 200)}; to mend it: report it, with this line",
        )
        raise
    finally:
        heard = _answer(call, code)
    if given is not None and heard:
        given.serve()
    if given is not None:
        _take_back(given.settings, given.container, given.runtime, "the launcher was killed")
    return code


def _answer(call: Call, code: int) -> bool:
    """False: the launcher has gone, and there will be no runtime."""
    try:
        return os.write(call.answer, bytes((code,))) == 1
    except OSError:
        return False


def _slice(call: Call) -> standby.Standby | None:
    """Give the container its slice and edit its bundle; returns its hook. None: it asks for nothing, and nothing was
    changed."""
    try:
        bundle, docker = _read(call)
    except VgpuError as error:
        _remember_early(call, error)
        raise
    annotations, env = bundle.annotations, bundle.env
    if pods.is_sandbox(annotations) or not request.mentioned(annotations, docker.labels, env):
        return None
    try:
        settings = policy.load(call.policy)
    except VgpuError as error:
        _remember_without_policy(call, error, docker)
        raise
    try:
        asked = request.parse(annotations, docker.labels, env, settings.sources)
        if asked is None:
            return None
        believed = docker.labels if "label" in settings.sources else {}
        asked = replace(asked, labels=policy.kept_labels({**believed, **annotations}, settings))
        return _give(call, settings, bundle, docker, asked, believed)
    except VgpuError as error:
        _remember(call, settings, error, docker)
        raise
    except Exception as error:
        audit.bug(settings.state_dir, call.id, error, **_facts(call, docker))
        raise
    finally:
        bundle.close()


def _read(call: Call) -> tuple[Bundle, Docker]:
    if not ledger.is_id(call.id):
        raise HostError(
            "VGPU-OCI-003",
            f"the container's id is {shown(call.id)}",
            remedy=f"use an id of at most {ledger.MAX_ID} letters, digits and _.+- that does not begin with a dot",
        )
    bundle = Bundle(call.bundle, call.config)
    return bundle, bundle.docker(call.id)


def _give(
    call: Call, settings: Policy, bundle: Bundle, docker: Docker, asked: Request, labels: dict[str, str]
) -> standby.Standby:
    """Place the request, make the container's folder and edit the bundle; on any failure nothing of it is left."""
    creator = ledger.process(call.launcher)
    if creator is None:
        raise HostError(
            "VGPU-HOST-004",
            "the launcher was killed before the container had a place",
            remedy="start the container again",
        )
    if not os.access(call.runtime, os.X_OK):
        gone = f"{call.runtime} cannot be started: it is missing or must not be executed"
        raise HostError(
            "VGPU-HOST-004", gone, remedy="install it, or name another in config.yaml, then run vgpu config apply"
        )
    start = bundle.start
    have = inventory_now(settings)
    placed, mounts = grant(settings, call.id, docker, asked, have, creator)
    try:
        words = {name: text for name, text in labels.items() if name.startswith("vgpu.")}
        script = f"{settings.prefix}/lib/vgpu/python/vgpu_hook.py"
        if nvidia.is_here(bundle.spec, settings.runtime):
            names = {mount.target for mount in mounts.mounts if mount.where == "library"}
            memory = min(part.memory_bytes for part in placed.slices)
            nvidia.settle(bundle.spec, settings.runtime, names, memory, _nodes(plan.others(have, placed)))
        bundle.edit(_hooks(call, settings, script), script, words, _nodes(plan.devices(have, placed)))
        bundle.write()
    except BaseException:
        _take_back(settings, call.id, creator, "the bundle cannot be edited")
        raise
    return standby.Standby(settings, call.id, creator, mounts, (bundle.root, start))


def grant(
    settings: Policy,
    container: str,
    docker: Docker,
    asked: Request,
    have: Inventory,
    creator: Process,
    present: Sequence[DeviceFile] | None = None,
) -> tuple[Placement, Plan]:
    """Place the request and make the container's folder, which is the allocation.

    creator: as long as it lives, so does the allocation. present: the device files that the container has anyway, None:
    it gets those that it needs. Raises Refused if no GPU has room, and what the ledger raises.
    """
    asked, clamped = policy.clamp(asked, settings)
    with ledger.Ledger(settings.state_dir, in_turn=True) as book:
        book.reap(lambda dead: decision.ended(settings, dead, book.tick(), "reap"))
        others = book.entries()
        if any(other.id == container for other in others):
            raise book.occupied(container)
        host = standing.now(settings, asked, others)
        if present is not None:
            host = replace(host, cordoned={**_out_of_reach(have, present), **host.cordoned})
        placed = placement.place(asked, have.gpus, others, settings, host)
        if placed.slices:
            clamped += policy.percent_notes(asked, placed, have.gpus)
            mounts = plan.make(have, placed, asked, ledger.folder(settings.state_dir, container), present or ())
            burst = asked.burst or settings.burst
            quota = quota_file.quota(container, placed.slices, burst=burst, priority=asked.priority)
            entry = _entry(container, docker, asked, placed, clamped, have, creator)
            book.add(entry, mounts, quota, quota_file.usage_header(), quota_file.USAGE_BYTES)
        inputs = decision.pack(asked, have.gpus, others, settings, host)
        decision.tell(settings.log_dir, container, book.tick(), inputs, placed, name=docker.name, image=docker.image,
                      request=asked, clamped=clamped, simulated=have.simulated)  # fmt: skip
    if not placed.slices:
        raise Refused(placed)
    return placed, mounts


def _entry(
    container: str,
    docker: Docker,
    asked: Request,
    placed: Placement,
    clamped: tuple[str, ...],
    have: Inventory,
    creator: Process,
) -> Allocation:
    return Allocation(
        id=container,
        name=docker.name,
        image=docker.image,
        state="creating",
        created_ns=time.time_ns(),
        creator=creator,
        init=None,
        request=asked,
        placement=placed,
        clamped=clamped,
        simulated=have.simulated,
        driver_version=have.driver_version,
    )


def _out_of_reach(have: Inventory, present: Sequence[DeviceFile]) -> dict[str, str]:
    """UUID -> why, of the GPUs whose device file the container does not have."""
    there = {device.gpu for device in present}
    return {gpu.uuid: "the container was not given its device" for gpu in have.gpus if gpu.index not in there}


def _take_back(settings: Policy, container: str, creator: Process, why: str) -> None:
    """The slice of a container that will not start, unless a later start has it by now."""
    with ledger.Ledger(settings.state_dir) as book:
        given = ledger.read(settings.state_dir, container)
        if given is not None and given.creator == creator:
            decision.ended(settings, given, book.tick(), "release", why=why)
            book.remove(container)


def _hooks(call: Call, settings: Policy, script: str) -> dict[str, tuple[str, ...]]:
    """stage -> command. The first goes by way of vgpu-hook, which knows the process that `standby` leaves behind."""
    python, end = (sys.executable, "-I", "-S", "-E", script), ("--policy", call.policy)
    waiting = (f"{settings.prefix}/bin/vgpu-hook", ledger.folder(settings.state_dir, call.id))
    # not prestart: a runtime below ours may add hooks to that which mount, and they would be the last
    return {"createRuntime": (*waiting, *python, "prestart", *end), "poststop": (*python, "poststop", *end)}


class Refused(PlacementError):
    """No GPU has room. The audit log has it already, with the decision."""

    def __init__(self, placed: Placement) -> None:
        told = placement.refusal(placed)
        super().__init__(told.code, str(told), remedy=told.remedy)


def _remember(call: Call, settings: Policy, error: VgpuError, docker: Docker = _NO_DOCKER) -> None:
    if not isinstance(error, Refused):
        audit.append(settings.log_dir, "deny", call.id, code=error.code, message=str(error)[:4096])
    named = call.id if ledger.is_id(call.id) else audit.UNNAMED
    audit.failure(settings.state_dir, named, error, **_facts(call, docker))


def _remember_early(call: Call, error: VgpuError) -> None:
    """Of a container of which it is not known yet what it asks for."""
    try:
        settings = policy.load(call.policy)
    except VgpuError:
        _remember_without_policy(call, error)
    else:
        _remember(call, settings, error)


def _remember_without_policy(call: Call, error: VgpuError, docker: Docker = _NO_DOCKER) -> None:
    from oci_hook import no_policy  # a start that works does not need it

    no_policy.keep(call.policy, call.id, error, **_facts(call, docker))


def _facts(call: Call, docker: Docker = _NO_DOCKER) -> dict[str, str]:
    return {"part": "shim", "name": docker.name, "image": docker.image, "bundle": call.bundle}


def inventory_now(settings: Policy) -> Inventory:
    """The host's inventory; a missing or stale one is made anew by the operator's command, once. For a user, what was
    granted of it; raises HostError VGPU-HOST-012 if nothing was."""
    if settings.grant is not None:
        from oci_hook import rootless

        return rootless.inventory_now(settings, settings.grant)
    try:
        return inventory.load(settings)
    except HostError as error:
        if error.code != "VGPU-HOST-002" or not settings.vgpu_command.startswith("/"):
            raise
    ledger.prepare(settings.state_dir)
    with open(f"{settings.state_dir}/inventory.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # after a boot many start at once: one scans, the others wait for it
        try:
            return inventory.load(settings)
        except HostError:
            _refresh(settings)
    return inventory.load(settings)


def _refresh(settings: Policy) -> None:
    command = [settings.vgpu_command, "inventory", "--refresh"]
    # nothing of the engine's environment: the command must not be led astray by it
    env = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "VGPU_CONFIG": f"{settings.prefix}/etc/config.yaml",
    }
    quiet = [(os.POSIX_SPAWN_OPEN, descriptor, "/dev/null", os.O_RDWR, 0) for descriptor in range(3)]
    try:
        pid = os.posix_spawn(command[0], command, env, file_actions=quiet)
    except OSError:
        return  # the second load says what is wrong, and what to do
    until = time.monotonic() + _REFRESH_TIMEOUT_S
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return
        time.sleep(0.01)


def _nodes(devices: Iterable[DeviceFile]) -> list[Node]:
    """Those that are nodes, for the spec. Raises HostError VGPU-HOST-002 if one is not a character device any more."""
    nodes = []
    for device in devices:
        if device.kind != "node":
            continue
        try:
            found = os.stat(device.source)
        except OSError:
            found = None
        if found is None or not stat.S_ISCHR(found.st_mode):
            raise HostError(
                "VGPU-HOST-002",
                f"the driver's device {device.source} is gone or is no device",
                remedy="load the driver again (`nvidia-modprobe -u -c=0`), then `vgpu inventory --refresh`",
            )
        nodes.append(Node(device.target, os.major(found.st_rdev), os.minor(found.st_rdev)))
    return nodes


def _call(argv: Sequence[str]) -> Call | None:
    names, values = argv[::2], argv[1::2]
    if tuple(names) != _OPTIONS or len(values) != len(names) or not all(map(str.isdecimal, values[-2:])):
        return None
    policy_path, runtime, folder, config, container, log, log_format, launcher, answer = values
    return Call(policy_path, runtime, folder, config, container, log, log_format, int(launcher), int(answer))


def _tell(call: Call, line: str) -> None:
    """To the runtime's log, which is what the engine shows, and to standard error."""
    text = line.encode("utf-8", "backslashreplace").decode()
    if call.log:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        quoted = fastjson.dumps(text)
        entry = f'level=error msg={quoted} time="{now}"'
        if call.log_format == "json":
            entry = f'{{"level":"error","msg":{quoted},"time":"{now}"}}'
        try:
            descriptor = os.open(call.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            descriptor = -1  # standard error has it
        _write(descriptor, entry)
    _write(2, text)


def _write(descriptor: int, line: str) -> None:
    try:
        os.write(descriptor, line.encode() + b"\n")
    except OSError:
        return  # nobody listens; the exit code still says that it failed
