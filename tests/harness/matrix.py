"""What a test of the compatibility matrix was run with; tests/conftest.py keeps it for `make matrix`."""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tests.harness import suites

SIMULATED = "simulated"
Record = Callable[[str, object], None]  # pytest's record_property


def row(record: Record, *, engine: str, runtime: Path, driver: str = SIMULATED, suite: str = "") -> None:
    """engine: with its version, "none" for a plain bundle. runtime: the runc or crun. suite: where they come from."""
    record("engine", engine)
    record("runtime", f"{runtime.name} {suites.version(runtime)}")
    record("driver", driver)
    record("distribution", f"{_host()}{f', programs of {suite}' if suite else ''}")
    record("date", datetime.now(UTC).date().isoformat())


def _host() -> str:
    lines = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    name = f"{lines.get('NAME', 'Linux')} {lines.get('VERSION_ID', '')}".replace('"', "").replace(" GNU/Linux", "")
    return f"{name}, Linux {'.'.join(platform.release().split('.')[:2])}"
