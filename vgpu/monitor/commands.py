"""The commands that show and explain, as the command line has them. Each imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from runtime_config.policy_file import DEFAULT_PATH as DEFAULT_CONFIG
from vgpu.options import Config, Json


def add(app: typer.Typer) -> None:
    """Registers them, in the order in which --help lists them."""
    for name, command in (("top", top), ("explain", explain), ("exporter", exporter), ("monitor", monitor)):
        app.command(name)(command)


def top(
    sort: Annotated[str, typer.Option("--sort", help="memory, cores, throttled, denied or name.")] = "memory",
    interval: Annotated[float, typer.Option("--interval", "-i", help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Watch one interval, print, and end.")] = False,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Show live who uses which GPU, and who waits for what. Ctrl-C ends it."""
    from vgpu.monitor import top as command

    command.run(config, interval_s=interval, sort=sort, once=once, as_json=json)


def explain(
    container: Annotated[str, typer.Argument(help="Name, id, or the beginning of an id.")],
    since: Annotated[str, typer.Option("--since", help="How far to look back: 90s, 30m, 2h, 1d.")] = "30m",
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Say where a container's time went: its own compute, its quota, its neighbours, the host. Needs the monitor."""
    from vgpu.monitor import arguments, explain_command

    explain_command.run(config, container, since_s=arguments.duration_s("--since", since), as_json=json)


def exporter(
    listen: Annotated[str, typer.Option("--listen", help="Address and port to serve on.")] = "127.0.0.1:9411",
    textfile: Annotated[
        str | None, typer.Option("--textfile", help="Write one scrape to this file instead, and end.")
    ] = None,
    max_containers: Annotated[
        int, typer.Option("--max-containers", min=1, max=10_000, help="The most that get series of their own.")
    ] = 500,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Serve metrics to Prometheus."""
    from vgpu.monitor import arguments
    from vgpu.monitor import exporter as command

    address = arguments.address("--listen", listen)
    command.run(config, address=address, textfile=textfile, max_containers=max_containers)


def monitor(
    interval: Annotated[float, typer.Option("--interval", "-i", help="Seconds between two looks.")] = 5.0,
    history: Annotated[str, typer.Option("--history", help="Size of the history file.")] = "16MiB",
    allowance: Annotated[
        str, typer.Option("--allowance", help="Memory per process that the driver may hold uncharged.")
    ] = "64MiB",
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="End after so many looks.")] = None,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Compare with the driver and keep a history, as a service. Enforcement does not need it."""
    from vgpu.monitor import arguments, service

    service.run(
        config,
        interval_s=arguments.interval(interval),
        history_bytes=arguments.size("--history", history, least=64 << 10, most=1 << 30),
        allowance_bytes=arguments.size("--allowance", allowance, least=0, most=64 << 30),
        rounds=rounds,
    )
