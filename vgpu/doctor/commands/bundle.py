"""vgpu doctor bundle."""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from runtime_config.policy_file import DEFAULT_PATH as DEFAULT_CONFIG
from vgpu.options import Config, Json

if TYPE_CHECKING:
    from vgpu.doctor.bundle.redact import Names


def add_to(app: typer.Typer) -> None:
    app.command("bundle")(bundle_command)


def bundle_command(
    file: Annotated[str, typer.Option("--output", "-o", help="Default: vgpu-support-DATE.tar.gz, here.")] = "",
    hide: Annotated[bool, typer.Option("--hide-host-names", help="This host's, and registries'.")] = False,
    limit: Annotated[str, typer.Option("--limit", help="Size of all files together.")] = "8MiB",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be in it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write it without a question.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Start no program and ask no engine.")] = False,
    config: Config = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Write an archive for those who help, without secrets. Its contents are listed first; nothing is sent anywhere."""
    from oci_hook.errors import VgpuError
    from vgpu import output
    from vgpu.config import load
    from vgpu.doctor import report
    from vgpu.doctor.bundle import archive, sources
    from vgpu.doctor.host.machine import Host
    from vgpu.monitor import arguments

    most = arguments.size("--limit", limit, least=256 << 10, most=1 << 30)
    try:
        policy = load(config)
    except VgpuError as error:
        output.message(error.line())  # an archive is what shall tell why
        policy = None
    with report.progress("looking at this host"):
        host = Host(config=config, ask=not offline)
        items = archive.fit(sources.Collector(host, policy, _names() if hide else None).items(), most)
    path = file or time.strftime("vgpu-support-%Y%m%d-%H%M%S.tar.gz", time.gmtime())
    if not json:
        print("\n".join(map(output.printable, archive.contents(items))))
    wanted = not dry_run and (yes or _asked(path))
    if wanted:
        archive.write(path, items)
    listed = [{"name": item.name, "bytes": len(item.data), "note": item.note} for item in items]
    if json:
        output.emit_json({"output": os.path.abspath(path) if wanted else None, "contents": listed})
    elif wanted:
        print(f"written to {path}, for nobody but you (mode 0600)")
    if not wanted and not dry_run:
        output.message("vgpu: nothing was written; --yes writes it without a question")
        raise typer.Exit(2)


def _asked(path: str) -> bool:
    """On a terminal the one who called decides, having seen the list; in a pipe nobody can."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return typer.confirm(f"write these to {path}?")


def _names() -> Names:
    from vgpu.doctor.bundle.redact import Names

    own = {socket.gethostname(), socket.gethostname().partition(".")[0], socket.getfqdn()}
    return Names(tuple(sorted(own)))
