"""The images of the end-to-end tests and the demo: root trees, and the same trees imported into Docker."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.harness import rootfs
from tests.harness.dockerd import Docker

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "build/fixtures/cuda_client"  # tests/fixtures/cuda_client.c, built by `make build`
PYTHON = Path("/usr/bin/python3").resolve()
PACKAGES = Path(sysconfig.get_path("purelib"))  # the virtual environment that runs us
# real clients of CUDA and NVML, and what they import
PYTHON_CLIENTS = (
    "cuda", "pynvml.py", "nvitop", "nvitop-*.dist-info", "gpustat", "gpustat-*.dist-info", "blessed", "wcwidth",
    "jinxed", "psutil", "cuda_bindings-*.dist-info", "cuda_pathfinder-*.dist-info", "nvidia_ml_py-*.dist-info",
)  # fmt: skip
_OLD_VERSIONS = ("GLIBC_2.2.5", "GLIBC_2.3", "GLIBC_2.3.2", "GLIBC_2.3.4", "GLIBC_2.4")


def c_tree(tree: Path) -> None:
    """glibc, busybox and the C client."""
    rootfs.glibc_root(tree, CLIENT)


def python_tree(tree: Path) -> None:
    """Python with cuda-bindings, pynvml, nvitop and gpustat, unchanged, and our /cuda_python.py, which uses them."""
    names = [path.name for pattern in PYTHON_CLIENTS for path in sorted(PACKAGES.glob(pattern))]
    rootfs.python_root(tree, PYTHON, PACKAGES, names)
    shutil.copy2(ROOT / "tests/fixtures/cuda_python.py", tree)


def without_libpthread_tree(tree: Path) -> None:
    """As `c_tree`, but libpthread.so.0, which the driver needs, was left out."""
    c_tree(tree)
    (tree / rootfs.LIBDIR / "libpthread.so.0").unlink()


def old_glibc_tree(tree: Path) -> None:
    """A libc.so.6 as old as glibc 2.4: stand-ins that define the versions and no function, since so old a glibc cannot
    be had from this machine's files. Nothing in the tree loads them: busybox is static."""
    rootfs.skeleton(tree)
    loader = {
        name: path for name, path in rootfs.shared_objects(Path("/bin/sh")).items() if name.startswith("ld-linux")
    }
    rootfs.add_libraries(tree, loader)
    script = tree / "versions"
    chain = zip(_OLD_VERSIONS, ("", *_OLD_VERSIONS), strict=False)
    script.write_text("".join(f"{version} {{}} {before};\n" for version, before in chain))
    for name in rootfs.GLIBC:
        command = ["gcc", "-shared", "-nostdlib", "-x", "c", "/dev/null", f"-Wl,-soname,{name}"]
        target = tree / rootfs.LIBDIR / name
        subprocess.run([*command, f"-Wl,--version-script={script}", "-o", target], check=True)
    script.unlink()


def python_base_tree(tree: Path) -> None:
    """Python, its standard library and what every Debian has: what the images of packaging/images are built on."""
    rootfs.python_root(tree, PYTHON, PACKAGES, ())
    gcc = "libgcc_s.so.1"  # of compiled Python packages, pydantic's for one
    rootfs.add_libraries(tree, {gcc: (Path("/") / rootfs.LIBDIR / gcc).resolve()})


TREES: dict[str, Callable[[Path], None]] = {
    "c": c_tree,
    "python": python_tree,
    "python-base": python_base_tree,
    "no-glibc": rootfs.static_root,
    "no-libpthread": without_libpthread_tree,
    "old-glibc": old_glibc_tree,
    "musl": rootfs.musl_root,
}


def tree(folder: Path, name: str) -> Path:
    """The root tree `name` of TREES below `folder`, made at its first use."""
    made = folder / name
    if not made.exists():
        made.mkdir(parents=True)
        TREES[name](made)
    return made


def load(docker: Docker, tree: Path, tag: str, changes: Sequence[str] = ()) -> str:
    """Imports a root tree as image `tag`. changes: Dockerfile lines, as 'LABEL vgpu.memory=1GiB'. Returns the tag."""
    options = [part for change in changes for part in ("--change", change)]
    with subprocess.Popen(["tar", "-C", tree, "--numeric-owner", "-c", "."], stdout=subprocess.PIPE) as archive:
        subprocess.run(
            docker.command("import", *options, "-", tag),
            env=docker.environment(), stdin=archive.stdout, stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
    if archive.returncode:
        raise RuntimeError(f"tar of {tree} failed with {archive.returncode}")
    return tag
