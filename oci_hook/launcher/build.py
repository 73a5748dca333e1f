"""Build vgpu-runtime and vgpu-hook: `python -m oci_hook.launcher.build [--out build/launcher] [--cc zig|gcc]`.

Static, so that they start in well under a millisecond and need nothing of the host but its kernel.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

SOURCES = {
    "vgpu-runtime": ("vgpu-runtime.c", "call.c", "shim.c", "refuse.c", "keep.c"),
    "vgpu-hook": ("vgpu-hook.c", "keep.c"),
}
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")
HERE = Path(__file__).parent


def build(out: Path, *, cc: str = "zig", arch: str = "") -> Path:
    """The path of vgpu-runtime in the folder `out`; vgpu-hook is beside it. cc: "zig" (musl, reproducible anywhere) or
    "gcc" (the host's). arch: x86_64 or aarch64, with zig; default: this machine's.

    Raises subprocess.CalledProcessError if the compiler does not like it.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, sources in SOURCES.items():
        _compile(out, name, sources, cc, arch or platform.machine())
    return out / "vgpu-runtime"


def _compile(out: Path, name: str, sources: tuple[str, ...], cc: str, arch: str) -> None:
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", f"{arch}-linux-musl"]
    temporary = out / f".{name}.{os.getpid()}"  # replaced in one step: it may be running
    command = [
        *(compiler if cc == "zig" else ["gcc"]),
        *("-std=c11", "-O2", "-static", "-s", f"-ffile-prefix-map={HERE}=launcher", *WARNINGS),
        *("-Wl,--build-id=none", "-Wl,-z,noexecstack"),
        *(str(HERE / source) for source in sources),
        *("-o", str(temporary)),
    ]
    # on a busy machine, with its cache empty, zig needs minutes: it compiles its C library first
    subprocess.run(command, check=True, timeout=1800)
    temporary.chmod(0o755)
    temporary.replace(out / name)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build vgpu-runtime and vgpu-hook.")
    parser.add_argument("--out", type=Path, default=Path("build/launcher"))
    parser.add_argument("--cc", choices=("zig", "gcc"), default="zig")
    options = parser.parse_args()
    print(build(options.out, cc=options.cc))


if __name__ == "__main__":
    main()
