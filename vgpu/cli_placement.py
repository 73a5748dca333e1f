"""The commands about placement: why, audit, cordon, reserve, bill. cli.py adds them to the rest."""

from __future__ import annotations

from typing import Annotated

import typer

from runtime_config.policy_file import DEFAULT_PATH as DEFAULT_CONFIG
from vgpu.options import Config, Json

Gpu = Annotated[str, typer.Argument(help="Index or UUID, as `vgpu inventory` shows.")]

audit_app = typer.Typer(
    help="The audit log.", no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
)


def add_to(app: typer.Typer) -> None:
    """Adds all commands of this file."""
    app.add_typer(audit_app, name="audit")
    for name, command in (
        ("why", why_command),
        ("cordon", cordon_command),
        ("uncordon", uncordon_command),
        ("reserve", reserve_command),
        ("unreserve", unreserve_command),
        ("reservations", reservations_command),
        ("bill", bill_command),
    ):
        app.command(name)(command)


def why_command(
    container: Annotated[str, typer.Argument(help="Id, beginning of an id, or name.")],
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Tell why a container got its GPU, or none."""
    from vgpu import why

    why.run(config, container, as_json=json)


@audit_app.command("replay")
def audit_replay_command(
    log: Annotated[str | None, typer.Option("--log", help="One file instead of this host's log.")] = None,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Recompute every logged decision with today's code; exit 1 if one differs."""
    from vgpu import replay

    raise typer.Exit(replay.run(config, log, as_json=json))


@audit_app.command("status")
def audit_status_command(config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """Say how large the log is and whether lines were lost; exit 1 if so."""
    from vgpu import replay

    raise typer.Exit(replay.status(config, as_json=json))


def cordon_command(
    gpu: Gpu,
    why: Annotated[str, typer.Option("--why", help="Shown to those who are refused.")] = "cordoned by the admin",
    sick: Annotated[bool, typer.Option("--sick", help="It has failed: refused as CardNotHealth.")] = False,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Give the GPU to no new container. Those on it stay."""
    from vgpu import standing

    standing.cordon(config, gpu, why, sick=sick, as_json=json)


def uncordon_command(gpu: Gpu, config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """Take back a cordon, also that of a sick GPU."""
    from vgpu import standing

    standing.uncordon(config, gpu, as_json=json)


def reserve_command(
    gpu: Annotated[str, typer.Option("--gpu", help="Index or UUID.")],
    memory: Annotated[str, typer.Option("--memory", help="8GiB, 512MiB.")],
    lasting: Annotated[str, typer.Option("--for", help="How long: 2h, 30min, 1d.")],
    name: Annotated[str, typer.Option("--name", help="Containers claim it with vgpu.reservation=NAME.")],
    cores: Annotated[int, typer.Option("--cores", min=0, max=100, help="Percent of its compute time.")] = 0,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Keep room on a GPU for some containers, for some time."""
    from vgpu import standing

    standing.reserve(config, gpu, memory, cores, lasting, name, as_json=json)


def unreserve_command(
    name: Annotated[str, typer.Argument(help="As it was reserved.")],
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """End a reservation before its time."""
    from vgpu import standing

    standing.unreserve(config, name, as_json=json)


def reservations_command(config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """List the reservations in force."""
    from vgpu import standing

    standing.reservations(config, as_json=json)


def bill_command(
    start: Annotated[str | None, typer.Option("--from", help="2025-01-01 or with a time; UTC.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="Until then, exclusive; default: now.")] = None,
    by: Annotated[str, typer.Option("--by", help="label:NAME, team, user, image, gpu or container.")] = "label:team",
    price: Annotated[list[str] | None, typer.Option("--price", help="a100=2.10: a GPU-hour of such a GPU.")] = None,
    form: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Say who had how much of the GPUs, from the audit log."""
    from vgpu import billing

    billing.run(config, start, end, by, price or [], form)
