"""Root file trees for containers, made from the machine's own files in Debian's layout.

Each function fills a folder that must be empty. Libraries are hard-linked or copied, never linked by name: a container
may not see the machine's files. Nothing here is downloaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path

MULTIARCH = str(sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu")
LIBDIR = Path("usr/lib") / MULTIARCH  # where Debian's loader finds libc.so.6
BUSYBOX = Path("/bin/busybox")
# the parts of glibc that NVIDIA's driver libraries name in DT_NEEDED; Debian's libc6 brings them all
GLIBC = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1")
APPLETS = (
    "sh",
    "cat",
    "ls",
    "echo",
    "sleep",
    "id",
    "mount",
    "env",
    "true",
    "false",
    "grep",
    "wc",
    "kill",
    "ps",
    "readlink",
    "stat",
)


def shared_objects(program: Path) -> dict[str, Path]:
    """Name -> path of every shared object that the machine's loader maps for `program`, the loader itself included."""
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    found: dict[str, Path] = {}
    for line in listed.splitlines():
        name, _, rest = line.strip().partition(" => ")
        path = (rest or name).split(" (")[0]
        if path.startswith("/"):
            found[Path(name.split(" (")[0]).name] = Path(path).resolve()
    return found


def skeleton(root: Path) -> None:
    """The folders of a merged-/usr Debian system, /etc/passwd, and busybox with a few applets."""
    for folder in ("usr/bin", "usr/lib64", str(LIBDIR), "etc", "tmp", "proc", "sys", "dev", "root", "run", "var"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
    shutil.copy2(BUSYBOX, root / "usr/bin/busybox")
    for applet in APPLETS:
        (root / "usr/bin" / applet).symlink_to("busybox")


def add_libraries(root: Path, libraries: dict[str, Path]) -> None:
    """Copies each library under its own name into Debian's library folder, and the loader to where programs name it."""
    for name, source in libraries.items():
        target = root / LIBDIR / name
        if not target.exists():
            shutil.copy2(source, target)
        if name.startswith("ld-linux"):
            folder = "usr/lib64" if Path("/lib64", name).exists() else "usr/lib"
            link = root / folder / name
            if not link.exists():
                link.symlink_to(os.path.relpath(target, link.parent))


def glibc_root(root: Path, *programs: Path) -> None:
    """busybox, all of glibc, and `programs` in /usr/bin with what they need."""
    skeleton(root)
    loader = {name: path for name, path in shared_objects(Path("/bin/sh")).items() if name.startswith("ld-linux")}
    add_libraries(root, {name: Path("/usr/lib", MULTIARCH, name).resolve() for name in GLIBC} | loader)
    for program in programs:
        add_libraries(root, shared_objects(program))
        shutil.copy2(program, root / "usr/bin" / program.name)


def python_root(root: Path, python: Path, packages: Path, names: Iterable[str]) -> None:
    """A glibc root with the machine's Python, its standard library, and the folders `names` out of `packages`."""
    glibc_root(root)
    version = f"python{sysconfig.get_python_version()}"
    stdlib = Path("/usr/lib") / version
    shutil.copy2(python, root / "usr/bin/python3")
    unwanted = shutil.ignore_patterns(
        "test", "tests", "idlelib", "tkinter", "ensurepip", "pydoc_data", "config-3*", "lib2to3", "*.pyc"
    )
    shutil.copytree(stdlib, root / "usr/lib" / version, ignore=unwanted)
    site = root / "usr/lib/python3/dist-packages"
    site.mkdir(parents=True)
    for name in names:
        source = packages / name
        if source.is_dir():
            shutil.copytree(source, site / name, ignore=shutil.ignore_patterns("*.pyx", "*.pxd", "*.pyc"))
        else:
            shutil.copy2(source, site / name)
    binaries = [python, *(root / "usr/lib" / version / "lib-dynload").glob("*.so"), *site.rglob("*.so")]
    needed: dict[str, Path] = {}
    for binary in binaries:
        needed |= shared_objects(binary)
    add_libraries(root, needed)


def static_root(root: Path) -> None:
    """busybox only: no C library at all."""
    skeleton(root)


def musl_root(root: Path) -> None:
    """What Alpine looks like to a loader: musl under its own name, and no glibc. The file is a real ELF, never run."""
    skeleton(root)
    machine = MULTIARCH.split("-")[0]
    target = root / "usr/lib" / f"ld-musl-{machine}.so.1"
    shutil.copy2(BUSYBOX, target)
    (root / "usr/lib" / f"libc.musl-{machine}.so.1").symlink_to(target.name)
    (root / "etc/alpine-release").write_text("3.20.0\n")


def link_tree(source: Path, target: Path) -> None:
    """A copy of a tree that costs no disk space: files are hard links, folders are new."""
    subprocess.run(["cp", "-al", source, target], check=True)
