"""Labels, annotations and environment of a container -> Request. Pure; docs/labels.md is its reference.

Layers, strongest first: annotations (of a pod: those that name this container, then those for all of it), labels,
VGPU_* variables, NVIDIA_GPU_MEMORY_LIMIT, HAMi's variables. A stronger layer wins setting by setting, and its
`memory.<i>` or `memory` go before either of a weaker one: an image's VGPU_MEMORY_0 does not widen what
`--label vgpu.memory` said. What loses is not even read.
"""

from __future__ import annotations

from oci_hook import pods
from oci_hook.errors import RequestError, shown
from oci_hook.placement import POLICIES
from oci_hook.records import Ask, Request
from oci_hook.values import TYPE_CHECKING, dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from typing import Any

    Layer = dict[str, "Given"]

MAX_GPUS = 16
MAX_VALUE = 1024  # characters: sixteen UUIDs with commas are the longest value that means something
CHOICES = {"policy": POLICIES, "burst": ("hard", "soft"), "priority": ("high", "normal", "low")}
CAPABILITIES = ("compute", "utility", "compat32", "graphics", "video", "display", "ngx")
SETTINGS = (
    "memory", "cores", "count", "devices", "policy", "burst", "priority", "capabilities",
    "type", "numa", "mutex", "reservation",
)  # fmt: skip
NUMBERED = tuple(f"{setting}.{index}" for setting in ("memory", "cores") for index in range(MAX_GPUS))
_UNITS = {"MiB": 1 << 20, "GiB": 1 << 30}
_HAMI_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_PREFIXES = ("VGPU_", "NVIDIA_GPU_MEMORY_LIMIT=", "CUDA_DEVICE_MEMORY_LIMIT", "CUDA_DEVICE_SM_LIMIT=")
_MAX_BYTES = 1 << 44  # the usage file counts in 44 bits


@dataclass(frozen=True)
class Given:
    """One setting as it was written. name: as the user knows it. source: "annotation", "label" or "env"."""

    name: str
    text: str
    source: str
    read: Callable[[Given], Any]

    def refuse(self, code: str, why: str, remedy: str) -> RequestError:
        return RequestError(code, f"{_plain(self.name)}={shown(self.text)} ({self.source}): {why}", remedy=remedy)


def mentioned(annotations: Mapping[str, str], labels: Mapping[str, str], env: Iterable[str]) -> bool:
    """Whether anything may be a request, whatever the policy says about it."""
    named = any(name.startswith("vgpu.") for name in (*annotations, *labels))
    return named or any(pair.startswith(_PREFIXES) for pair in env)


def parse(
    annotations: Mapping[str, str], labels: Mapping[str, str], env: Iterable[str], allowed_sources: Collection[str]
) -> Request | None:
    """What the container asks for; None: nothing, and it is to be left as it is. Raises RequestError.

    env: "NAME=value"; of several with one name the last counts. allowed_sources: others are as if they were not there.
    """
    variables = dict(pair.split("=", 1) for pair in env if "=" in pair) if "env" in allowed_sources else {}
    container, own, shared = pods.asked(annotations if "annotation" in allowed_sources else {})
    layers = [
        _named("annotation", own, f"/{container}"),
        _named("annotation", shared),
        _named("label", labels if "label" in allowed_sources else {}),
        _variables(variables),
        *_foreign(variables),
    ]
    if not any(layers):
        return None
    if any(setting.startswith("memory") for layer in layers[:-1] for setting in layer):
        layers[-1].pop("count", None)  # it only follows from HAMi's memory limits, which do not count here
    devices, count = _gpus(layers)
    sources: dict[str, str] = {}

    def chosen(*settings: str) -> Any:
        for layer in layers:
            for setting in settings:
                if setting in layer:
                    sources[setting] = layer[setting].source
                    return _checked(layer[setting])
        return None

    _refuse_numbers_from(count, layers)
    asks = []
    for index in range(count):
        memory = chosen(f"memory.{index}", "memory")
        if memory is None:
            raise _without_memory(layers, index)
        cores = chosen(f"cores.{index}", "cores") or 0
        asks.append(Ask(memory_bytes=memory[0], memory_percent=memory[1], cores_percent=cores))
    chosen("devices", "count")
    return Request(
        asks=tuple(asks),
        devices=devices,
        policy=chosen("policy"),
        burst=chosen("burst"),
        priority=chosen("priority") or "normal",
        capabilities=chosen("capabilities") or ("compute", "utility"),
        gpu_types=chosen("type") or (),
        numa=chosen("numa"),
        mutex=chosen("mutex"),
        reservation=chosen("reservation"),
        sources=sources,
    )


def _plain(name: str) -> str:
    """`name` as it may stand in a message; VgpuError.line escapes what cannot be printed."""
    return name if len(name) <= 64 else f"{name[:64]}… ({len(name)} characters)"


def nearest(word: str, known: Iterable[str]) -> tuple[str, int]:
    """The known word with the smallest edit distance to `word`, and that distance."""
    return min(((candidate, _distance(word[:64], candidate)) for candidate in known), key=lambda pair: pair[1])


def _named(source: str, values: Mapping[str, str], whose: str = "") -> Layer:
    """whose: "/trainer", the end of the names as the user has written them."""
    layer: Layer = {}
    for name, text in values.items():
        if not name.startswith("vgpu."):
            continue
        setting = name[5:]
        if setting not in SETTINGS and setting not in NUMBERED:
            raise _unknown(name + whose, source, [f"vgpu.{known}{whose}" for known in SETTINGS + NUMBERED])
        layer[setting] = Given(name + whose, text, source, _READERS[setting.partition(".")[0]])
    return layer


def _variables(variables: Mapping[str, str]) -> Layer:
    known = {f"VGPU_{setting.upper().replace('.', '_')}": setting for setting in SETTINGS + NUMBERED}
    layer: Layer = {}
    for name, text in variables.items():
        if name in known:
            setting = known[name]
            layer[setting] = Given(name, text, "env", _READERS[setting.partition(".")[0]])
        elif name.startswith("VGPU_") and (nearest(name, known)[1] <= 2 or _begins_one(name, known)):
            # a slip of the pen; other programs' VGPU_ variables are no business of ours
            raise _unknown(name, "env", known)
    return layer


def _begins_one(name: str, known: Iterable[str]) -> bool:
    return len(name) > 6 and any(candidate.startswith(name) for candidate in known)


def _foreign(variables: Mapping[str, str]) -> list[Layer]:
    """What other stacks call a slice: NVIDIA's toolkit, then HAMi. HAMi writes 0 where there is no limit."""
    nvidia: Layer = {}
    text = variables.get("NVIDIA_GPU_MEMORY_LIMIT")
    if text is not None:
        nvidia["memory"] = Given("NVIDIA_GPU_MEMORY_LIMIT", text, "env", _nvidia_memory)
    hami: Layer = {}
    for setting in ("memory", *NUMBERED[:MAX_GPUS]):
        name = "CUDA_DEVICE_MEMORY_LIMIT" + setting[6:].replace(".", "_")
        text = variables.get(name)
        if text is None or text.rstrip("kKmMgG") == "0":
            continue
        hami[setting] = Given(name, text, "env", _hami_memory)
        if setting != "memory":  # HAMi has no variable for the number of GPUs: the highest one that it limits
            hami["count"] = Given(name, str(int(setting[7:]) + 1), "env", _count)
    text = variables.get("CUDA_DEVICE_SM_LIMIT", "0")
    if text != "0":
        hami["cores"] = Given("CUDA_DEVICE_SM_LIMIT", text, "env", _cores)
    return [nvidia, hami]


def _gpus(layers: list[Layer]) -> tuple[tuple[str, ...], int]:
    """(devices, count) of the strongest layer that says either."""
    for layer in layers:
        devices: tuple[str, ...] = _checked(layer["devices"]) if "devices" in layer else ()
        count: int | None = _checked(layer["count"]) if "count" in layer else None
        if devices and count not in (None, len(devices)):
            raise layer["count"].refuse(
                "VGPU-REQ-004",
                f"but {layer['devices'].name} names {len(devices)}",
                remedy=f"leave {layer['count'].name} out: the number follows from {layer['devices'].name}",
            )
        if devices or count:
            return devices, count or len(devices)
    return (), 1


def _refuse_numbers_from(count: int, layers: list[Layer]) -> None:
    """Refuse memory.<i> and cores.<i> with i >= count in the layers that decide about memory or cores."""
    for setting in ("memory", "cores"):
        for layer in layers:
            mine = [name for name in layer if name.partition(".")[0] == setting]
            beyond = [name for name in mine if "." in name and int(name.partition(".")[2]) >= count]
            if beyond:
                raise layer[beyond[0]].refuse(
                    "VGPU-REQ-004",
                    f"the container asks for {count} GPU{'s' if count > 1 else ''}, and numbers start at 0",
                    remedy=f"set vgpu.count={int(beyond[0].partition('.')[2]) + 1}, or leave this setting out",
                )
            if mine:
                break


def _without_memory(layers: list[Layer], index: int) -> RequestError:
    given = next(iter(next(layer for layer in layers if layer).values()))
    what = f"no memory is asked for GPU {index} of the container"
    remedy = "add vgpu.memory=8GiB, or vgpu.memory=100% for all of a GPU's memory"
    return given.refuse("VGPU-REQ-004", what, remedy)


def _unknown(name: str, source: str, known: Iterable[str]) -> RequestError:
    guess, _ = nearest(name, known)
    return RequestError(
        "VGPU-REQ-003",
        f"{_plain(name)} ({source}): there is no such setting",
        remedy=f"did you mean {guess}? docs/labels.md has them all",
    )


def _checked(given: Given) -> Any:
    text = given.text
    if len(text) > MAX_VALUE:
        why = f"longer than {MAX_VALUE} characters"
        raise given.refuse("VGPU-REQ-005", why, remedy="write a value that docs/labels.md describes")
    if not (text.isascii() and text.isprintable()):
        why = "it has characters other than plain printable ASCII"
        raise given.refuse("VGPU-REQ-005", why, remedy="type the value anew, in plain letters and digits")
    return given.read(given)


def _number(text: str, low: int, high: int) -> int | None:
    """A decimal number without sign, leading zero or space, or None."""
    digits = text.isascii() and text.isdigit() and len(text) <= 20 and (text[0] != "0" or text == "0")
    return int(text) if digits and low <= int(text) <= high else None


def memory_size(text: str) -> int | None:
    """Bytes of '8GiB' or '512MiB', or None. A bare number is no size: the unit is never guessed."""
    number, unit = _number(text[:-3], 1, 9_999_999), _UNITS.get(text[-3:])
    size = (number or 0) * (unit or 0)
    return size if 0 < size < _MAX_BYTES else None


def _memory(given: Given) -> tuple[int | None, int | None]:
    percent = _number(given.text[:-1], 1, 100) if given.text.endswith("%") else None
    size = memory_size(given.text)
    if size is None and percent is None:
        name = given.name
        why = "not a memory size: a whole number with MiB, GiB or % (the unit is never guessed)"
        raise given.refuse("VGPU-REQ-001", why, remedy=f"write {name}=8GiB, {name}=512MiB or {name}=50%")
    return size, percent


def _nvidia_memory(given: Given) -> tuple[int, None]:
    number = _number(given.text, 1, (_MAX_BYTES >> 20) - 1)
    if number is None:
        why = "not a whole number of MiB"
        raise given.refuse("VGPU-REQ-001", why, remedy=f"write {given.name}=8192, or the label vgpu.memory=8GiB")
    return number << 20, None


def _hami_memory(given: Given) -> tuple[int, None]:
    digits = given.text.rstrip("kKmMgG")
    unit = _HAMI_UNITS.get(given.text[len(digits) :].lower())
    size = (_number(digits, 1, _MAX_BYTES) or 0) * (unit or 0)
    if not 0 < size < _MAX_BYTES:
        why = "not a size in HAMi's way of writing"
        raise given.refuse("VGPU-REQ-001", why, remedy=f"write {given.name}=8192m or 8g, or the label vgpu.memory=8GiB")
    return size, None


def _whole(given: Given, least: int, most: int, why: str, remedy: str) -> int:
    number = _number(given.text, least, most)
    if number is None:
        raise given.refuse("VGPU-REQ-002", why, remedy)
    return number


def _cores(given: Given) -> int:
    why = "not a share of a GPU's compute time: a whole number of percent, 1 to 100"
    return _whole(given, 1, 100, why, f"write {given.name}=30, or leave it out for no limit")


def _count(given: Given) -> int:
    why = f"not a number of GPUs, 1 to {MAX_GPUS}"
    return _whole(given, 1, MAX_GPUS, why, f"write {given.name}=2, or leave it out for one GPU")


def _devices(given: Given) -> tuple[str, ...]:
    names = tuple(given.text.split(","))
    for name in names:
        uuid = name.startswith("GPU-") and 4 < len(name) < 48 and name.replace("-", "").isalnum()
        if _number(name, 0, 4095) is None and not uuid:
            why = f"{shown(name)} is neither the index nor the UUID of a GPU"
            raise given.refuse("VGPU-REQ-002", why, remedy=f"write {given.name}=0,1 or names as `vgpu inventory` shows")
    if len(names) > MAX_GPUS:
        why = f"more than {MAX_GPUS} GPUs"
        raise given.refuse("VGPU-REQ-002", why, remedy="ask for fewer GPUs")
    if len(set(names)) < len(names):
        why = "it names a GPU twice"
        raise given.refuse("VGPU-REQ-004", why, remedy="name each GPU once")
    return names


def _choice(given: Given) -> str:
    setting = given.name[5:].partition("/")[0].lower()  # vgpu.policy, vgpu.policy/trainer or VGPU_POLICY
    if given.text not in CHOICES[setting]:
        why = f"there is no such choice; there are {', '.join(CHOICES[setting])}"
        remedy = f"did you mean {given.name}={nearest(given.text, CHOICES[setting])[0]}?"
        raise given.refuse("VGPU-REQ-006", why, remedy)
    return given.text


def _types(given: Given) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in given.text.split(","))
    if not all(names):
        why = "an empty part of a GPU's name"
        raise given.refuse("VGPU-REQ-002", why, remedy=f"write {given.name}=A100 or {given.name}=A100,H100")
    return names


def _numa(given: Given) -> int:
    return _whole(given, 0, 1023, "not the number of a NUMA node", f"write {given.name}=0, or leave it out for any")


def is_word(text: str) -> bool:
    """Whether `text` can name a mutex or a reservation."""
    return 0 < len(text) <= 64 and text.isascii() and text.replace("-", "").replace("_", "").replace(".", "").isalnum()


def _word(given: Given) -> str:
    if not is_word(given.text):
        why = "not a name of at most 64 letters, digits and _.-"
        raise given.refuse("VGPU-REQ-002", why, remedy=f"write {given.name}=training")
    return given.text


def _capabilities(given: Given) -> tuple[str, ...]:
    if given.text == "all":
        return CAPABILITIES
    names = given.text.split(",")
    for name in names:
        if name not in CAPABILITIES:
            why = f"there is no capability {shown(name)}; there are {', '.join(CAPABILITIES)}, and all"
            raise given.refuse("VGPU-REQ-006", why, remedy=f"did you mean {nearest(name, CAPABILITIES)[0]}?")
    return tuple(name for name in CAPABILITIES if name in names)


_READERS: dict[str, Callable[[Given], Any]] = {
    "memory": _memory,
    "cores": _cores,
    "count": _count,
    "devices": _devices,
    "policy": _choice,
    "burst": _choice,
    "priority": _choice,
    "capabilities": _capabilities,
    "type": _types,
    "numa": _numa,
    "mutex": _word,
    "reservation": _word,
}


def _distance(left: str, right: str) -> int:
    """How many letters to add, drop or change (Levenshtein), to get from one to the other."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]
