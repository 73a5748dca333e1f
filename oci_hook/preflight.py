"""Would all that we are about to mount load in this image? Asked before anything is mounted; nothing of the image runs.

The loader's work is done on paper: find the image's C library, follow DT_NEEDED of every library of the plan, compare
the symbol versions that are needed with those that the image's libraries define. Source of the search order: ld.so(8).
"""

from __future__ import annotations

import os

from oci_hook import elf, programs
from oci_hook.elf import Elf, ElfError
from oci_hook.errors import ImageError, shown
from oci_hook.records import Library, Start
from oci_hook.values import TYPE_CHECKING, dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Protocol

    class Root(Protocol):
        """What is asked of the image's files: rootview.RootView, or the doctor's layers that nobody has unpacked."""

        def elf(self, path: str) -> Elf | None: ...
        def is_file(self, path: str) -> bool: ...
        def names(self, folder: str, seen: set[tuple[int, int]] | None = None) -> Sequence[str]: ...
        def identity(self, path: str) -> tuple[int, int] | None: ...
        def loader_cache(self, machine: int) -> dict[str, tuple[str, ...]]: ...
        def head(self, path: str, size: int) -> bytes | None: ...
        def is_program(self, path: str) -> bool: ...
        def real(self, path: str) -> str: ...


MACHINES = {"x86_64": elf.X86_64, "aarch64": elf.AARCH64}
_NAMES = {elf.X86_64: "x86_64", elf.AARCH64: "aarch64"}
_CUDA = "libcuda.so"
_STARTS = (_CUDA, "libnvidia-ml.so")
_HWCAPS = ("tls", "haswell", "x86_64")  # glibc before 2.37 also looks here
_MAX_LIBRARIES = 512  # of the image, followed in one run
_MAX_COPIES = 64
DRIVER = ("VGPU-DEP-001", "VGPU-DEP-002")  # codes for what the driver lacks: a library, a version
_MAX_LOOKUPS = 20_000  # of a library in a folder, in one run: 0.3 s


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

    def rpath(self) -> tuple[str, ...]:
        """Folders that hold for what it loads, and for what that loads; none if it has a RUNPATH."""
        return () if self.elf.runpath else self._folders(self.elf.rpath)

    def runpath(self) -> tuple[str, ...]:
        """Folders that hold for what it loads itself."""
        return self._folders(self.elf.runpath)

    def _folders(self, text: str) -> tuple[str, ...]:
        return tuple(folder for folder in self.expanded(text).split(":") if folder.startswith("/")) if text else ()

    def expanded(self, text: str) -> str:
        if "$" not in text:
            return text
        origin = os.path.dirname(self.path)
        return text.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)


@dataclass(frozen=True)
class Needs:
    """Who asks the loader for libraries. versions: as Elf.requires. rpath: its own, then that of whoever loads it."""

    who: str
    needed: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()

    @property
    def first(self) -> tuple[str, ...]:
        """Where the loader looks before LD_LIBRARY_PATH."""
        return () if self.runpath else self.rpath


def needs_of(who: str, provider: Provider, loader: tuple[str, ...] = ()) -> Needs:
    """What a file of the image needs. loader: the RPATH of whoever loads it."""
    needed = tuple(map(provider.expanded, provider.elf.needed))
    return Needs(who, needed, provider.elf.requires, provider.rpath() + loader, provider.runpath())


@dataclass(frozen=True)
class Problem:
    """who needs `soname`; wanted, have: symbol versions, where it is one that is missing."""

    code: str
    text: str
    remedy: str
    who: str
    soname: str
    wanted: str = ""
    have: str = ""


def default_folders(machine: int) -> tuple[str, ...]:
    """Where a loader looks without being told: Debian's multiarch folders first, then Fedora's, then everybody's."""
    triplet = f"{_NAMES[machine]}-linux-gnu"
    return (f"/lib/{triplet}", f"/usr/lib/{triplet}", "/lib64", "/usr/lib64", "/lib", "/usr/lib")


def _for_other(path: str, found: Elf) -> str:
    return f"{shown(path, 256)} is for machine {_NAMES.get(found.machine, str(found.machine))}"


class Image:
    """The image as its own loader sees it. library_path: folders of LD_LIBRARY_PATH."""

    def __init__(self, root: Root, machine: int, library_path: Sequence[str] = ()) -> None:
        self.root = root
        self.machine = machine
        self.cache = root.loader_cache(machine)
        self.folders = default_folders(machine)
        self.libdir = self._find_libdir()
        self.library_path = [folder for folder in library_path if root.identity(folder)]
        self.lookups = 0
        self.refused: dict[str, str] = {}  # library -> why the file of that name is none
        self.known: dict[str, Provider | None] = {}

    def another(self) -> Image:
        """For another process: nothing is loaded yet."""
        other: Image = object.__new__(type(self))
        other.__dict__.update(vars(self), known={}, refused={}, lookups=0)
        return other

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
                wrong = wrong or _for_other(path, found)
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

    def provider(self, soname: str, needs: Needs) -> Provider | None:
        """The library that the loader would take, None if there is none. A file that it would refuse is none.

        As in the loader, the first who asks decides for all.
        """
        if soname not in self.known:
            self.known[soname] = self._search(soname, needs)
        return self.known[soname]

    def _search(self, soname: str, needs: Needs) -> Provider | None:
        for path in self._paths(soname, needs):
            self.lookups += 1
            if self.lookups > _MAX_LOOKUPS:
                raise ImageError(
                    "VGPU-IMG-005",
                    f"the image's libraries name so many folders that a search takes more than {_MAX_LOOKUPS} steps",
                    remedy=f"shorten the RUNPATH of {shown(needs.who, 256)}, or LD_LIBRARY_PATH",
                )
            try:
                found = self.root.elf(path)
            except ElfError as error:
                self.refused.setdefault(soname, f"{shown(path, 256)} is {error}")
                continue
            if found and found.machine == self.machine:
                return Provider(path, found)
            if found:
                self.refused.setdefault(soname, _for_other(path, found))
        return None

    def _paths(self, soname: str, needs: Needs) -> Iterator[str]:
        """Where the loader looks for it, in its order. Mostly it ends after one or two."""
        if "/" in soname:
            yield soname
            return
        for folders in (needs.first, self.library_path, needs.runpath):
            for folder in folders:
                yield f"{folder}/{soname}"
        yield from self.cache.get(soname, ())
        for folder in (self.libdir, *self.folders):
            yield f"{folder}/{soname}"


def check(root: Root, libraries: Sequence[Library], mounted: Sequence[str], start: Start, machine: str) -> Found:
    """Raises ImageError for the first problem, and says how many more there are.

    libraries: what must be loadable. mounted: further names that will be there (our box). start: for LD_LIBRARY_PATH
    and the program's own RUNPATH. machine: of the host, as os.uname() says it.
    """
    if machine not in MACHINES:
        raise no_driver_for(machine)
    image = Image(root, MACHINES[machine], library_path(start.env, start.cwd))
    ours = {library.soname for library in libraries} | set(mounted)
    found = list(problems(image, map(of_driver, libraries), ours))
    if found:
        first, more = found[0], len(found) - 1
        text = first.text + (f" (and {more} more)" if more else "")
        raise ImageError(first.code, text, remedy=first.remedy)
    return Found(image.libdir, copies(image, own_folders(root, start)))


def no_driver_for(machine: str) -> ImageError:
    return ImageError("VGPU-DEP-004", f"no driver for machine {machine}", remedy="use x86_64 or aarch64")


def of_driver(library: Library) -> Needs:
    return Needs(library.soname, library.needed, library.versions)


def problems(
    image: Image, needs: Iterable[Needs], ours: set[str], codes: tuple[str, str] = DRIVER
) -> Iterator[Problem]:
    """What would not load. ours: names that will be there without the image. codes: for a library, for a version."""
    seen: set[str] = set()
    queue = list(needs)  # grows by the image's own libraries
    for one in queue:
        for soname in one.needed:
            if soname in ours:
                continue
            provider = image.provider(soname, one)
            if provider is None:
                if soname not in seen:
                    seen.add(soname)
                    yield _missing(codes[0], soname, one.who, image.refused.get(soname, ""))
                continue
            yield from _too_old(codes[1], soname, one, provider.elf)
            if soname not in seen and len(queue) < _MAX_LIBRARIES:
                seen.add(soname)
                queue.append(needs_of(soname, provider, one.rpath))


def _missing(code: str, soname: str, who: str, refused: str) -> Problem:
    from oci_hook import sonames  # not needed by a start that works

    text = f"{shown(soname)} is not in the image, and {shown(who, 256)} needs it"
    if refused:
        text += f" ({refused})"
    return Problem(code, text, sonames.remedy(soname), who, soname)


def _too_old(code: str, soname: str, needs: Needs, provider: Elf) -> Iterator[Problem]:
    # a library without any version is taken as it is: the loader does so too
    versions = needs.versions.get(soname, ()) if provider.provides else ()
    lacking = [version for version in versions if version not in provider.provides]
    if not lacking:
        return
    wanted = max(lacking, key=order)
    family = wanted.partition("_")[0] + "_"
    have = max((version for version in provider.provides if version.startswith(family)), key=order, default="none")
    if wanted == "GLIBC_PRIVATE":
        remedy = f"take {needs.who} and {soname} from one and the same glibc"
    elif family == "GLIBC_":
        remedy = f"use an image with glibc {wanted.removeprefix(family)} or newer"
    else:
        remedy = f"use an image whose {soname} has {wanted}"
    text = f"the image's {shown(soname)} is too old: {shown(needs.who, 256)} needs {shown(wanted)}"
    text += f", it has up to {shown(have)}"
    yield Problem(code, text, remedy, needs.who, soname, wanted, have)


def order(version: str) -> tuple[int, ...]:
    """GLIBC_2.17 -> (2, 17); a part that is no number (GLIBC_PRIVATE) comes first."""
    parts = version.partition("_")[2].split(".")
    return tuple(int(part) if part.isascii() and part.isdigit() and len(part) < 10 else -1 for part in parts)


def library_path(env: Sequence[str], cwd: str) -> list[str]:
    """The folders of LD_LIBRARY_PATH. cwd: of the process, which is what an empty entry means."""
    found: list[str] = []
    for entry in env:
        name, _, value = entry.partition("=")
        if name == "LD_LIBRARY_PATH":
            found += (os.path.join(cwd, folder) for folder in value.replace(";", ":").split(":"))
    return found


def own_folders(root: Root, start: Start) -> tuple[str, ...]:
    """Where the container's own program looks, by its RPATH or RUNPATH, for what it loads itself."""
    found = programs.loaded(root, start)
    if found is None or not (found[1].rpath or found[1].runpath):
        return ()
    provider = Provider(root.real(found[0]), found[1])
    return provider.runpath() or provider.rpath()


def _folders_searched(image: Image, own: Sequence[str]) -> Iterator[str]:
    yield from own
    yield from image.library_path
    yield from (image.libdir, *image.folders, "/usr/lib/wsl/lib")
    for name in image.root.names("/usr/local"):
        if name.startswith("cuda"):
            yield f"/usr/local/{name}/compat"


def copies(image: Image, own: Sequence[str] = ()) -> tuple[Copy, ...]:
    """Every path at which a loader could find the driver's libraries: a mount covers one name of a file, not all.

    own: further folders, in which the container's own program looks.
    """
    found: dict[str, str] = {}  # path -> name that a program asks for
    for folder, names in _with_hwcaps(image.root, _folders_searched(image, own)):
        found.update((f"{folder}/{name}", name) for name in names if name.startswith(_STARTS))
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


def _with_hwcaps(root: Root, folders: Iterator[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Each folder once, with the names in it, and its subfolders for some processors, which the loader prefers."""
    seen: set[tuple[int, int]] = set()
    for folder in dict.fromkeys(folders):
        names = root.names(folder, seen)
        yield folder, names
        below = [f"{folder}/{name}" for name in _HWCAPS if name in names]
        if "glibc-hwcaps" in names:
            below += (f"{folder}/glibc-hwcaps/{name}" for name in root.names(f"{folder}/glibc-hwcaps"))
        yield from ((path, root.names(path)) for path in below)
