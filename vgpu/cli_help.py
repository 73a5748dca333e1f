"""What `--help` and the manual pages say beside the options: examples, and commands in groups by what they are for."""

from __future__ import annotations

from typing import Any

import typer
from typer.main import get_command

# heading -> commands; one that is named nowhere comes first, under "Commands"
GROUPS = {
    "What runs": ("ps", "top", "explain", "why", "set"),
    "This host": (
        "doctor",
        "inventory",
        "config",
        "cordon",
        "uncordon",
        "reserve",
        "unreserve",
        "reservations",
        "grant",
    ),
    "Engines": ("configure", "cdi"),
    "Records and services": ("audit", "bill", "monitor", "exporter"),
    "Installation": ("install", "upgrade", "rollback", "uninstall", "versions", "version"),
    "Without a GPU": ("simulate", "export", "wrapper"),
}
# command -> calls of it, each as it is typed
EXAMPLES = {
    "audit replay": ("vgpu audit replay --log ./audit.jsonl",),
    "bill": ("vgpu bill --from 2026-01-01 --to 2026-02-01 --by label:team --price a100=2.10 --format csv",),
    "cdi check": ("vgpu cdi check",),
    "cdi generate": ("vgpu cdi generate --dry-run", "vgpu cdi generate"),
    "configure": ("vgpu configure --all --dry-run", "vgpu configure --all --undo"),
    "configure containerd": (
        "vgpu configure containerd --drop-in --verify",
        "vgpu configure containerd --runtime-class",
    ),
    "configure crio": ("vgpu configure crio --dry-run",),
    "configure docker": (
        "vgpu configure docker --dry-run",
        "vgpu configure docker --reload",
        "vgpu configure docker --undo",
    ),
    "configure k3s": ("vgpu configure k3s --dry-run", "vgpu configure k3s --verify"),
    "configure podman": ("vgpu configure podman --hooks --verify",),
    "cordon": ("vgpu cordon 0 --why 'its fan is broken'",),
    "doctor": ("vgpu doctor", "vgpu doctor --code VGPU-DEP-003", "vgpu doctor --fix --dry-run"),
    "doctor bundle": ("vgpu doctor bundle --dry-run", "vgpu doctor bundle --limit 64MiB --hide-host-names"),
    "doctor container": ("vgpu doctor container web",),
    "doctor image": ("vgpu doctor image my-image:1.0", "vgpu doctor image ./saved.tar --deep"),
    "explain": ("vgpu explain web --since 2h",),
    "export": ("vgpu export --as hami",),
    "exporter": ("vgpu exporter --listen 0.0.0.0:9411",),
    "grant": ("vgpu grant ada --memory 16GiB --cores 30 --count 2", "vgpu grant ada --revoke", "vgpu grant --list"),
    "install": ("vgpu install --prefix /opt/vgpu", "vgpu install --simulate-gpus 2 --simulate-memory 24GiB"),
    "inventory": ("vgpu inventory --refresh",),
    "monitor": ("vgpu monitor --interval 5 --history 64MiB --allowance 64MiB",),
    "ps": ("vgpu ps", "vgpu ps --json"),
    "reserve": ("vgpu reserve --gpu 0 --memory 8GiB --cores 30 --for 2h --name nightly",),
    "rollback": ("vgpu rollback", "vgpu rollback --to 0.1.0"),
    "set": ("vgpu set web --memory 12GiB --cores 50", "vgpu set web --gpu 0 --memory 6GiB"),
    "simulate": (
        "vgpu simulate --cluster nodes.yaml --trace jobs.csv --generate mixed --jobs 1000",
        "vgpu simulate --cluster nodes.yaml --trace jobs.csv --policy binpack,spread --report page.html",
    ),
    "top": ("vgpu top --sort throttled --interval 5", "vgpu top --once --json"),
    "uninstall": ("vgpu uninstall --dry-run", "vgpu uninstall --engine-config docker=/srv/docker/daemon.json"),
    "upgrade": ("vgpu upgrade --from ./vgpu-0.2.0 --dry-run",),
    "why": ("vgpu why web",),
    "wrapper coverage": ("vgpu wrapper coverage /usr/lib/x86_64-linux-gnu/libcuda.so.1",),
}


def command(app: typer.Typer) -> Any:
    """The program's command, with all of this in its help."""
    whole: Any = get_command(app)
    for path, calls in EXAMPLES.items():
        found = whole
        for word in path.split():
            found = found.commands[word]
        found.epilog = "\n\n".join((f"Example{'s' * (len(calls) > 1)}:", *calls))
    order = {name: heading for heading, names in GROUPS.items() for name in names if name in whole.commands}
    for name, heading in order.items():
        whole.commands[name].rich_help_panel = heading
    whole.commands = {name: whole.commands[name] for name in (*order, *whole.commands)}
    return whole
