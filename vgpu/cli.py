"""vgpu: see and set up slices of GPUs.

Exit codes: 0 done, 1 a bug or a closed pipe, 2 wrong usage (or, with --dry-run, that something would change), 3 to 6 as
`oci_hook.errors` has them.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from oci_hook.errors import VgpuError
from runtime_config.policy_file import DEFAULT_PATH as DEFAULT_CONFIG
from vgpu import (
    __version__,
    cli_cdi,
    cli_doctor,
    cli_drop_in,
    cli_engines,
    cli_grant,
    cli_help,
    cli_install,
    cli_k3s,
    cli_placement,
)
from vgpu.monitor import commands as monitor
from vgpu.options import DOCKER_SOCKET, Config, DockerHost, DryRun, Json, Prefix

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    help="Slices of GPUs for containers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug's traceback is for a report, not for the terminal's width
    context_settings=HELP,
)
configure_app = typer.Typer(no_args_is_help=True, context_settings=HELP)
config_app = typer.Typer(help="The admin's policy, config.yaml.", no_args_is_help=True, context_settings=HELP)
wrapper_app = typer.Typer(help="The wrapper in front of the driver.", no_args_is_help=True, context_settings=HELP)
app.add_typer(configure_app, name="configure")
app.add_typer(config_app, name="config")
cli_cdi.add_to(app)
cli_drop_in.add_to(configure_app)
cli_engines.add_to(configure_app)
cli_k3s.add_to(configure_app)
cli_placement.add_to(app)
cli_grant.add_to(app)
cli_doctor.add_to(app)
cli_install.add_to(app)
app.add_typer(wrapper_app, name="wrapper")


@app.command("ps")
def ps_command(config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """List the slices that are given out, with quota and use."""
    from vgpu import ps

    ps.run(config, as_json=json)


@app.command("set")
def set_command(
    container: Annotated[str, typer.Argument(help="Id, beginning of an id, or name.")],
    memory: Annotated[str | None, typer.Option("--memory", help="Device memory per GPU: 12GiB, 512MiB.")] = None,
    cores: Annotated[str | None, typer.Option("--cores", help="Share of the GPU's time, 1 to 100 percent.")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="Only this GPU of it, by the host's index.")] = None,
    burst: Annotated[str | None, typer.Option("--burst", help="hard or soft, for all its GPUs.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also below what is in use now.")] = False,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Change a running container's slice, without a restart."""
    from vgpu import resize

    if (memory, cores, burst) == (None, None, None):
        raise typer.BadParameter("give at least one of --memory, --cores and --burst")
    resize.run(config, container, resize.change(memory, cores, gpu, burst), force=force, as_json=json)


@app.command("inventory")
def inventory_command(
    refresh: Annotated[bool, typer.Option("--refresh", help="Look at the host again.")] = False,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Show the GPUs and the driver that slices are taken from."""
    from vgpu import inventory

    inventory.run(config, refresh=refresh, as_json=json)


@configure_app.command("docker")
def configure_docker_command(
    dry_run: DryRun = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take our keys out again.")] = False,
    set_default: Annotated[bool, typer.Option("--set-default", help="Make vgpu the default runtime.")] = False,
    daemon_json: Annotated[str, typer.Option("--config", help="Docker's own file.")] = "/etc/docker/daemon.json",
    prefix: Prefix = None,
    reload: Annotated[bool, typer.Option("--reload", help="Have dockerd read the file, and verify.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Ask dockerd whether it has the runtime.")] = False,
    host: DockerHost = DOCKER_SOCKET,
    force: Annotated[bool, typer.Option("--force", help="Undo although containers still need it.")] = False,
    json: Json = False,
) -> None:
    """Add the runtime vgpu to Docker's daemon.json; every other byte of it stays."""
    from vgpu import configure
    from vgpu.config import installed

    edit = configure.Edit(daemon_json, undo=undo, set_default=set_default, dry_run=dry_run, force=force)
    engine = configure.Engine(host, reload=reload, verify=verify or reload)
    raise typer.Exit(configure.run(edit, engine, installed(prefix), as_json=json))


@configure_app.command("containerd")
def configure_containerd_command(
    dry_run: DryRun = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take our handler out again.")] = False,
    set_default: Annotated[bool, typer.Option("--set-default", help="Make vgpu CRI's default runtime.")] = False,
    config_toml: Annotated[
        str, typer.Option("--config", help="containerd's own file.")
    ] = "/etc/containerd/config.toml",
    prefix: Prefix = None,
    verify: Annotated[bool, typer.Option("--verify", help="Ask containerd what it makes of the file.")] = False,
    program: Annotated[str, typer.Option("--program", help="The containerd to ask.")] = "containerd",
    drop_in: Annotated[
        bool, typer.Option("--drop-in", help="In conf.d/90-vgpu.toml beside it, which it must import.")
    ] = False,
    runtime_class: Annotated[bool, typer.Option("--runtime-class", help="Print Kubernetes' RuntimeClass.")] = False,
    json: Json = False,
) -> None:
    """Add the runtime handler vgpu to containerd's config.toml; every other byte of it stays."""
    from runtime_config.engines import containerd
    from vgpu import configure, configure_containerd
    from vgpu.config import installed

    if runtime_class:
        print(containerd.runtime_class(), end="")
        return
    edit = configure.Edit(config_toml, containerd, undo=undo, set_default=set_default, dry_run=dry_run)
    code = configure_containerd.run(
        edit, installed(prefix), program=program, verify=verify, drop_in=drop_in, as_json=json
    )
    raise typer.Exit(code)


@config_app.command("show")
def config_show_command(config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """Show every setting with the value in force."""
    from vgpu import config as commands

    commands.show(config, as_json=json)


@config_app.command("check")
def config_check_command(config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """Check config.yaml, and say whether it has been applied."""
    from vgpu import config as commands

    commands.check(config, as_json=json)


@config_app.command("apply")
def config_apply_command(config: Config = DEFAULT_CONFIG, json: Json = False) -> None:
    """Put config.yaml in force for the containers that start from now on."""
    from vgpu import config as commands

    commands.apply(config, as_json=json)


@wrapper_app.command("coverage")
def wrapper_coverage_command(
    library: Annotated[str | None, typer.Argument(help="A libcuda or libnvidia-ml; default: this host's.")] = None,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Say what the wrapper does with each function of a driver; exit 1 or 2 if it does not know one."""
    from vgpu import coverage

    raise typer.Exit(coverage.run(config, library, as_json=json))


@app.command("simulate")
def simulate_command(
    cluster: Annotated[str, typer.Option("--cluster", help="The nodes, a YAML file.")],
    trace: Annotated[str, typer.Option("--trace", help="The jobs, a CSV file.")],
    policy: Annotated[str, typer.Option("--policy", help="Policies to compare, with commas.")] = "binpack,spread",
    preempt: Annotated[bool, typer.Option("--preempt", help="Priority may end running jobs.")] = False,
    report: Annotated[str | None, typer.Option("--report", help="Write an HTML page here.")] = None,
    generate: Annotated[
        str | None, typer.Option("--generate", help="Write --trace instead: shared, mixed or lopsided.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="With --generate: how many.")] = 10_000,
    load: Annotated[float, typer.Option("--load", help="With --generate: work, as a share of the cluster.")] = 0.9,
    seed: Annotated[int, typer.Option("--seed", help="With --generate: the same seed, the same trace.")] = 7,
    json: Json = False,
) -> None:
    """What placement policies would do with a cluster and a trace of jobs."""
    from vgpu.simulate import command

    if generate is not None:
        command.write_trace(cluster, trace, generate, jobs=jobs, load=load, seed=seed)
    else:
        command.run(cluster, trace, policy, preempt=preempt, to_file=report, as_json=json)


@app.command("export")
def export_command(
    target: Annotated[str, typer.Option("--as", help="hami or volcano.")], config: Config = DEFAULT_CONFIG
) -> None:
    """Print the policy in force as settings of HAMi or Volcano."""
    from vgpu import export

    export.run(config, target)


@app.command("version")
def version_command(json: Json = False) -> None:
    """Show the version."""
    from vgpu import output

    if json:
        output.emit_json({"version": __version__})
    else:
        print(__version__)


monitor.add(app)


def doctor() -> None:
    """The program vgpu-doctor."""
    main("doctor")


def main(*first: str) -> None:
    """The program: a refusal is one line and its exit code; only a bug shows a traceback. first: words before all."""
    # a table may hold any name, a terminal may be ASCII only
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        cli_help.command(app)([*first, *sys.argv[1:]], prog_name="vgpu")
    except VgpuError as error:
        print(error.line(), file=sys.stderr)
        sys.exit(error.exit_code)
