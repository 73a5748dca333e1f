"""The commands that install, switch and remove versions of vgpu. cli.py adds them to the rest."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from vgpu.options import Json

Given = Annotated[str | None, typer.Option("--prefix", help="Where vgpu is, or will be, installed.")]
Plan = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; exit 2 if there is something.")]
Force = Annotated[bool, typer.Option("--force", help="Although containers that run stand in the way.")]
Units = Annotated[str | None, typer.Option("--units", help="Folder for systemd's units, or none.")]
From = Annotated[str | None, typer.Option("--from", help="A checkout or a package's folder; default: this command's.")]
Build = Annotated[str | None, typer.Option("--build", help="What `make build` made, if not the checkout's build.")]
Runtime = Annotated[str | None, typer.Option("--runtime", help="The real runtime; else runc or crun of PATH.")]
StateDir = Annotated[str | None, typer.Option("--state-dir", help="Where slices are kept, /run/vgpu.")]
LogDir = Annotated[str | None, typer.Option("--log-dir", help="Where the audit log is, /var/lib/vgpu.")]
Gpus = Annotated[int | None, typer.Option("--simulate-gpus", help="So many simulated GPUs instead of real ones.")]
Memory = Annotated[str | None, typer.Option("--simulate-memory", help="Of each of them, 80GiB.")]
Python = Annotated[str, typer.Option("--python", help="The interpreter of shim and hook.")]
CliPython = Annotated[str | None, typer.Option("--cli-python", help="The interpreter of the vgpu command.")]

versions_app = typer.Typer(
    help="Installed versions, and the containers on them.", context_settings={"help_option_names": ["-h", "--help"]}
)


def add_to(app: typer.Typer) -> None:
    """Adds all commands of this file."""
    app.command("install")(install_command)
    app.command("upgrade")(upgrade_command)
    app.command("rollback")(rollback_command)
    app.command("uninstall")(uninstall_command)
    app.add_typer(versions_app, name="versions")


def install_command(
    prefix: Given = None,
    source: From = None,
    build: Build = None,
    runtime: Runtime = None,
    state_dir: StateDir = None,
    log_dir: LogDir = None,
    simulate_gpus: Gpus = None,
    simulate_memory: Memory = None,
    python: Python = "/usr/bin/python3",
    cli_python: CliPython = None,
    units: Units = None,
    force: Force = False,
    dry_run: Plan = False,
) -> None:
    """Install this version, and give it to the containers that start from now on."""
    from vgpu.installer.config import Settings

    settings = Settings(runtime, state_dir, log_dir, simulate_gpus, simulate_memory)
    _install(prefix, source, build, settings, (python, cli_python), units, force=force, dry_run=dry_run, upgrade=False)


def upgrade_command(
    prefix: Given = None,
    source: From = None,
    build: Build = None,
    python: Python = "/usr/bin/python3",
    cli_python: CliPython = None,
    units: Units = None,
    force: Force = False,
    dry_run: Plan = False,
) -> None:
    """As install, where vgpu is installed: running containers keep their version, config.yaml stays."""
    from vgpu.installer.config import Settings

    interpreters = (python, cli_python)
    _install(prefix, source, build, Settings(), interpreters, units, force=force, dry_run=dry_run, upgrade=True)


def _install(
    given: str | None, source: str | None, build: str | None, settings: object, interpreters: tuple[str, str | None],
    units: str | None, *, force: bool, dry_run: bool, upgrade: bool,
) -> None:  # fmt: skip
    from vgpu.installer import config, install, layout
    from vgpu.installer import source as sources

    assert isinstance(settings, config.Settings)
    prefix = layout.of(given or layout.own_prefix())
    sources.hand_over(source, [*sys.argv[1:], "--prefix", str(prefix.path)])
    python, cli_python = interpreters
    wanted = install.Wanted(
        settings, python, cli_python or sys.executable, install.unit_folder(prefix, units), force, dry_run, upgrade
    )
    with layout.told():
        changes = install.install(prefix, sources.items(source, build), wanted)
    raise typer.Exit(2 if dry_run and changes else 0)


def rollback_command(
    prefix: Given = None,
    to: Annotated[str | None, typer.Option("--to", help="A version, or the beginning of its name.")] = None,
    force: Force = False,
    dry_run: Plan = False,
) -> None:
    """Go back to the version before; running containers keep theirs."""
    from vgpu.installer import install, layout

    with layout.told():
        changes = install.rollback(layout.of(prefix or layout.own_prefix()), to=to, force=force, dry_run=dry_run)
    raise typer.Exit(2 if dry_run and changes else 0)


def uninstall_command(
    prefix: Given = None,
    engine_config: Annotated[
        list[str] | None,
        typer.Option("--engine-config", help="docker=FILE, podman=FILE and so on, if not the usual one."),
    ] = None,
    units: Units = None,
    purge: Annotated[bool, typer.Option("--purge", help="Also config.yaml and the audit log.")] = False,
    force: Force = False,
    dry_run: Plan = False,
) -> None:
    """Take vgpu out of the engines' configurations, then off this host."""
    from vgpu.installer import engines, install, layout, uninstall

    engine_files = {}
    for one in engine_config or []:
        engine, _, path = one.partition("=")
        if engine not in engines.NAMES or not path:
            raise typer.BadParameter(f"--engine-config {one!r}: write one of {', '.join(engines.NAMES)}, =, a path")
        engine_files[engine] = os.path.abspath(path)
    where = layout.of(prefix or layout.own_prefix())
    wanted = uninstall.Wanted(engine_files, install.unit_folder(where, units), purge, force, dry_run)
    with layout.told():
        changes = uninstall.uninstall(where, wanted)
    raise typer.Exit(2 if dry_run and changes else 0)


@versions_app.callback(invoke_without_command=True)
def versions_command(context: typer.Context, prefix: Given = None, json: Json = False) -> None:
    """List the installed versions, and the containers that run on another than the current one."""
    if context.invoked_subcommand is None:
        from vgpu.installer import layout, show

        show.run(layout.of(prefix or layout.own_prefix()), as_json=json)


@versions_app.command("prune")
def versions_prune_command(prefix: Given = None, dry_run: Plan = False) -> None:
    """Remove the versions that are neither current nor previous and that no container uses."""
    from vgpu.installer import layout, uninstall

    with layout.told():
        changes = uninstall.prune(layout.of(prefix or layout.own_prefix()), dry_run=dry_run)
    raise typer.Exit(2 if dry_run and changes else 0)
