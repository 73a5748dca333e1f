"""From the command line's words to the checks."""

from __future__ import annotations

import os

from oci_hook import preflight
from oci_hook.errors import VgpuError
from vgpu.doctor.finding import CannotSee, Check, refused
from vgpu.doctor.image import driver as drivers
from vgpu.doctor.image import examine, source
from vgpu.doctor.image.archive import At
from vgpu.doctor.image.driver import Driver


def driver_of(config: str, driver_root: str | None) -> Driver | CannotSee:
    """The driver to check against, or why there is none. Raises HostError for a folder without one."""
    if driver_root is not None:
        return drivers.in_folder(driver_root)
    try:
        return drivers.of_host(config)
    except CannotSee as blind:
        return blind


def checks(
    name: str, driver: Driver | CannotSee, docker: str, programs: tuple[str, ...], *, deep: bool, at: At
) -> tuple[Check, ...]:
    """All checks of the image. One that cannot be read is one check with one finding."""
    machine = os.uname().machine
    try:
        if machine not in preflight.MACHINES:
            raise preflight.no_driver_for(machine)
        with source.opened(name, machine, docker, at) as image:
            return examine.examine(examine.Asked(image, machine, driver, programs, deep, at))
    except VgpuError as error:
        return (Check("image", "image", (refused(error, name),)),)
