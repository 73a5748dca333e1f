"""The driver whose libraries an image would get: this host's, as its inventory has it, or one in a folder."""

from __future__ import annotations

from dataclasses import dataclass

from oci_hook import inventory, inventory_scan
from oci_hook.errors import HostError, VgpuError
from oci_hook.plan import BOX_NAMES
from oci_hook.records import Library
from vgpu.doctor.finding import CannotSee
from vgpu.doctor.image import toolkit
from vgpu.doctor.image.toolkit import Version


@dataclass(frozen=True, slots=True)
class Driver:
    """version: as text. libraries: the driver's and our wrapper's. gpus: their names. simulated: it is no real one."""

    version: str
    libraries: tuple[Library, ...]
    gpus: tuple[str, ...] = ()
    simulated: bool = False

    def mounted(self, capabilities: tuple[str, ...]) -> tuple[Library, ...]:
        """What a container with these capabilities gets."""
        return tuple(one for one in self.libraries if one.capability in capabilities)

    @property
    def number(self) -> Version:
        try:
            return toolkit.version(self.version)
        except ValueError:
            raise CannotSee("the driver's version", f"{self.version!r} is no version") from None


NAMES = frozenset(BOX_NAMES.values())  # what else will be there when the container runs


def in_folder(root: str) -> Driver:
    """NVIDIA's libraries below `root`, "/" or an unpacked package. Raises HostError."""
    try:
        version, libraries, _ = inventory_scan.on_disk(root)
    except OSError as error:
        raise HostError(
            "VGPU-HOST-007", f"{root} cannot be read: {error.strerror}", remedy="name the folder that has usr/lib"
        ) from None
    return Driver(version, libraries)


def of_host(config: str) -> Driver:
    """As the inventory has it. Raises CannotSee where vgpu is not set up: an image can be looked at all the same."""
    from vgpu.config import load

    try:
        found = inventory.load(load(config))
    except VgpuError as error:
        raise CannotSee("the driver", f"{error}; --driver-root FOLDER names one") from None
    names = tuple(gpu.name for gpu in found.gpus)
    return Driver(found.driver_version, (*found.libraries, *found.wrapper), names, found.simulated)
