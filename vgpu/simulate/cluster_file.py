"""Reads the nodes of a cluster from YAML. Every refusal names file, line and column, the value, and what to write."""

from __future__ import annotations

import re
from typing import NoReturn

import yaml

from oci_hook.errors import HostError, shown
from oci_hook.request import memory_size
from vgpu.simulate.model import Cluster, NodeKind

MAX_GPUS_PER_NODE = 16
MIXED = ("binpack", "spread", "topology")  # what `weighted` can mix here: nothing is known of a simulated GPU's load
_WEIGHT = r"(?!0+(\.0+)?$)[0-9]{1,6}(\.[0-9]{1,6})?"
EXAMPLE = "nodes: [{count: 4, gpus: 8, gpu: A100, memory: 80GiB}]"


def read(path: str) -> Cluster:
    """Raises VGPU-SIM-001."""
    try:
        with open(path, encoding="utf-8") as file:
            return parse(file.read(), path)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        remedy = f"name a YAML file such as {EXAMPLE}"
        raise HostError("VGPU-SIM-001", f"{path} cannot be read: {why}", remedy=remedy) from None


def parse(text: str, path: str) -> Cluster:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = getattr(error, "problem", None) or "it is not YAML"
        raise HostError("VGPU-SIM-001", f"{path}: {where}{what}", remedy="mend the YAML there") from None
    return _Reader(path).cluster(root)


class _Reader:
    def __init__(self, path: str) -> None:
        self.path = path

    def fail(self, node: yaml.Node | None, what: str, remedy: str) -> NoReturn:
        mark = node.start_mark if node else None
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise HostError("VGPU-SIM-001", f"{self.path}: {where}{what}", remedy=remedy)

    def mapping(self, node: yaml.Node | None, known: tuple[str, ...], what: str) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, f"{what} is not a group of settings", f"write it as in {EXAMPLE}")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name not in known:
                self.fail(key, f"there is no setting {shown(name)} here", f"the settings are {', '.join(known)}")
            if name in found:
                self.fail(key, f"{name} is there twice", "remove the one that is not meant")
            found[name] = value
        return found

    def text(self, node: yaml.Node, name: str, pattern: str, expected: str) -> str:
        value = node.value if isinstance(node, yaml.ScalarNode) else ""
        if not re.fullmatch(pattern, value):
            self.fail(node, f"{name}={shown(value)} cannot be", f"write {expected}")
        return value

    def cluster(self, root: yaml.Node | None) -> Cluster:
        top = self.mapping(root, ("nodes", "overcommit", "weighted"), "the file")
        rows = top.get("nodes")
        if not isinstance(rows, yaml.SequenceNode) or not rows.value:
            self.fail(rows or root, "there are no nodes", f"write {EXAMPLE}")
        factors = {}
        if "overcommit" in top:
            for name, node in self.mapping(top["overcommit"], ("memory", "cores"), "overcommit").items():
                expected = "a number from 1 to 99.99, such as 1.5"
                factors[name] = float(self.text(node, name, r"[1-9][0-9]?(\.[0-9]{1,6})?", expected))
        weights: tuple[tuple[str, float], ...] = ()
        if "weighted" in top:
            expected = "a number above 0, such as 0.7"
            found = self.mapping(top["weighted"], MIXED, "weighted").items()
            weights = tuple((name, float(self.text(node, name, _WEIGHT, expected))) for name, node in found)
        kinds = tuple(self.kind(row) for row in rows.value)
        return Cluster(kinds, factors.get("memory", 1.0), factors.get("cores", 1.0), weights)

    def kind(self, row: yaml.Node) -> NodeKind:
        settings = self.mapping(row, ("count", "gpus", "gpu", "memory", "nvlink"), "a kind of node")
        for name in ("gpus", "memory"):
            if name not in settings:
                self.fail(row, f"{name} is missing", f"write it as in {EXAMPLE}")
        count, gpu = 1, "GPU"
        if "count" in settings:
            count = int(self.text(settings["count"], "count", r"[1-9][0-9]{0,5}", "a whole number from 1 to 999999"))
        if "gpu" in settings:
            gpu = self.text(settings["gpu"], "gpu", r"[A-Za-z0-9 ._-]{1,64}", "a model's name, such as A100")
        gpus = int(self.text(settings["gpus"], "gpus", r"[1-9]|1[0-6]", f"a number from 1 to {MAX_GPUS_PER_NODE}"))
        memory = self.text(settings["memory"], "memory", r"[1-9][0-9]{0,6}(MiB|GiB)", "a size, such as 80GiB")
        size = memory_size(memory)
        assert size is not None  # the pattern is narrower than what it reads
        nvlink = 1
        if "nvlink" in settings:
            expected = "how many neighbours NVLink joins, such as 4"
            nvlink = int(self.text(settings["nvlink"], "nvlink", r"[1-9]|1[0-6]", expected))
        return NodeKind(count, gpu, gpus, size, nvlink)
