"""vgpu doctor image: would this image start with a slice? Nothing of it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from runtime_config.policy_file import DEFAULT_PATH as DEFAULT_CONFIG
from vgpu.options import Config, Json


def add_to(app: typer.Typer) -> None:
    app.command("image")(image_command)


def image_command(
    image: Annotated[
        str,
        typer.Argument(help="A root folder, a tar of one or of docker save, an OCI layout, or Docker's name for it."),
    ],
    deep: Annotated[bool, typer.Option("--deep", help="Look at every program and library in it.")] = False,
    program: Annotated[
        list[str] | None, typer.Option("--program", help="Look at this one instead of the image's own.")
    ] = None,
    driver_root: Annotated[
        str | None, typer.Option("--driver-root", help="A folder with NVIDIA's driver, instead of this host's.")
    ] = None,
    docker: Annotated[
        str, typer.Option("--host", "-H", envvar="DOCKER_HOST", help="Docker's socket.")
    ] = "unix:///var/run/docker.sock",
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Say whether an image would start with a slice, without starting it. Exit 0 yes, 1 with warnings, 2 no."""
    from vgpu.doctor import report
    from vgpu.doctor.image import command

    driver = command.driver_of(config, driver_root)
    with report.progress("reading the image") as at:
        checks = command.checks(image, driver, docker, tuple(program or ()), deep=deep, at=at)
    raise typer.Exit(report.show(report.Report("image", image, checks), as_json=json))
