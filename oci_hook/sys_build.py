"""Builds `oci_hook/_vgsys`: the system calls that Python 3.11 lacks, as a cffi extension in API mode.

At run time only `_cffi_backend` is needed beside it, never `cffi` itself. The numbers and structs are the kernel's own,
written out, so that it builds with any C library's headers.

    python -m oci_hook.sys_build [--out build/python]
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from cffi import FFI

MODULE = "oci_hook._vgsys"
GLIBC = "2.17"  # as the wrapper
_FLAGS = (
    "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-sanitize=undefined", "-g0", "-s", "-Wall", "-Wextra",
    "-Wno-unused-parameter", "-Werror", "-Wl,--build-id=sha1", "-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack",
)  # fmt: skip

DECLARATIONS = """
int vgs_openat2(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
int vgs_open_tree(int dir, const char *path, unsigned int flags);
int vgs_mount_setattr(int mount, uint64_t set, uint64_t propagation);
int vgs_move_mount(int mount, int target);
int vgs_setns(int fd, int kind);
int vgs_unmount(int fd);
int vgs_ended(int pidfd);
int64_t vgs_mount_id(int fd);
"""

SOURCE = r"""
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Since Linux 5.0 new system calls have one number on all architectures that we build for (x86-64, arm64). */
enum { NR_OPEN_TREE = 428, NR_MOVE_MOUNT = 429, NR_OPENAT2 = 437, NR_MOUNT_SETATTR = 442 };
enum { EMPTY_PATH = 0x1000, MOVE_FROM_EMPTY_PATH = 0x04, MOVE_TO_EMPTY_PATH = 0x40, STATX_WANT_MOUNT_ID = 0x1000 };
enum { DETACH = 2 };

static int vgs_openat2(int dir, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve)
{
    const uint64_t how[3] = {flags, mode, resolve};
    return (int)syscall(NR_OPENAT2, dir, path, how, sizeof how);
}

static int vgs_open_tree(int dir, const char *path, unsigned int flags)
{
    return (int)syscall(NR_OPEN_TREE, dir, path, flags);
}

static int vgs_mount_setattr(int mount, uint64_t set, uint64_t propagation)
{
    const uint64_t attr[4] = {set, 0, propagation, 0};
    return (int)syscall(NR_MOUNT_SETATTR, mount, "", EMPTY_PATH, attr, sizeof attr);
}

static int vgs_move_mount(int mount, int target)
{
    return (int)syscall(NR_MOVE_MOUNT, mount, "", target, "", MOVE_FROM_EMPTY_PATH | MOVE_TO_EMPTY_PATH);
}

static int vgs_setns(int fd, int kind)
{
    return (int)syscall(SYS_setns, fd, kind);
}

/* A mount has no call of its own that takes it away by descriptor; the link in /proc leads to just that mount. */
static int vgs_unmount(int fd)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return (int)syscall(SYS_umount2, path, DETACH);
}

/* 1 when the process has ended (a zombie too), 0 while it runs. */
static int vgs_ended(int pidfd)
{
    struct pollfd one = {.fd = pidfd, .events = POLLIN};
    return poll(&one, 1, 0);
}

/* The kernel's `struct statx` has 256 bytes; stx_mask is its first word, stx_mnt_id is at byte 144. */
static int64_t vgs_mount_id(int fd)
{
    uint64_t statx[32] = {0};
    if (syscall(SYS_statx, fd, "", EMPTY_PATH, STATX_WANT_MOUNT_ID, statx) < 0)
        return -1;
    if (!((uint32_t)statx[0] & STATX_WANT_MOUNT_ID)) {
        errno = ENOSYS;
        return -1;
    }
    return (int64_t)statx[18];
}
"""


def build(out: Path, arch: str | None = None) -> list[Path]:
    """Builds for any Python from 3.11 on, of `arch` (x86_64, aarch64; default: this machine). Returns what must lie
    beside the package: the extension, to go into the package's folder, and this machine's `_cffi_backend`, to go where
    the package's folder is.
    """
    import _cffi_backend  # type: ignore[import-untyped,unused-ignore]

    extension = extension_module(out / "oci_hook", arch or platform.machine())
    backend = out / Path(_cffi_backend.__file__).name
    shutil.copyfile(_cffi_backend.__file__, backend)
    return [extension, backend]


def extension_module(package: Path, arch: str) -> Path:
    """Builds `_vgsys` alone, into the folder `package`. The same bytes wherever it is built, by the same cffi and zig.

    Raises subprocess.CalledProcessError if the compiler does not like it, so also without Python's C headers.
    """
    _no_others(package)
    ffi = FFI()
    ffi.cdef(DECLARATIONS)
    ffi.set_source(MODULE, SOURCE)
    source = package / "_vgsys.c"
    ffi.emit_c_code(str(source))  # type: ignore[no-untyped-call,unused-ignore]
    # cffi's code asks for Python's stable interface (Py_LIMITED_API), so that one file serves 3.11 and all after it
    extension = package / "_vgsys.abi3.so"
    with tempfile.TemporaryDirectory(prefix="vgpu-build-") as headers:
        subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", "-target", f"{arch}-linux-gnu.{GLIBC}", *_FLAGS]
            + [*_python_headers(Path(headers), arch), "-o", extension.name, source.name],
            cwd=package,  # no path of the build machine in the result
            check=True,
        )
    return extension


def _no_others(package: Path) -> None:
    """A module built for one version of Python would be found first, however old."""
    package.mkdir(parents=True, exist_ok=True)
    for old in package.glob("_vgsys.*.so"):
        old.unlink()


def _python_headers(folder: Path, arch: str) -> list[str]:
    """Flags to find Python.h. Debian's leads to a pyconfig.h of each architecture, and has only this machine's: where
    sizes are the same, as on all that we build for, that one serves the others."""
    include = Path(sysconfig.get_path("include"))
    own = include.parent / str(sysconfig.get_config_var("MULTIARCH")) / include.name / "pyconfig.h"
    if own.exists():
        stand_in = folder / f"{arch}-linux-gnu" / include.name / "pyconfig.h"
        stand_in.parent.mkdir(parents=True)
        stand_in.write_text(f'#include "{own}"\n')
    return [f"-I{include}", f"-I{folder}"]


def main() -> int:
    parser = argparse.ArgumentParser(description="build the system-call module of the hook")
    parser.add_argument("--out", type=Path, default=Path("build/python"))
    parser.add_argument("--in-place", action="store_true", help="also beside the sources, for tests from the checkout")
    options = parser.parse_args()
    built = build(options.out)
    if options.in_place:
        _no_others(Path(__file__).parent)
        shutil.copyfile(built[0], Path(__file__).parent / built[0].name)
    print(*built, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
