"""The commands about CDI. cli.py adds them to the rest."""

from __future__ import annotations

from typing import Annotated

import typer

from runtime_config.policy_file import DEFAULT_PATH as DEFAULT_CONFIG
from vgpu.options import Config, DryRun, Json

SpecDir = Annotated[list[str] | None, typer.Option("--spec-dir", help="Instead of /etc/cdi and /var/run/cdi.")]

cdi_app = typer.Typer(
    help="Devices for engines that know CDI.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def add_to(app: typer.Typer) -> None:
    """Adds all commands of this file."""
    app.add_typer(cdi_app, name="cdi")


@cdi_app.command("generate")
def cdi_generate_command(
    spec: Annotated[str, typer.Option("--output", help="The file to write; - prints it.")] = "/etc/cdi/vgpu.json",
    undo: Annotated[bool, typer.Option("--undo", help="Remove the file.")] = False,
    dry_run: DryRun = False,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Write the spec of vgpu.dev/gpu, with which --device vgpu.dev/gpu=all gives devices and the hook."""
    from vgpu import cdi

    raise typer.Exit(cdi.generate(config, spec, undo=undo, dry_run=dry_run, as_json=json))


@cdi_app.command("list")
def cdi_list_command(spec_dir: SpecDir = None, json: Json = False) -> None:
    """List the devices of all specs, ours and others'."""
    from vgpu import cdi

    cdi.show_list(spec_dir or [], as_json=json)


@cdi_app.command("check")
def cdi_check_command(spec_dir: SpecDir = None, config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """Say which specs name what this host no longer has; exit 1 if one does."""
    from vgpu import cdi

    raise typer.Exit(cdi.check(config, spec_dir or [], as_json=json))
