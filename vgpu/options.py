"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Config = Annotated[str, typer.Option("--config", envvar="VGPU_CONFIG", help="The policy file, config.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]
