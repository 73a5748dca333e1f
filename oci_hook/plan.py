"""What the hook will mount for one container: inventory + placement + request -> Plan. Pure."""

from __future__ import annotations

import os

from oci_hook import neighbours
from oci_hook.records import DeviceFile, Inventory, Library, Mount, Placement, Plan, Request
from oci_hook.values import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BOX = "/usr/lib/vgpu"  # VGW_BOX in libcuda_wrap/include/vgw_quota.h
BOX_NAMES = {"cuda": "libvgpu-driver.so", "nvml": "libvgpu-nvml.so"}


def make(
    inventory: Inventory, placement: Placement, request: Request, folder: str, present: Sequence[DeviceFile] = ()
) -> Plan:
    """The mounts, in the order in which they are to be made. folder: the container's, with `box/` in it.

    present: device files that the engine has put into the container; those of other GPUs are hidden.

    The box comes first and its contents after it; then the libraries, the programs and the files that stand for
    devices. Only what the request's capabilities name is there.
    """
    state_dir = folder.rpartition("/containers/")[0]
    wanted = [library for library in inventory.libraries if library.capability in request.capabilities]
    roles = {library.role for library in wanted}
    wrappers = [wrapper for wrapper in inventory.wrapper if wrapper.role in roles]
    mounts = [
        Mount(source=f"{folder}/box", where="path", target=BOX),
        Mount(source=f"{folder}/box/usage", where="box", target="usage", writable=True),
        Mount(source=f"{folder}/box/share", where="box", target="share", writable=True),
        *(
            Mount(neighbours.gpu_folder(state_dir, part.uuid), "box", f"gpu{number}")
            for number, part in enumerate(placement.slices)
        ),
    ]
    for library in wanted:
        if library.role in BOX_NAMES:
            mounts.append(Mount(library.path, "box", BOX_NAMES[library.role], library.identity))
        else:
            mounts.append(Mount(library.path, "library", library.soname, library.identity))
    for wrapper in wrappers:
        for name in _names(wrapper, inventory.driver_version):
            mounts.append(Mount(wrapper.path, "library", name, wrapper.identity))
    if "utility" in request.capabilities:
        mounts.extend(Mount(program, "path", f"/usr/bin/{os.path.basename(program)}") for program in inventory.programs)
    mounts.extend(
        Mount(device.source, "path", device.target, writable=True)
        for device in devices(inventory, placement)
        if device.kind == "bind"
    )
    given = {None, *(part.index for part in placement.slices)}
    hidden = tuple(device.target for device in present if device.gpu not in given)
    return Plan(mounts=tuple(mounts), libraries=(*wanted, *wrappers), hidden=hidden)


def devices(inventory: Inventory, placement: Placement) -> Iterator[DeviceFile]:
    """The device files that the container gets: those of its GPUs, and those of no GPU in particular."""
    given = {part.index for part in placement.slices}
    return (device for device in inventory.devices if device.gpu is None or device.gpu in given)


def others(inventory: Inventory, placement: Placement) -> Iterator[DeviceFile]:
    """The device files of the GPUs that it does not get."""
    given = {part.index for part in placement.slices}
    return (device for device in inventory.devices if device.gpu is not None and device.gpu not in given)


def _names(wrapper: Library, driver_version: str) -> tuple[str, ...]:
    """All names under which a program may ask for the driver's library: SONAME, bare, and with the full version."""
    bare = wrapper.soname[: wrapper.soname.index(".so") + 3]
    return (wrapper.soname, bare, f"{bare}.{driver_version}")
