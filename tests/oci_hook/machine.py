"""What this machine has that tests compare with: its libraries and its loader."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

MULTIARCH = str(sysconfig.get_config_var("MULTIARCH"))
LIBC = Path("/usr/lib", MULTIARCH, "libc.so.6")
LOADER = next(
    path for path in (Path("/lib64/ld-linux-x86-64.so.2"), Path("/lib/ld-linux-aarch64.so.1")) if path.exists()
)


def libraries() -> list[Path]:
    """Every shared object below the library folders, each file once; those of programs' own folders too."""
    found: dict[tuple[int, int], Path] = {}
    for folder in ("/usr/lib", "/lib", "/usr/lib64"):
        for base, _, names in os.walk(folder):
            for name in names:
                path = Path(base, name)
                if ".so" in name and path.is_file() and not path.is_symlink():
                    status = path.stat()
                    found.setdefault((status.st_dev, status.st_ino), path)
    return sorted(found.values())
