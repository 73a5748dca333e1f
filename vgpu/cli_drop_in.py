"""vgpu configure podman and crio. cli.py adds them to the rest."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from vgpu.options import DryRun, Json, Prefix, Undo

SetDefault = Annotated[bool, typer.Option("--set-default", help="Make vgpu the default runtime.")]
_PODMAN = "/etc/containers/containers.conf.d/vgpu.conf"
_OF_USER = "{}/containers/containers.conf.d/vgpu.conf"
_HOOKS_OF_USER = "{}/containers/oci/hooks.d"
_CRIO = "/etc/crio/crio.conf.d/99-vgpu.conf"
_HOOKS = "/usr/share/containers/oci/hooks.d"


def add_to(configure_app: typer.Typer) -> None:
    """Adds all commands of this file."""
    configure_app.command("podman")(configure_podman_command)
    configure_app.command("crio")(configure_crio_command)


def configure_podman_command(
    dry_run: DryRun = False,
    undo: Undo = False,
    set_default: SetDefault = False,
    hooks: Annotated[bool, typer.Option("--hooks", help="Also refuse requests that come without a device.")] = False,
    config_file: Annotated[str, typer.Option("--config", help="The drop-in to write.")] = _PODMAN,
    hooks_dir: Annotated[str, typer.Option("--hooks-dir", help="With --hooks, --undo: Podman's folder.")] = _HOOKS,
    prefix: Prefix = None,
    verify: Annotated[bool, typer.Option("--verify", help="Ask Podman whether it has the runtime.")] = False,
    program: Annotated[str, typer.Option("--program", help="The Podman to ask.")] = "podman",
    json: Json = False,
) -> None:
    """Give Podman the runtime vgpu, in a drop-in of its containers.conf; run by a user, that user's rootless Podman."""
    from runtime_config.engines import podman
    from vgpu import configure_drop_in
    from vgpu.config import installed
    from vgpu.configure import Edit

    rootless = os.geteuid() != 0
    if rootless:
        config_file = _OF_USER.format(_user_folder()) if config_file == _PODMAN else config_file
        hooks_dir = _HOOKS_OF_USER.format(_user_folder()) if hooks_dir == _HOOKS else hooks_dir
    edit = Edit(config_file, podman, undo=undo, set_default=set_default, dry_run=dry_run)
    request = configure_drop_in.Request(
        edit, installed(prefix), hooks_dir if hooks or undo else None, program if verify else None, named=rootless
    )
    raise typer.Exit(configure_drop_in.run("podman", request, as_json=json))


def configure_crio_command(
    dry_run: DryRun = False,
    undo: Undo = False,
    set_default: SetDefault = False,
    config_file: Annotated[str, typer.Option("--config", help="The drop-in to write.")] = _CRIO,
    prefix: Prefix = None,
    json: Json = False,
) -> None:
    """Give CRI-O the runtime handler vgpu, in a drop-in of its crio.conf."""
    from runtime_config.engines import crio
    from vgpu import configure_drop_in
    from vgpu.config import installed
    from vgpu.configure import Edit

    edit = Edit(config_file, crio, undo=undo, set_default=set_default, dry_run=dry_run)
    request = configure_drop_in.Request(edit, installed(prefix))
    raise typer.Exit(configure_drop_in.run("crio", request, as_json=json))


def _user_folder() -> str:
    return os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
