"""Manifests held against Kubernetes' own schemas, and against the programs that their containers call."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped,unused-ignore]
import typer
import yaml

from vgpu.cli import app

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("1.25.0", kubernetes_validate.latest_version())  # the oldest that the chart allows, and the newest known
FOREIGN = ("ServiceMonitor",)  # the Prometheus operator's: Kubernetes has no schema for it
Manifest = dict[str, Any]


def documents(text: str) -> list[Manifest]:
    return [found for found in yaml.safe_load_all(text) if found]


def check(found: Manifest) -> None:
    """Raises kubernetes_validate.ValidationError; strict: a key that Kubernetes does not know is an error, too."""
    for version in VERSIONS if found["kind"] not in FOREIGN else ():
        kubernetes_validate.validate(found, version, strict=True)


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for found in manifests:
        if found["kind"] == "DaemonSet":
            yield found["metadata"]["name"], found["spec"]["template"]["spec"]


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def node() -> ModuleType:
    """The installer image's program, which is no part of any package."""
    spec = importlib.util.spec_from_file_location("vgpu_node", ROOT / "packaging/images/node.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def accepted_by_vgpu(command: str, arguments: list[str]) -> dict[str, Any]:
    """The options of `vgpu COMMAND` as its own command line reads them. Raises click.UsageError."""
    group: Any = typer.main.get_command(app)
    context = group.commands[command].make_context(command, list(arguments))
    found: dict[str, Any] = context.params
    return found
