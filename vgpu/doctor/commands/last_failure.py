"""vgpu doctor --last-failure [ID]."""

from __future__ import annotations

from typing import Annotated

import typer

from runtime_config.policy_file import DEFAULT_PATH as DEFAULT_CONFIG
from vgpu.options import Config, Json


def add_to(app: typer.Typer) -> None:
    app.command("last-failure")(last_failure_command)


def last_failure_command(
    container: Annotated[str | None, typer.Argument(help="Id, beginning of an id, or name; default: any.")] = None,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """What the last refused start was about, also after the container was removed. Exit 2 if there is one."""
    from vgpu.config import load_for_failures
    from vgpu.doctor import failures, report

    policy, launchers = load_for_failures(config)
    told = failures.report(failures.last(policy, container, launchers))
    code = report.show(told, as_json=json)
    if not json and told.findings:
        print(f"more: {told.facts['manual']}, {told.facts['page']}")
    raise typer.Exit(code)
