"""The values that travel along the start path. Each is frozen, and each that is kept in a file is that file's schema.

label -> Request -> Placement -> Allocation + Plan -> mounts and quota file. Sizes are bytes, shares percent of a GPU.
"""

from __future__ import annotations

from oci_hook.values import TYPE_CHECKING, dataclass

if TYPE_CHECKING:
    from typing import ClassVar

GRANT = "user:"  # and the user's number: the name of a reservation that is a user's grant
SCHEMA = 1  # of allocation.json, plan.json, inventory.json and policy.json


@dataclass(frozen=True)
class Ask:
    """What is asked of one GPU. memory_bytes or memory_percent (1 to 100 of that GPU) is set, the other is None.

    cores_percent: 1 to 100 is reserved and counted; 0: nothing was asked, so nothing is reserved and nothing limited.
    """

    memory_bytes: int | None = None
    memory_percent: int | None = None
    cores_percent: int = 0


@dataclass(frozen=True)
class Request:
    """What a container asks for, after parsing and before the admin's policy.

    asks: one per GPU, in the container's device order. devices: index or UUID of each GPU, or empty: placement chooses.
    sources: which kind of setting each part came from, "memory" -> "annotation" | "label" | "env".
    gpu_types: parts of GPU names of which one must match, lower case; empty: any. numa: the NUMA node it must have.
    mutex: shares no GPU with a container of the same word. reservation: the name of one that it may use.
    labels: those of the container's that the policy keeps, for quotas and bills.
    """

    NESTED: ClassVar = {"asks": Ask}
    asks: tuple[Ask, ...]
    devices: tuple[str, ...] = ()
    policy: str | None = None
    burst: str | None = None
    priority: str = "normal"
    capabilities: tuple[str, ...] = ("compute", "utility")
    sources: dict[str, str] = {}
    gpu_types: tuple[str, ...] = ()
    numa: int | None = None
    mutex: str | None = None
    reservation: str | None = None
    labels: dict[str, str] = {}


@dataclass(frozen=True)
class Quota:
    """What all containers with one label may have together, on this host. None: no limit.

    label: "team=a" counts those with that value, "team" each value for itself, "team=" those without the label.
    cores_percent: of one GPU, so 200 is two whole ones.
    """

    label: str
    memory_bytes: int | None = None
    cores_percent: int | None = None
    containers: int | None = None


@dataclass(frozen=True)
class Reservation:
    """Room on one GPU that is kept for containers that ask with its name. expires_ns: Unix time.

    A name that begins with GRANT is a grant: no container can ask with it (rootless.py). It does not expire.
    """

    name: str
    uuid: str
    memory_bytes: int
    cores_percent: int
    expires_ns: int


@dataclass(frozen=True)
class Host:
    """What placement knows beside GPUs and allocations. cordoned, sick: UUID -> why; such a GPU takes nobody new.

    load: UUID -> share of its time that its containers used or waited for, 0 to 1 and above; for `least-contended`.
    now_ns: Unix time, for what expires.
    """

    NESTED: ClassVar = {"reservations": Reservation}
    cordoned: dict[str, str] = {}
    sick: dict[str, str] = {}
    reservations: tuple[Reservation, ...] = ()
    load: dict[str, float] = {}
    now_ns: int = 0


@dataclass(frozen=True)
class Grant:
    """On whose behalf we work, if not on the host's own root's: see rootless.py. Made anew by each process.

    uid: as the host has it. state_dir, log_dir: the host's. parts: what the user was granted, one of each GPU.
    """

    uid: int
    state_dir: str
    log_dir: str
    parts: tuple[Reservation, ...] = ()


@dataclass(frozen=True)
class Policy:
    """The admin's /etc/vgpu/config.yaml, compiled to policy.json next to it. None: no cap.

    sources: which of annotation, label, env may ask. overcommit_*: how often a GPU's memory or cores may be given out.
    simulate_*: simulated GPUs instead of real ones (simulate_gpus > 0). runtime: absolute path of runc or crun.
    driver_spec: a CDI spec that names the driver's files and devices, "": they are looked for below driver_root.
    vgpu_command: absolute path of the operator's command, for remedies and a refresh of the inventory.
    weights: of the policies that `weighted` mixes. max_slices: containers on one GPU. record_labels: which labels of a
    container are kept beside those that quotas name. sick_xids: after which critical errors of the driver's a GPU takes
    no new container. grant: never in the file; with it state_dir and log_dir are the user's.
    """

    NESTED: ClassVar = {"quotas": Quota}
    runtime: str
    prefix: str
    state_dir: str = "/run/vgpu"
    log_dir: str = "/var/lib/vgpu"
    vgpu_command: str = "vgpu"
    driver_root: str = "/"
    driver_spec: str = ""
    placement: str = "binpack"
    burst: str = "hard"
    max_memory_bytes: int | None = None
    max_cores_percent: int = 100
    max_gpus: int | None = None
    overcommit_memory: float = 1.0
    overcommit_cores: float = 1.0
    sources: tuple[str, ...] = ("annotation", "label", "env")
    simulate_gpus: int = 0
    simulate_memory_bytes: int = 80 << 30
    weights: dict[str, float] = {}
    quotas: tuple[Quota, ...] = ()
    max_slices: int | None = None
    record_labels: tuple[str, ...] = ("team", "user", "project")
    sick_xids: tuple[int, ...] = (48, 62, 64, 74, 79, 95, 119, 120, 140)
    grant: Grant | None = None
    schema: int = SCHEMA

    @property
    def host_state_dir(self) -> str:
        """The host's own, also where state_dir is a user's."""
        return self.grant.state_dir if self.grant else self.state_dir


@dataclass(frozen=True)
class Gpu:
    """One GPU of the host. health: "ok", or why it must not be used. minor: of /dev/nvidia<minor>.

    numa_node: None where it is not known. links: UUID of another GPU -> how it is reached: "NV" and the number of
    NVLinks, or PIX, PXB, PHB, NODE, SYS as `nvidia-smi topo` has them. cores_percent: how much of its compute time
    there is to give; like memory_bytes it is less than the GPU has where it is a user's grant.
    """

    index: int
    uuid: str
    name: str
    memory_bytes: int
    pci_bus_id: str
    minor: int
    health: str = "ok"
    numa_node: int | None = None
    links: dict[str, str] = {}
    cores_percent: int = 100


@dataclass(frozen=True)
class Library:
    """One driver library on the host.

    path: absolute, no link. soname: the name it gets in the container. role: "cuda" and "nvml" get our wrapper in
    front, "plain" is mounted as it is. capability: of NVIDIA_DRIVER_CAPABILITIES. needed: DT_NEEDED.
    versions: per needed library the symbol versions that must be in it.
    identity: (st_dev, st_ino, st_size, st_mtime_ns).
    """

    path: str
    soname: str
    role: str
    capability: str
    needed: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]
    identity: tuple[int, ...]


@dataclass(frozen=True)
class DeviceFile:
    """A device of the host: source on the host, target in the container. gpu: its GPU's index, None for all GPUs.

    kind: "node" is a character device (it goes into the spec's linux.devices), "bind" a file that stands for one.
    """

    source: str
    target: str
    gpu: int | None
    kind: str


@dataclass(frozen=True)
class Inventory:
    """What this host has; inventory.json. key: changes when driver or devices change, so that a stale file is noticed.

    programs: absolute paths of the driver's programs (nvidia-smi), mounted with the capability "utility".
    wrapper: our own two libraries, role "cuda" and "nvml".
    """

    NESTED: ClassVar = {"gpus": Gpu, "libraries": Library, "wrapper": Library, "devices": DeviceFile}
    driver_version: str
    simulated: bool
    key: str
    gpus: tuple[Gpu, ...]
    libraries: tuple[Library, ...]
    wrapper: tuple[Library, ...]
    devices: tuple[DeviceFile, ...]
    programs: tuple[str, ...] = ()
    schema: int = SCHEMA


@dataclass(frozen=True)
class Slice:
    """What a container got of one GPU. cores_percent: as in Ask; the quota file says 100 (no limit) where it is 0."""

    index: int
    uuid: str
    memory_bytes: int
    cores_percent: int


@dataclass(frozen=True)
class Candidate:
    """How one GPU fared for one ask. score: higher is better, None if rejected.

    reject: HAMi's reason (CardInsufficientMemory, CardInsufficientCore, CardNotHealth, CardUuidMismatch, …) or None.
    detail: for people: "asked 8192 MiB, free 1024 of 81920 MiB". parts: policy -> its score, where several are mixed.
    """

    ask: int
    index: int
    uuid: str
    score: float | None
    reject: str | None = None
    detail: str = ""
    parts: dict[str, float] = {}


@dataclass(frozen=True)
class Placement:
    """The decision and all that led to it. slices: in the order of the asks; empty when it does not fit."""

    NESTED: ClassVar = {"slices": Slice, "candidates": Candidate}
    policy: str
    slices: tuple[Slice, ...]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Process:
    """A process of the host; start_ticks (field 22 of /proc/<pid>/stat) tells a later one of the same pid."""

    pid: int
    start_ticks: int


@dataclass(frozen=True)
class Allocation:
    """allocation.json, one per container folder; the folder is the ledger's entry.

    state: "creating" (its creator runs or died) or "armed" (quota file and mounts are in place; init is set).
    created_ns: Unix time. clamped: settings that the policy reduced, "memory: 64 GiB asked, 16 GiB allowed".
    """

    NESTED: ClassVar = {"creator": Process, "init": Process, "request": Request, "placement": Placement}
    id: str
    name: str
    image: str
    state: str
    created_ns: int
    creator: Process
    init: Process | None
    request: Request
    placement: Placement
    clamped: tuple[str, ...]
    simulated: bool
    driver_version: str
    schema: int = SCHEMA


@dataclass(frozen=True)
class Mount:
    """One bind mount that the hook makes.

    where: "library" (into the folder where the container's loader finds libc; target is a bare name), "box" (into our
    own folder, /usr/lib/vgpu; a bare name) or "path" (target is absolute in the container).
    identity: as Library.identity, or empty where the file is expected to change (quota, usage).
    """

    source: str
    where: str
    target: str
    identity: tuple[int, ...] = ()
    writable: bool = False


@dataclass(frozen=True)
class Start:
    """How the container's process is started, as far as it tells a loader where to look. env: "NAME=value". cwd: its
    working folder. program: the first word of its command, "" if there is none."""

    env: tuple[str, ...] = ()
    cwd: str = "/"
    program: str = ""


@dataclass(frozen=True)
class Plan:
    """plan.json: all that the hook does for one container. libraries: what preflight must find loadable.

    hidden: paths in the container of device files that the engine has put there and that are not the container's.
    """

    NESTED: ClassVar = {"mounts": Mount, "libraries": Library}
    mounts: tuple[Mount, ...]
    libraries: tuple[Library, ...]
    hidden: tuple[str, ...] = ()
    schema: int = SCHEMA
