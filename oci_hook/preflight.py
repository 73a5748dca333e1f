"""Would all that we are about to mount load in this image? Asked before anything is mounted; nothing of the image runs.

The loader's work is done on paper: find the image's C library, follow DT_NEEDED of every library of the plan, compare
the symbol versions that are needed with those that the image's libraries define. Source of the search order: ld.so(8).
"""

from __future__ import annotations

import os

from oci_hook import elf
from oci_hook.elf import Elf, ElfError
from oci_hook.errors import ImageError, shown
from oci_hook.records import Library
from oci_hook.rootview import RootView
from oci_hook.values import TYPE_CHECKING, dataclass

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MACHINES = {"x86_64": elf.X86_64, "aarch64": elf.AARCH64}
_NAMES = {elf.X86_64: "x86_64", elf.AARCH64: "aarch64"}
_CUDA = "libcuda.so"
_STARTS = (_CUDA, "libnvidia-ml.so")
_HWCAPS = ("tls", "haswell", "x86_64")  # glibc before 2.37 also looks here
_MAX_LIBRARIES = 512  # of the image, followed in one run
_MAX_COPIES = 64
_PACKAGES = {  # soname -> Debian's package, for what NVIDIA's libraries are known to need
    "libstdc++.so.6": "libstdc++6",
    "libgcc_s.so.1": "libgcc-s1",
    "libX11.so.6": "libx11-6",
    "libXext.so.6": "libxext6",
    "libcrypto.so.3": "libssl3",
    "libcrypto.so.1.1": "libssl1.1",
    "libexpat.so.1": "libexpat1",
    "libz.so.1": "zlib1g",
}
_LIBC6 = ("libc.so.", "libm.so.", "libdl.so.", "libpthread.so.", "librt.so.", "libutil.so.", "ld-linux-")


@dataclass(frozen=True)
class Copy:
    """A file of the image that a loader could take for the driver's. role: "cuda" or "nvml"."""

    path: str
    role: str


@dataclass(frozen=True)
class Found:
    """libdir: absolute path in the image of the folder with its libc.so.6. copies: what has to be covered."""

    libdir: str
    copies: tuple[Copy, ...]


@dataclass(frozen=True)
class Provider:
    """A library of the image."""

    path: str
    elf: Elf

    def folders(self) -> tuple[str, ...]:
        """Where it wants its own libraries to be looked for first."""
        folders = self.expanded(self.elf.runpath or self.elf.rpath).split(":")
        return tuple(folder for folder in folders if folder.startswith("/"))

    def expanded(self, text: str) -> str:
        origin = os.path.dirname(self.path)
        return text.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)


@dataclass(frozen=True)
class Problem:
    code: str
    text: str
    remedy: str


def default_folders(machine: int) -> tuple[str, ...]:
    """Where a loader looks without being told: Debian's multiarch folders first, then Fedora's, then everybody's."""
    triplet = f"{_NAMES[machine]}-linux-gnu"
    return (f"/lib/{triplet}", f"/usr/lib/{triplet}", "/lib64", "/usr/lib64", "/lib", "/usr/lib")


class Image:
    """The image as its own loader sees it."""

    def __init__(self, root: RootView, machine: int) -> None:
        self.root = root
        self.machine = machine
        self.cache = root.loader_cache(machine)
        self.folders = default_folders(machine)
        self.libdir = self._find_libdir()
        self.known: dict[str, Provider | None] = {}

    def _find_libdir(self) -> str:
        wrong = ""
        for path in (*self.cache.get("libc.so.6", ()), *(f"{folder}/libc.so.6" for folder in self.folders)):
            try:
                found = self.root.elf(path)
            except ElfError as error:
                wrong = wrong or f"{shown(path)} is {error}"
                continue
            if found and found.machine == self.machine:
                return os.path.dirname(path)
            if found:
                wrong = wrong or f"{shown(path)} is for machine {_NAMES.get(found.machine, str(found.machine))}"
        raise self._without_glibc(wrong)

    def _without_glibc(self, wrong: str) -> ImageError:
        name = _NAMES[self.machine]
        if not wrong and self.root.is_file(f"/lib/ld-musl-{name}.so.1"):
            return ImageError(
                "VGPU-DEP-003",
                "the image has musl (Alpine), and NVIDIA's driver libraries need glibc",
                remedy="use an image with glibc, such as debian:stable-slim",
            )
        return ImageError(
            "VGPU-DEP-004",
            f"the image has no C library (libc.so.6) for {name}" + (f": {wrong}" if wrong else ""),
            remedy=f"use an image with glibc for {name}, such as debian:stable-slim",
        )

    def provider(self, soname: str, first: Sequence[str]) -> Provider | None:
        """The library that the loader would take, None if there is none. A file that it would refuse is none.

        first: the folders that whoever needs it names; as in the loader, the first who asks decides for all.
        """
        if soname not in self.known:
            self.known[soname] = self._search(soname, first)
        return self.known[soname]

    def _search(self, soname: str, first: Sequence[str]) -> Provider | None:
        if "/" in soname:
            paths = [soname]
        else:
            named = (f"{folder}/{soname}" for folder in first)
            usual = (f"{folder}/{soname}" for folder in (self.libdir, *self.folders))
            paths = [*named, *self.cache.get(soname, ()), *usual]
        for path in paths:
            try:
                found = self.root.elf(path)
            except ElfError:
                continue
            if found and found.machine == self.machine:
                return Provider(path, found)
        return None


def check(
    root: RootView, libraries: Sequence[Library], mounted: Sequence[str], env: Sequence[str], cwd: str, machine: str
) -> Found:
    """Raises ImageError for the first problem, and says how many more there are.

    libraries: what must be loadable. mounted: further names that will be there (our box). env, cwd: of the container's
    process, for LD_LIBRARY_PATH. machine: of the host, as os.uname() says it.
    """
    if machine not in _MACHINES:
        raise ImageError("VGPU-DEP-004", f"no driver for machine {machine}", remedy="use x86_64 or aarch64")
    image = Image(root, _MACHINES[machine])
    ours = {library.soname for library in libraries} | set(mounted)
    found = list(problems(image, libraries, ours))
    if found:
        first, more = found[0], len(found) - 1
        text = first.text + (f" (and {more} more)" if more else "")
        raise ImageError(first.code, text, remedy=first.remedy)
    return Found(image.libdir, _copies(image, env, cwd))


def problems(image: Image, libraries: Sequence[Library], ours: set[str]) -> Iterator[Problem]:
    """What would not load. ours: names that will be there without the image."""
    seen: set[str] = set()
    nowhere: tuple[str, ...] = ()
    # who needs it, what it needs, with which versions, and where it looks first; grows by the image's own libraries
    queue = [(library.soname, library.needed, library.versions, nowhere) for library in libraries]
    for who, needed, versions, first in queue:
        for soname in needed:
            if soname in ours:
                continue
            provider = image.provider(soname, first)
            if provider is None:
                if soname not in seen:
                    seen.add(soname)
                    yield _missing(soname, who)
                continue
            yield from _too_old(soname, who, provider.elf, versions.get(soname, ()))
            if soname not in seen and len(queue) < _MAX_LIBRARIES:
                seen.add(soname)
                needs = tuple(map(provider.expanded, provider.elf.needed))
                queue.append((soname, needs, provider.elf.requires, provider.folders()))


def _missing(soname: str, who: str) -> Problem:
    package = _PACKAGES.get(soname, "libc6" if soname.startswith(_LIBC6) else "")
    remedy = f"install it in the image (Debian's package {package})" if package else "add it to the image"
    return Problem("VGPU-DEP-001", f"{shown(soname)} is not in the image, and {shown(who)} needs it", remedy)


def _too_old(soname: str, who: str, provider: Elf, versions: Sequence[str]) -> Iterator[Problem]:
    # a library without any version is taken as it is: the loader does so too
    lacking = [version for version in versions if version not in provider.provides] if provider.provides else []
    if not lacking:
        return
    wanted = max(lacking, key=_order)
    family = wanted.partition("_")[0] + "_"
    have = max((version for version in provider.provides if version.startswith(family)), key=_order, default="none")
    if family == "GLIBC_":
        remedy = f"use an image with glibc {wanted.removeprefix(family)} or newer"
    else:
        remedy = f"use an image whose {soname} has {wanted}"
    text = f"the image's {shown(soname)} is too old: {shown(who)} needs {shown(wanted)}, it has up to {shown(have)}"
    yield Problem("VGPU-DEP-002", text, remedy)


def _order(version: str) -> tuple[int, ...]:
    """GLIBC_2.17 -> (2, 17); a part that is no number (GLIBC_PRIVATE) comes first."""
    parts = version.partition("_")[2].split(".")
    return tuple(int(part) if part.isascii() and part.isdigit() and len(part) < 10 else -1 for part in parts)


def _folders_searched(image: Image, env: Sequence[str], cwd: str) -> Iterator[str]:
    for entry in env:
        name, _, value = entry.partition("=")
        if name == "LD_LIBRARY_PATH":
            for folder in value.replace(";", ":").split(":"):
                yield os.path.join(cwd, folder)
    yield from (image.libdir, *image.folders, "/usr/lib/wsl/lib")
    for name in image.root.names("/usr/local"):
        if name.startswith("cuda"):
            yield f"/usr/local/{name}/compat"


def _copies(image: Image, env: Sequence[str], cwd: str) -> tuple[Copy, ...]:
    """Every path at which a loader could find the driver's libraries: a mount covers one name of a file, not all."""
    found: dict[str, str] = {}  # path -> name that a program asks for
    for folder in _with_hwcaps(image.root, _folders_searched(image, env, cwd)):
        found.update((f"{folder}/{name}", name) for name in image.root.names(folder) if name.startswith(_STARTS))
    for soname, paths in image.cache.items():
        if soname.startswith(_STARTS):
            found.update((path, soname) for path in paths)
    if len(found) > _MAX_COPIES:
        raise ImageError(
            "VGPU-IMG-001",
            f"the image has {len(found)} copies of the driver's libraries",
            remedy="remove libcuda.so* and libnvidia-ml.so* from the image: they come from the host",
        )
    return tuple(
        Copy(path, "cuda" if name.startswith(_CUDA) else "nvml")
        for path, name in found.items()
        if image.root.is_file(path)
    )


def _with_hwcaps(root: RootView, folders: Iterator[str]) -> Iterator[str]:
    """Each folder once, and its subfolders for some processors, which the loader prefers."""
    seen: set[tuple[int, int]] = set()
    for folder in folders:
        identity = root.identity(folder)
        if identity is None or identity in seen:
            continue
        seen.add(identity)
        yield folder
        yield from (f"{folder}/glibc-hwcaps/{name}" for name in root.names(f"{folder}/glibc-hwcaps"))
        yield from (f"{folder}/{name}" for name in _HWCAPS)
