"""vgpu configure --all: the option that stands before the engines' own commands."""

from __future__ import annotations

from typing import Annotated

import typer

from vgpu.options import DOCKER_SOCKET, DockerHost, DryRun, Json, Prefix


def add_to(configure_app: typer.Typer) -> None:
    configure_app.callback(invoke_without_command=True)(configure_command)


def configure_command(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Every engine that is on this host.")] = False,
    dry_run: DryRun = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take vgpu out of them again.")] = False,
    set_default: Annotated[bool, typer.Option("--set-default", help="Make vgpu their default runtime.")] = False,
    prefix: Prefix = None,
    reload: Annotated[bool, typer.Option("--reload", help="Have dockerd read its file, and verify.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Ask each engine whether it has the runtime.")] = False,
    host: DockerHost = DOCKER_SOCKET,
    force: Annotated[bool, typer.Option("--force", help="Undo although containers still need it.")] = False,
    json: Json = False,
) -> None:
    """Edit the configuration of an engine, or with --all of every engine on this host."""
    sources = (context.get_parameter_source(name) for name in context.params)
    given = any(source is not None and source.name == "COMMANDLINE" for source in sources)
    if context.invoked_subcommand is not None:
        if given:
            raise typer.BadParameter(f"options of {context.invoked_subcommand} belong behind its name")
        return
    if not every:
        raise typer.BadParameter("name an engine, or give --all")
    from vgpu import configure_all
    from vgpu.config import installed

    wish = configure_all.Wish(
        installed(prefix),
        host,
        undo=undo,
        set_default=set_default,
        dry_run=dry_run,
        force=force,
        reload=reload,
        verify=verify,
    )
    raise typer.Exit(configure_all.run(wish, as_json=json))
