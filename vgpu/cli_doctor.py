"""vgpu doctor, and the program vgpu-doctor, which is the same. Sub-commands: a module each in vgpu/doctor/commands."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from runtime_config.policy_file import DEFAULT_PATH as DEFAULT_CONFIG
from vgpu.doctor import commands
from vgpu.options import DOCKER_SOCKET, Config, DockerHost, Json

LAST_FAILURE = "last-failure"


class _Group(TyperGroup):
    """Takes `--last-failure [ID]`, an option with a value that may be missing, as the sub-command that it is."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        option = f"--{LAST_FAILURE}"
        if option in args:
            args = [LAST_FAILURE, *(word for word in args if word != option)]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Group,
    help="Say what is wrong with this host, an image or a container, and how to mend it.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def add_to(parent: typer.Typer) -> None:
    """Adds `doctor` with all its sub-commands."""
    for found in pkgutil.iter_modules(commands.__path__):
        importlib.import_module(f"{commands.__name__}.{found.name}").add_to(app)
    parent.add_typer(app, name="doctor")


@app.callback()
def doctor_command(
    context: typer.Context,
    code: Annotated[str | None, typer.Option("--code", help="Explain a code, as VGPU-DEP-003.")] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is safe to mend.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --fix: only say what it would do.")] = False,
    docker: DockerHost = DOCKER_SOCKET,
    offline: Annotated[bool, typer.Option("--offline", help="Start no program and ask no engine.")] = False,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Without a sub-command: look at this host. Exit 0 all well, 1 warnings, 2 failures."""
    if context.invoked_subcommand is not None:
        return
    from vgpu.doctor import fixes, host, report
    from vgpu.doctor.host.machine import Host

    if code is not None:
        raise typer.Exit(report.explain(code, as_json=json))
    if dry_run and not fix:
        raise typer.BadParameter("--dry-run goes with --fix")
    here = Host(config=config, docker=docker, ask=not offline)
    facts = {"fixes": fixes.apply(here, dry_run=dry_run, quiet=json)} if fix else {}
    with report.progress("looking at this host"):
        checks = host.examine(here)
    raise typer.Exit(report.show(report.Report("host", "", checks, facts), as_json=json))
