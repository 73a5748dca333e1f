"""vgpu doctor container ID."""

from __future__ import annotations

from typing import Annotated

import typer

from runtime_config.policy_file import DEFAULT_PATH as DEFAULT_CONFIG
from vgpu.options import Config, Json


def add_to(app: typer.Typer) -> None:
    app.command("container")(container_command)


def container_command(
    container: Annotated[str, typer.Argument(help="Id, beginning of an id, or name.")],
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Is a container's quota in force now, by what, and how is that known? Exit 0 well, 1 warnings, 2 it is not."""
    from vgpu.config import load
    from vgpu.doctor import report
    from vgpu.doctor.container import look

    policy, allocation = look.resolve(load(config), container)
    with report.progress("looking at its processes"):
        seen = look.examine(policy, allocation)
    code = report.show(seen, as_json=json)
    if not json:
        print(f"in force: {seen.facts['in_force']}, by the {seen.facts['backend']}")
    raise typer.Exit(code)
