"""vgpu configure k3s and rke2. cli.py adds them to the rest."""

from __future__ import annotations

from typing import Annotated

import typer

from vgpu.options import DryRun, Json, Prefix, Undo

Verify = Annotated[bool, typer.Option("--verify", help="See that config.toml has it: after a restart.")]
_K3S, _RKE2 = (f"/var/lib/rancher/{name}/agent/etc/containerd/config.toml" for name in ("k3s", "rke2"))
_MADE = "The config.toml that it makes; the template is beside it."


def add_to(configure_app: typer.Typer) -> None:
    """Adds all commands of this file."""
    configure_app.command("k3s")(configure_k3s_command)
    configure_app.command("rke2")(configure_rke2_command)


def configure_k3s_command(
    dry_run: DryRun = False,
    undo: Undo = False,
    config_file: Annotated[str, typer.Option("--config", help=_MADE)] = _K3S,
    prefix: Prefix = None,
    verify: Verify = False,
    json: Json = False,
) -> None:
    """Add the runtime handler vgpu to the template of k3s' containerd."""
    _run("k3s", config_file, prefix, undo=undo, dry_run=dry_run, verify=verify, as_json=json)


def configure_rke2_command(
    dry_run: DryRun = False,
    undo: Undo = False,
    config_file: Annotated[str, typer.Option("--config", help=_MADE)] = _RKE2,
    prefix: Prefix = None,
    verify: Verify = False,
    json: Json = False,
) -> None:
    """Add the runtime handler vgpu to the template of RKE2's containerd."""
    _run("rke2", config_file, prefix, undo=undo, dry_run=dry_run, verify=verify, as_json=json)


def _run(engine: str, made: str, prefix: str | None, *, undo: bool, dry_run: bool, verify: bool, as_json: bool) -> None:
    from vgpu import configure_k3s
    from vgpu.config import installed

    request = configure_k3s.Request(engine, made, installed(prefix), undo=undo, dry_run=dry_run, verify=verify)
    raise typer.Exit(configure_k3s.run(request, as_json=as_json))
