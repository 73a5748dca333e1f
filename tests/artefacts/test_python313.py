"""One wheel for Debian 12 and 13: its modules load in Python 3.13 too, with the cffi backend of that Debian."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from artefacts import archive

from tests.harness import debian, wheels

pytestmark = pytest.mark.timeout(300)  # the first run downloads a Python
PACKAGES = (
    "python3.13-minimal", "libpython3.13-minimal", "libpython3.13-stdlib", "python3-cffi-backend", "libc6", "libffi8",
    "libexpat1", "zlib1g",
)  # fmt: skip
CODE = (
    "import sys; sys.path[:0] = ['/wheel', '/usr/lib/python3/dist-packages'];"
    "from oci_hook import syscalls, _vgsys; import os;"
    "fd = syscalls.openat2(os.open('/', os.O_PATH), 'wheel', os.O_PATH, syscalls.BENEATH);"
    "print(sys.version_info[:2], os.path.basename(_vgsys.__file__), os.fstat(fd).st_ino == os.stat('/wheel').st_ino)"
)


@pytest.fixture(scope="module")
def trixie(needs_root: None) -> Path:
    """The root of a Debian 13 that has Python and not much more, unpacked below build/."""
    folder = debian.DEBIAN / "python-trixie"
    if not folder.exists():
        try:
            debian.unpack("trixie", "main", PACKAGES, folder)
        except debian.NotOffered as missing:
            pytest.skip(str(missing))
        for name in ("lib", "lib64"):  # of the package base-files
            (folder / name).symlink_to(f"usr/{name}")
    return folder


def test_the_system_call_module_loads_in_debian_13(made: wheels.Made, trixie: Path) -> None:
    for path, data in archive.read(made.wheel).files.items():
        if path.startswith("oci_hook/"):
            target = trixie / "wheel" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)

    def enter() -> None:
        os.chroot(trixie)
        os.chdir("/")

    done = subprocess.run(
        ["/usr/bin/python3.13", "-I", "-S", "-E", "-B", "-c", CODE],
        preexec_fn=enter, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "(3, 13) _vgsys.abi3.so True\n", done
