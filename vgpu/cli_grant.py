"""The command about grants. cli.py adds it to the rest."""

from __future__ import annotations

from typing import Annotated

import typer

from runtime_config.policy_file import DEFAULT_PATH as DEFAULT_CONFIG
from vgpu.options import Config, Json


def add_to(app: typer.Typer) -> None:
    """Adds all commands of this file."""
    app.command("grant")(grant_command)


def grant_command(
    user: Annotated[str | None, typer.Argument(help="Name or number of the user.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", help="Of each GPU: 16GiB, 50%.")] = None,
    cores: Annotated[str | None, typer.Option("--cores", help="Percent of each GPU's time; default: no limit.")] = None,
    devices: Annotated[str | None, typer.Option("--devices", help="Which GPUs: 0,GPU-…")] = None,
    count: Annotated[str | None, typer.Option("--count", help="Or of how many GPUs; default: 1.")] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the grant back.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Show all grants.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also below what the user's containers have.")] = False,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Grant a user a part of the GPUs, out of which the user's rootless engines give slices."""
    from vgpu import grant

    settings = {"memory": memory, "cores": cores, "devices": devices, "count": count}
    asked = {name: text for name, text in settings.items() if text is not None}
    if listing and (user is not None or asked or revoke):
        raise typer.BadParameter("--list shows all grants: give nothing else")
    if not listing and (user is None or revoke == bool(asked)):
        raise typer.BadParameter("give a user, and --memory or --revoke; or --list")
    if listing:
        grant.show(config, as_json=json)
    elif revoke:
        grant.revoke(config, str(user), force=force, as_json=json)
    else:
        grant.give(config, str(user), asked, force=force, as_json=json)
