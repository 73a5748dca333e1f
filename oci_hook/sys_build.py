"""Builds `oci_hook/_vgsys`: the system calls that Python 3.11 lacks, as a cffi extension in API mode.

At run time only `_cffi_backend` is needed beside it, never `cffi` itself. The numbers and structs are the kernel's own,
written out, so that it builds with any C library's headers.

    python -m oci_hook.sys_build [--out build/python]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from cffi import FFI

MODULE = "oci_hook._vgsys"

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


def build(out: Path) -> list[Path]:
    """Builds for the running interpreter. Returns what must lie beside the package: the extension, to go into the
    package's folder, and `_cffi_backend`, to go where the package's folder is.
    """
    import _cffi_backend  # type: ignore[import-untyped,unused-ignore]

    package = out / "oci_hook"
    package.mkdir(parents=True, exist_ok=True)
    ffi = FFI()
    ffi.cdef(DECLARATIONS)
    ffi.set_source(MODULE, SOURCE)
    source = package / "_vgsys.c"
    ffi.emit_c_code(str(source))  # type: ignore[no-untyped-call,unused-ignore]
    extension = package / f"_vgsys{sysconfig.get_config_var('EXT_SUFFIX')}"
    compiler = str(sysconfig.get_config_var("CC")).split()[0]
    include = f"-I{sysconfig.get_path('include')}"
    subprocess.run(
        [compiler, "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror", include]
        + ["-Wl,--build-id=sha1", "-s", "-o", extension.name, source.name],
        cwd=package,  # no path of the build machine in the result
        check=True,
    )
    backend = out / Path(_cffi_backend.__file__).name
    shutil.copyfile(_cffi_backend.__file__, backend)
    return [extension, backend]


def main() -> int:
    parser = argparse.ArgumentParser(description="build the system-call module of the hook")
    parser.add_argument("--out", type=Path, default=Path("build/python"))
    parser.add_argument("--in-place", action="store_true", help="also beside the sources, for tests from the checkout")
    options = parser.parse_args()
    built = build(options.out)
    if options.in_place:
        shutil.copyfile(built[0], Path(__file__).parent / built[0].name)
    print(*built, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
