"""The files that are mounted into containers: there, unchanged, loadable, and ours of one build."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from oci_hook import elf, inventory, preflight, quota_file
from oci_hook.errors import ImageError, VgpuError
from oci_hook.mounts import identity
from oci_hook.records import Inventory
from oci_hook.rootview import RootView
from vgpu.doctor.finding import CannotSee, Result, Seen, found, refused
from vgpu.doctor.host.machine import Host, Run, why
from vgpu.installer import layout

_NOTE = struct.pack("<3I8s", 5, 8, 1, b"vgpu")  # libcuda_wrap/src/layout.c


def _inventory(host: Host) -> Inventory:
    """The inventory, whose own troubles `inventory_is_good` tells. Raises CannotSee."""
    try:
        return inventory.load(host.policy)
    except VgpuError as error:
        raise CannotSee("the driver's libraries", f"no inventory that can be used: {error.code}") from None


def inventory_is_good(host: Host) -> Iterator[Result]:
    try:
        have = inventory.load(host.policy)
    except VgpuError as error:
        yield refused(error, inventory.path(host.policy))
        return
    kind = "simulated driver" if have.simulated else "driver"
    yield Seen(f"{kind} {have.driver_version}, {len(have.gpus)} GPUs, {len(have.libraries)} libraries")
    for gpu in have.gpus:
        if gpu.health != "ok":
            remedy = f"vgpu cordon {gpu.index} --sick --why 'fell off the bus'; then reset it or reboot"
            yield found("VGPU-DRV-008", f"GPU {gpu.index}", f"{gpu.uuid}: {gpu.health}", remedy=remedy)


def unchanged(host: Host) -> Iterator[Result]:
    """Is each file still the one that the inventory describes?"""
    have, good = _inventory(host), 0
    for one in (*have.libraries, *have.wrapper):
        try:
            status = os.stat(one.path)
        except OSError as error:
            yield found("VGPU-DEP-005", one.path, f"cannot be found ({why(error)})")
            continue
        if one.identity and tuple(one.identity) != identity(status):
            yield found("VGPU-DEP-005", one.path, "it is another file than when the inventory was made")
        elif status.st_uid or status.st_mode & 0o022:
            evidence = f"owner {status.st_uid}, mode {status.st_mode & 0o7777:04o}"
            remedy = f"chown root {one.path} && chmod go-w {one.path}"
            yield found("VGPU-HOST-006", one.path, evidence, remedy=remedy)
        else:
            good += 1
    yield Seen(f"{good} files as they were")


def closure(host: Host) -> Iterator[Result]:
    """Does all of the set find what it needs? Asked of the host's own root, by the code that asks at each start."""
    have = _inventory(host)
    machine = elf.AARCH64 if os.uname().machine == "aarch64" else elf.X86_64
    fd = os.open(host.path("/"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        image = preflight.Image(RootView(fd), machine)
        ours = {one.soname for one in have.libraries} | {"libvgpu-driver.so", "libvgpu-nvml.so"}
        needs = map(preflight.of_driver, (*have.libraries, *have.wrapper))
        troubles = list(preflight.problems(image, needs, ours))
    except ImageError as error:
        raise CannotSee("the host's own C library", str(error)) from None
    finally:
        os.close(fd)
    for trouble in troubles:
        yield found("VGPU-DRV-007", "driver's libraries", _of_host(trouble.text), remedy=_of_host(trouble.remedy))
    yield Seen(f"{len(have.libraries) + len(have.wrapper)} libraries find what they need")


def _of_host(text: str) -> str:
    """What is said of an image, said of this host."""
    for image, host in (
        ("in the image", "on the host"),
        ("the image's", "the host's"),
        ("to the image", "to the host"),
    ):
        text = text.replace(image, host)
    return text


def layouts(host: Host) -> Iterator[Result]:
    """Was the wrapper built for the layout of the quota files that this vgpu writes?"""
    path = f"{inventory.wrapper_folder(host.policy)}/libcuda.so.1"
    try:
        with open(path, "rb") as file:
            _, note, rest = file.read().partition(_NOTE)
    except OSError as error:
        raise CannotSee(path, why(error)) from None
    ours = (quota_file.QUOTA_VERSION, quota_file.USAGE_VERSION)
    built = struct.unpack("<2I", rest[:8]) if note and len(rest) >= 8 else None
    if built != ours:
        said = f"quota {built[0]}, usage {built[1]}" if built else "not named in it"
        evidence = f"built for the layouts: {said}; this vgpu writes quota {ours[0]}, usage {ours[1]}"
        yield found("VGPU-STA-006", path, evidence)
    else:
        yield Seen(f"wrapper and vgpu agree: quota {ours[0]}, usage {ours[1]}")


def installed(host: Host) -> Iterator[Result]:
    """Are the version's programs and libraries as they were installed? Raises HostError VGPU-INST-001."""
    version = layout.read(Path(host.policy.prefix))
    count = 0
    for target, digest in version.files.items():
        if not target.startswith(("bin/", "lib/vgpu/wrapper/", "lib/vgpu/sim/")):
            continue  # the modules are many, and a start that cannot load one says so
        count += 1
        path = version.home / target
        try:
            same = hashlib.sha256(path.read_bytes()).hexdigest() == digest
        except OSError as error:
            yield found("VGPU-STA-007", str(path), f"it was installed and cannot be read ({why(error)})")
            continue
        if not same:
            yield found("VGPU-STA-007", str(path), "it is not the file that was installed")
    yield Seen(f"{count} programs and libraries of {version.name}")


CHECKS: tuple[tuple[str, str, Run], ...] = (
    ("driver", "inventory", inventory_is_good),
    ("driver", "files", unchanged),
    ("driver", "closure", closure),
    ("vgpu", "wrapper", layouts),
    ("vgpu", "installed", installed),
)
