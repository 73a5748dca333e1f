"""The two settings of config.yaml that are more than a value: the weights of `weighted`, and `quotas`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from oci_hook import request
from oci_hook.errors import shown
from oci_hook.placement import MIXABLE
from oci_hook.records import Quota

_NUMBER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
_WHOLE = re.compile(r"0|[1-9][0-9]{0,5}")


class Bad(Exception):
    """node: where it stands. The reader of the file makes a refusal with its line of it."""

    def __init__(self, node: yaml.Node, what: str, remedy: str) -> None:
        super().__init__(what)
        self.node, self.what, self.remedy = node, what, remedy


def _pairs(node: yaml.Node, names: tuple[str, ...], example: str) -> Iterator[tuple[str, yaml.ScalarNode]]:
    if not isinstance(node, yaml.MappingNode):
        raise Bad(node, "it is no group of settings", f"write {example}")
    seen = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value not in names:
            raise Bad(key, f"there is no {shown(key.value, 40)} in it", f"there are {', '.join(names)}")
        if key.value in seen:
            raise Bad(key, f"{key.value} is there twice", "remove the one that is not meant")
        if not isinstance(value, yaml.ScalarNode):
            raise Bad(value, f"{key.value} must be one value", f"write {example}")
        seen.add(key.value)
        yield key.value, value


def _weights(node: yaml.Node) -> dict[str, float]:
    weights = {}
    example = "{binpack: 0.7, topology: 0.3}"
    for name, value in _pairs(node, MIXABLE, example):
        if not _NUMBER.fullmatch(value.value) or not float(value.value) > 0:
            raise Bad(value, f"{name}={shown(value.value)} is no weight", f"write a number above 0: {example}")
        weights[name] = float(value.value)
    if not weights:
        raise Bad(node, "it mixes nothing", f"write {example}")
    return weights


def _quotas(node: yaml.Node) -> tuple[Quota, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise Bad(node, "it is no list", "write [{label: team=a, memory: 40GiB}]")
    return tuple(_quota(item) for item in node.value)


def _quota(node: yaml.Node) -> Quota:
    example = "{label: team=a, memory: 40GiB, cores: 100, containers: 4}"
    fields: dict[str, Any] = {}
    for name, value in _pairs(node, ("label", "memory", "cores", "containers"), example):
        text = value.value
        if name == "label":
            if not text.partition("=")[0] or not text.isprintable() or len(text) > 200:
                raise Bad(value, f"label={shown(text)} is none", "write team=a, team= (without it) or team (each)")
            fields["label"] = text
        elif name == "memory":
            size = request.memory_size(text)
            if size is None:
                raise Bad(value, f"memory={shown(text)} is no size", "write a size with its unit, such as 40GiB")
            fields["memory_bytes"] = size
        else:
            if not _WHOLE.fullmatch(text):
                raise Bad(value, f"{name}={shown(text)} is no whole number", f"write {example}")
            fields["cores_percent" if name == "cores" else name] = int(text)
    if "label" not in fields or len(fields) < 2:
        raise Bad(node, "a quota needs a label and a limit", f"write {example}")
    return Quota(**fields)


# name -> field of records.Policy, reader of its node
GROUPS: dict[str, tuple[str, Callable[[yaml.Node], Any]]] = {
    "weighted": ("weights", _weights),
    "quotas": ("quotas", _quotas),
}
