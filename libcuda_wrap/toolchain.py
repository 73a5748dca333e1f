"""The C compiler, as wrapper and simulated driver use it: zig cc for glibc 2.17, or the machine's gcc for sanitizers.

The same sources give the same bytes wherever they are built: relative paths, no date, a build id by content.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oci_hook.errors import HostError

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
INCLUDE = PACKAGE / "include"
GLIBC = "2.17"  # what the oldest images that the driver itself supports have
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror", "-Wvla", "-Wstrict-prototypes", "-Wmissing-prototypes")


@dataclass(frozen=True)
class Toolchain:
    """cc: "zig" (glibc 2.17, whatever the machine has) or "gcc". sanitize: value of -fsanitize=, gcc only, or empty."""

    cc: str = "zig"
    sanitize: str = ""
    arch: str = "x86_64"

    def command(self) -> list[str]:
        if self.sanitize and self.cc != "gcc":
            raise HostError("VGPU-HOST-008", f"--sanitize {self.sanitize} with {self.cc}", remedy="add --cc gcc")
        if self.cc == "gcc":
            debug = (
                ["-g", "-O1", f"-fsanitize={self.sanitize}", "-fno-omit-frame-pointer"] if self.sanitize else ["-O2"]
            )
            return ["gcc", *debug]
        # zig adds undefined-behaviour traps of its own and a debug build unless told otherwise
        target = f"{self.arch}-linux-gnu.{GLIBC}"
        return [sys.executable, "-m", "ziglang", "cc", "-target", target, "-O2", "-fno-sanitize=undefined", "-g0", "-s"]

    def program(self, sources: Sequence[Path], out: Path, *, flags: Sequence[str] = ()) -> Path:
        return self._run([*WARNINGS, "-std=gnu11"], sources, out, flags)

    def shared(
        self,
        sources: Sequence[Path],
        out: Path,
        *,
        soname: str,
        needed: Sequence[Path] = (),
        runpath: str = "",
        version_script: Path | None = None,
        defines: Mapping[str, str] | None = None,
        flags: Sequence[str] = (),
    ) -> Path:
        """A shared library. needed: libraries that get a DT_NEEDED, used or not. defines: values are C text."""
        link = [f"-Wl,-soname,{soname}", "-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack", "-Wl,--build-id=sha1"]
        if version_script is not None:
            link.append(f"-Wl,--version-script={version_script}")
        if runpath:
            link += [f"-Wl,-rpath,{runpath}", "-Wl,--enable-new-dtags"]
        if needed:
            link += ["-Wl,--no-as-needed", *map(str, needed), "-Wl,--as-needed"]
        common = ["-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden", *WARNINGS, f"-I{INCLUDE}"]
        common += [f"-D{name}={value}" for name, value in (defines or {}).items()]
        return self._run(common, sources, out, [*link, *flags])

    def stub(self, out: Path, soname: str) -> Path:
        """An empty library to link against, where only its name is wanted in DT_NEEDED."""
        source = out.with_suffix(".c")
        out.parent.mkdir(parents=True, exist_ok=True)
        source.write_text("typedef int vgw_empty;\n")
        return self._run(["-fPIC", "-shared"], [source], out, [f"-Wl,-soname,{soname}"])

    def _run(self, first: Sequence[str], sources: Sequence[Path], out: Path, last: Sequence[str]) -> Path:
        out.parent.mkdir(parents=True, exist_ok=True)
        names = [str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path) for path in sources]
        command = [*self.command(), *first, f"-ffile-prefix-map={ROOT}=.", *names, "-o", str(out), *last]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
        except FileNotFoundError:
            raise HostError(
                "VGPU-HOST-008", f"no {self.cc} on this machine", remedy="run packaging/bootstrap.sh"
            ) from None
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
            first_error = lines[0] if lines else f"exit {done.returncode}"
            raise HostError("VGPU-HOST-008", f"{out.name}: {first_error}", remedy=f"run {' '.join(command)}")
        return out
