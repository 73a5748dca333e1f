"""The admin's policy: /etc/vgpu/config.yaml, for people, compiled to policy.json, which every container start reads.

A name that does not exist, a value of the wrong kind and a value out of range are refused with their line; nothing is
guessed and nothing is ignored, so that a cap that was misspelt is not a cap that is missing.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from oci_hook import fastjson, request
from oci_hook.errors import HostError, shown
from oci_hook.records import Policy
from oci_hook.values import as_json
from runtime_config import files, policy_groups

DEFAULT_PATH = "/etc/vgpu/config.yaml"
POLICY_NAME = "policy.json"  # in the folder of config.yaml
SIZE_LIMIT_BYTES = 64 << 10

_YAML = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Setting:
    """field: of records.Policy. read: the value of a scalar's (tag, text), or of a list of texts; None if it is none.

    expected: what can be written, for the message.
    """

    field: str
    read: Callable[[str, Any], Any]
    expected: str


def _path(tag: str, text: Any) -> str | None:
    good = tag == "str" and text.startswith("/") and text.isprintable() and os.path.normpath(text) == text
    return text if good else None


def _size(tag: str, text: Any) -> int | None:
    return request.memory_size(text) if tag == "str" else None


def _whole(low: int, high: int) -> Callable[[str, Any], int | None]:
    def read(tag: str, text: Any) -> int | None:
        # not YAML's own reading: 010 would be 8 and 1:30 would be 90
        good = tag == "int" and re.fullmatch(r"0|[1-9][0-9]{0,5}", text) and low <= int(text) <= high
        return int(text) if good else None

    return read


def _factor(tag: str, text: Any) -> float | None:
    good = tag in ("int", "float") and re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", text) and 1 <= float(text) <= 100
    return float(text) if good else None


def _choice(name: str) -> Callable[[str, Any], str | None]:
    return lambda tag, text: text if tag == "str" and text in request.CHOICES[name] else None


def _names(tag: str, texts: Any) -> tuple[str, ...] | None:
    good = tag == "seq" and len(set(texts)) == len(texts) and all(text and text.isprintable() for text in texts)
    return tuple(texts) if good else None


def _numbers(tag: str, texts: Any) -> tuple[int, ...] | None:
    good = tag == "seq" and all(re.fullmatch(r"[1-9][0-9]{0,3}", text) for text in texts)
    return tuple(sorted({int(text) for text in texts})) if good else None


def _sources(tag: str, texts: Any) -> tuple[str, ...] | None:
    order = ("annotation", "label", "env")
    good = tag == "seq" and len(set(texts)) == len(texts) and set(texts) <= set(order)
    return tuple(name for name in order if name in texts) if good else None


SETTINGS = {
    "runtime": Setting("runtime", _path, "the absolute path of runc or crun, such as /usr/bin/runc"),
    "state_dir": Setting("state_dir", _path, "an absolute path, such as /run/vgpu"),
    "log_dir": Setting("log_dir", _path, "an absolute path, such as /var/lib/vgpu"),
    "driver_root": Setting("driver_root", _path, "an absolute path, such as / or /run/nvidia/driver"),
    "driver_spec": Setting("driver_spec", _path, "the absolute path of a CDI spec, such as /etc/cdi/nvidia.yaml"),
    "placement": Setting("placement", _choice("policy"), "one of " + ", ".join(request.CHOICES["policy"])),
    "burst": Setting("burst", _choice("burst"), "hard or soft"),
    "sources": Setting("sources", _sources, "a list of annotation, label and env, such as [annotation, label]"),
    "max.memory": Setting("max_memory_bytes", _size, "a size with its unit, such as 16GiB or 512MiB"),
    "max.cores": Setting("max_cores_percent", _whole(1, 100), "a whole number from 1 to 100"),
    "max.gpus": Setting("max_gpus", _whole(1, request.MAX_GPUS), "a whole number from 1 to 16"),
    "max.slices": Setting("max_slices", _whole(1, 1000), "a whole number from 1 to 1000"),
    "record_labels": Setting("record_labels", _names, "a list of label names, such as [team, user]"),
    "sick_xids": Setting("sick_xids", _numbers, "a list of the driver's error numbers, such as [48, 79]"),
    "overcommit.memory": Setting("overcommit_memory", _factor, "a number from 1 to 100, such as 1.5"),
    "overcommit.cores": Setting("overcommit_cores", _factor, "a number from 1 to 100, such as 1.5"),
    "simulate.gpus": Setting("simulate_gpus", _whole(0, request.MAX_GPUS), "a whole number from 0 to 16"),
    "simulate.memory": Setting("simulate_memory_bytes", _size, "a size with its unit, such as 80GiB"),
}
_GROUPS = {name.partition(".")[0] for name in SETTINGS if "." in name}
_NO_CAP = ("max.memory", "max.gpus", "max.slices")  # these may be null

TEMPLATE = """\
# What containers may have of this host's GPUs. After a change: vgpu config apply
# Settings that are commented out show the value that they have anyway.

# The runtime that really starts containers, runc or crun: an absolute path.
runtime: {runtime}

# Where running slices are kept (best on a tmpfs), and where the audit log grows.
state_dir: {state_dir}
log_dir: {log_dir}

# Which settings of a container may ask. Labels and env can come from the image, annotations cannot.
#sources: [annotation, label, env]

# The most that one container gets, per GPU and in GPUs, whoever asks. null: as much as the GPU has.
#max:
#  memory: null      # such as 16GiB
#  cores: 100        # percent
#  gpus: null
#  slices: null      # containers on one GPU

# How a GPU is chosen: binpack fills one before the next, spread takes the emptiest; docs/scheduling.md has them all.
# placement: weighted mixes: weighted: {{binpack: 0.7, topology: 0.3}}
#placement: binpack

# What all containers with a label may have together; none are set. Each line: label, and memory, cores, containers.
# quotas: [{{label: team=a, memory: 40GiB, cores: 100, containers: 4}}]

# Which labels of a container are kept in the audit log, for bills.
#record_labels: [team, user, project]

# After which of the driver's critical errors (XIDs) a GPU takes no new container until `vgpu uncordon`.
#sick_xids: [48, 62, 64, 74, 79, 95, 119, 120, 140]

# May a container use the compute time that its neighbours leave idle? hard: no, soft: yes.
#burst: hard

# How often a GPU may be given out; 1.5 gives out half of it twice. Above 1 a container may not get its share.
#overcommit:
#  memory: 1
#  cores: 1

# Where the driver's libraries are, for a driver that is itself in a container.
#driver_root: /

# Or a CDI spec of the driver's own tool: what it names is what containers get, and nothing is looked for.
# driver_spec: /etc/cdi/nvidia.yaml

# Simulated GPUs in place of real ones: to try and to test. 0: the real ones.
{simulate}simulate:
{simulate}  gpus: {simulate_gpus}
{simulate}  memory: {simulate_memory}
"""


def template(
    runtime: str,
    state_dir: str = Policy.state_dir,
    log_dir: str = Policy.log_dir,
    simulate_gpus: int = 0,
    simulate_memory: str = "80GiB",
) -> str:
    """A config.yaml with every setting explained."""
    return TEMPLATE.format(
        runtime=_scalar(runtime),
        state_dir=_scalar(state_dir),
        log_dir=_scalar(log_dir),
        simulate="" if simulate_gpus else "#",
        simulate_gpus=simulate_gpus,
        simulate_memory=simulate_memory,
    )


def _scalar(text: str) -> str:
    """`text` as YAML reads it back as that text."""
    return text if re.fullmatch(r"/[A-Za-z0-9/._+-]*", text) else json.dumps(text)


class _Reader:
    """Walks the nodes of one YAML document; `path` is for messages."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fields: dict[str, Any] = {}

    def fail(self, node: yaml.Node, what: str, remedy: str) -> NoReturn:
        line = node.start_mark.line + 1
        raise HostError("VGPU-CFG-003", f"{self.path}: line {line}: {what}", remedy=remedy)

    def pairs(self, node: yaml.Node, name: str) -> list[tuple[str, yaml.Node, yaml.Node]]:
        """The (full name, key, value) of a mapping; `name` is where it stands, "" for the whole file."""
        if not isinstance(node, yaml.MappingNode):
            example = next(setting for setting in SETTINGS if setting.startswith(name))
            inner = example.removeprefix(f"{name}.")
            self.fail(node, f"{name or 'the file'} is not a group of settings", f"write lines such as {inner}: … in it")
        pairs: list[tuple[str, yaml.Node, yaml.Node]] = []
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.fail(key, "a name is expected here", "write name: value")
            full = f"{name}.{key.value}" if name else key.value
            if full in seen:
                self.fail(key, f"{shown(full)} is there twice", "remove the one that is not meant")
            seen.add(full)
            pairs.append((full, key, value))
        return pairs

    def unknown(self, name: str, key: yaml.Node) -> NoReturn:
        group = name.rpartition(".")[0]
        names = [
            full for full in (*SETTINGS, *_GROUPS, *policy_groups.GROUPS) if not group or full.startswith(f"{group}.")
        ]
        near = difflib.get_close_matches(name, names, 1, 0.5)
        remedy = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(sorted(names))}"
        self.fail(key, f"there is no setting {shown(name)}", remedy)

    def setting(self, name: str, node: yaml.Node) -> None:
        setting = SETTINGS[name]
        tag, value = node.tag.removeprefix(_YAML), node.value
        if tag == "null" and name in _NO_CAP:
            self.fields[setting.field] = None
            return
        if isinstance(node, yaml.SequenceNode):
            tag = "seq" if all(isinstance(item, yaml.ScalarNode) for item in node.value) else ""
            value = [item.value for item in node.value]
        elif not isinstance(node, yaml.ScalarNode):
            tag = ""
        read = setting.read(tag, value) if tag else None
        if read is None:
            text = node.start_mark.buffer
            assert text is not None  # the loader was given a string
            found = text[node.start_mark.pointer : node.end_mark.pointer].strip()
            self.fail(node, f"{name}={shown(found)} cannot be", f"write {setting.expected}")
        self.fields[setting.field] = read

    def document(self, node: yaml.Node) -> None:
        for name, key, value in self.pairs(node, ""):
            if name in _GROUPS:
                if value.tag == f"{_YAML}null":  # a group whose lines are all commented out
                    continue
                for inner, inner_key, inner_value in self.pairs(value, name):
                    if inner not in SETTINGS:
                        self.unknown(inner, inner_key)
                    self.setting(inner, inner_value)
            elif name in policy_groups.GROUPS:
                field, read = policy_groups.GROUPS[name]
                try:
                    self.fields[field] = read(value)
                except policy_groups.Bad as bad:
                    self.fail(bad.node, f"{name}: {bad.what}", bad.remedy)
            elif name in SETTINGS and "." not in name:
                self.setting(name, value)
            else:
                self.unknown(name, key)


def _compose(text: str, path: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = f"{place}{error.problem or error.context}"
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())
    except RecursionError:
        what = "nested too deep"
    raise HostError("VGPU-CFG-001", f"{path}: {what}", remedy="mend the YAML there, and run the command again")


def compile_policy(text: str, prefix: str, *, path: str = DEFAULT_PATH) -> Policy:
    """The policy that a config.yaml says, for the installation in `prefix`. Settings that are not there: as in Policy.

    Raises VGPU-CFG-001 (not YAML) or VGPU-CFG-003 (a setting that does not exist or has a value that it cannot have).
    """
    reader = _Reader(path)
    root = _compose(text, path)
    if root is not None and root.tag != f"{_YAML}null":
        reader.document(root)
    if "runtime" not in reader.fields:
        remedy = f"write runtime: and {SETTINGS['runtime'].expected}"
        raise HostError("VGPU-CFG-003", f"{path}: the setting runtime is missing", remedy=remedy)
    if reader.fields.get("placement") == "weighted" and not reader.fields.get("weights"):
        what, remedy = "placement=weighted mixes nothing", "write weighted: {binpack: 0.7, topology: 0.3} as well"
        raise HostError("VGPU-CFG-003", f"{path}: {what}", remedy=remedy)
    return Policy(prefix=prefix, vgpu_command=f"{prefix}/bin/vgpu", **reader.fields)


def read_policy(path: str, prefix: str) -> Policy:
    """compile_policy of the file at `path`; a missing file is VGPU-CFG-001."""
    file = files.read(path, SIZE_LIMIT_BYTES)
    if file.data is None:
        raise HostError("VGPU-CFG-001", f"{path} does not exist", remedy="install vgpu, or name the file with --config")
    return compile_policy(files.decode(file), prefix, path=path)


def compiled_path(config_path: str) -> str:
    """Where the compiled form of the config.yaml at `config_path` is, free of links: beside it, else beside the file
    itself. Each installed version has its own, and a link to the one config.yaml beside it.
    """
    beside = os.path.join(os.path.dirname(os.path.abspath(config_path)), POLICY_NAME)
    if not os.path.exists(beside):
        beside = os.path.join(os.path.dirname(os.path.realpath(config_path)), POLICY_NAME)
    return os.path.realpath(beside)


def compiled_text(policy: Policy) -> bytes:
    return (fastjson.dumps(as_json(policy)) + "\n").encode()


def write_compiled(policy: Policy, path: str) -> bool:
    """Makes policy.json at `path` say `policy`; False if it does already. Raises VGPU-CFG-002."""
    file = files.read(path)
    if file.data == compiled_text(policy):
        return False
    files.replace(file, compiled_text(policy))
    return True
