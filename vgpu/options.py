"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Config = Annotated[str, typer.Option("--config", envvar="VGPU_CONFIG", help="The policy file, config.yaml.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the change as a diff; exit 2 if there is one.")]
Undo = Annotated[bool, typer.Option("--undo", help="Take it out again.")]
Prefix = Annotated[str | None, typer.Option("--prefix", help="Where vgpu is installed.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]
DockerHost = Annotated[str, typer.Option("--host", "-H", envvar="DOCKER_HOST", help="Docker's socket.")]

DOCKER_SOCKET = "unix:///var/run/docker.sock"  # where it is by default
