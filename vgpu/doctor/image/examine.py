"""All that the doctor asks of an image, as checks. Each is a generator of results over the image and the driver."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from oci_hook import preflight, request
from oci_hook.errors import ImageError, RequestError, shown
from oci_hook.programs import loaded
from oci_hook.records import Request, Start
from vgpu.doctor.finding import CannotSee, Check, Result, Seen, found, refused, run
from vgpu.doctor.image import deep, program, toolkit
from vgpu.doctor.image.archive import At, Config
from vgpu.doctor.image.driver import NAMES, Driver
from vgpu.doctor.image.program import Root
from vgpu.doctor.image.source import Image
from vgpu.doctor.image.toolkit import Version

_GROUPS = ("driver in this image", "its program", "CUDA", "every file")
_MAX_TEXT = 1 << 16  # bytes of a text file of the image
_PRETTY = re.compile(r'^PRETTY_NAME="?([^"\n]{1,100})', re.MULTILINE)
_LIBC = re.compile(r"/libc-(2\.[0-9]{1,3})\.so$")
_WHEEL = re.compile(r"nvidia_cuda_runtime(?:_cu[0-9]+)?-([0-9.]+)\.dist-info")
_CUDART = re.compile(r"libcudart\.so\.([0-9]+\.[0-9]+\.[0-9]+)")


@dataclass(frozen=True, slots=True)
class Asked:
    """What one run is about. machine: os.uname()'s word. driver: or why it is not known. programs: names to look at
    instead of the image's own. at: told what is being looked at."""

    image: Image
    machine: str
    driver: Driver | CannotSee
    programs: tuple[str, ...]
    deep: bool
    at: At

    @property
    def root(self) -> Root:
        return self.image.root

    @property
    def config(self) -> Config:
        return self.image.config

    def view(self) -> preflight.Image:
        """The image as its loader sees it. Raises ImageError where it has no glibc."""
        folders = preflight.library_path(self.config.env, self.config.cwd)
        return preflight.Image(self.root, preflight.MACHINES[self.machine], folders)

    def known_driver(self) -> Driver:
        if isinstance(self.driver, CannotSee):
            raise self.driver
        return self.driver

    def _starts(self, words: Sequence[str]) -> list[Start]:
        return [Start(self.config.env, self.config.cwd, word) for word in words]

    def own_folders(self) -> tuple[str, ...]:
        """Where the program looks that a container of this image starts, as the start itself sees it."""
        starts = self._starts(self.programs or (*self.config.entrypoint, *self.config.cmd)[:1])
        return tuple(folder for start in starts for folder in preflight.own_folders(self.root, start))

    def own_files(self) -> set[str]:
        """The ELF files that the check of the program looks at, without links."""
        words = self.programs or tuple(program.started(self.config))
        files = [loaded(self.root, start) for start in self._starts(words)]
        return {self.root.real(one[0]) for one in files if one is not None}

    def ours(self) -> set[str]:
        """Names that the mounts bring."""
        libraries = () if isinstance(self.driver, CannotSee) else self.driver.mounted(capabilities(self.config))
        return {"libcuda.so.1", "libnvidia-ml.so.1", *NAMES, *(one.soname for one in libraries)}


def examine(asked: Asked) -> tuple[Check, ...]:
    """All checks, in the order of the page."""
    driver, own, cuda, every = _GROUPS
    checks = [
        run(driver, "image", what_it_is(asked)),
        run(driver, "request", _request(asked)),
        run(driver, "libraries", driver_libraries(asked)),
        run(driver, "copies", covered_copies(asked)),
        run(own, "program", programs(asked)),
        run(cuda, "toolkit", toolkits(asked)),
        run(cuda, "requirements", requirements(asked)),
    ]
    if asked.deep:
        folders, told = asked.own_folders(), asked.own_files()
        files = deep.examine(asked.root, _view_or_none(asked), asked.ours(), folders, told, asked.at)
        checks.append(run(every, "files", files))
    return tuple(checks)


def _view_or_none(asked: Asked) -> preflight.Image | None:
    """None where there is no glibc, which `driver_libraries` tells."""
    try:
        return asked.view()
    except ImageError:
        return None


def what_it_is(asked: Asked) -> Iterator[Result]:
    """System, processor, C library."""
    config, machine = asked.config, asked.machine
    if config.machine and config.machine != machine:
        yield found(
            "VGPU-IMG-013", asked.image.name, f"it is made for {config.machine}, and this host is {machine}",
            remedy=f"pull or build it for {machine}: docker pull --platform linux/{_platform(machine)} IMAGE",
        )  # fmt: skip
    text = b""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        text = text or asked.root.read(path, _MAX_TEXT) or b""
    name = _PRETTY.search(text.decode("utf-8", "backslashreplace"))
    kinds = {"folder": "a root folder", "tree": "an archive of files", "docker": "an image that Docker has"}
    kind = kinds.get(asked.image.kind, f"an image in an {asked.image.kind}".replace("an layout", "an OCI layout"))
    yield Seen(f"{kind}, {name[1] if name else 'no os-release'}, {_libc(asked)}")


def _platform(machine: str) -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}[machine]


def _libc(asked: Asked) -> str:
    view = _view_or_none(asked)
    if view is not None:
        path = f"{view.libdir}/libc.so.6"
        facts = asked.root.elf(path)
        versions = [one[6:] for one in (facts.provides if facts else ()) if one.startswith("GLIBC_2")]
        if named := _LIBC.search(asked.root.real(path)):  # before 2.34; not each version of glibc has new symbols
            versions.append(named[1])
        newest = max(versions, key=lambda one: preflight.order(f"_{one}"), default="?")
        return f"glibc {newest} in {view.libdir}"
    if asked.root.is_file(f"/lib/ld-musl-{asked.machine}.so.1"):
        return "musl"
    return "no C library"


def capabilities(config: Config) -> tuple[str, ...]:
    """As the image's own labels and environment ask for, else the default's."""
    try:
        asked = _asks(config)
    except RequestError:
        asked = None
    return asked.capabilities if asked else ("compute", "utility")


def _asks(config: Config) -> Request | None:
    # the user gives the memory; what else the image says holds beside it
    return request.parse({"vgpu.memory": "1GiB"}, config.labels, config.env, ("annotation", "label", "env"))


def _request(asked: Asked) -> Iterator[Result]:
    """Labels and environment of the image itself: a wrong one fails every start."""
    try:
        _asks(asked.config)
    except RequestError as error:
        yield refused(error, asked.image.name)
        return
    names = sorted(name for name in asked.config.labels if name.startswith("vgpu."))
    yield Seen(
        f"its labels ask for {', '.join(names)}" if names else "no label or variable of its own that asks wrongly"
    )


def driver_libraries(asked: Asked) -> Iterator[Result]:
    """What the start asks, with the same code: would all that is mounted load here?"""
    view = asked.view()
    driver = asked.known_driver()
    libraries = driver.mounted(capabilities(asked.config))
    ours = asked.ours()
    listed = list(preflight.problems(view, map(preflight.of_driver, libraries), ours))
    for one in listed:
        yield found(one.code, one.who, f"{one.text}; looked for in {_places(view)}", remedy=one.remedy)
    if not listed:
        yield Seen(f"all {len(libraries)} of driver {driver.version}{' (simulated)' * driver.simulated} would load")


def _places(view: preflight.Image) -> str:
    folders = dict.fromkeys((*view.library_path, view.libdir, *view.folders))
    cache = f"ld.so.cache ({len(view.cache)} names), " if view.cache else ""
    return f"{cache}{', '.join(folder for folder in folders if view.root.identity(folder))}"


def covered_copies(asked: Asked) -> Iterator[Result]:
    """The driver's libraries in the image: the mounts lie over all that a loader finds by itself."""
    view = _view_or_none(asked)
    paths = [copy.path for copy in preflight.copies(view, asked.own_folders())] if view else []
    if not paths:
        yield Seen("no copy of the driver's libraries where a loader looks")
        return
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    words = ", ".join(paths[:3]) + more
    yield Seen(f"the image has {len(paths)} of the driver's libraries itself, and the slice covers them: {words}")


def programs(asked: Asked) -> Iterator[Result]:
    """What the image starts, or what was named."""
    words = asked.programs or tuple(program.started(asked.config))
    if not words:
        raise CannotSee("what it starts", "the image names none; --program PATH names one")
    view = _view_or_none(asked)
    for word in words:
        yield from program.examine(asked.root, view, asked.config, word, asked.ours())


def toolkits(asked: Asked) -> Iterator[Result]:
    """The toolkit that the image was built with, against the driver."""
    versions = toolkit_versions(asked.root, asked.config)
    if not versions:
        yield Seen("no CUDA toolkit in /usr/local/cuda or in Python's packages, and no CUDA_VERSION")
        return
    driver = asked.known_driver().number
    for version, where in sorted(versions.items()):
        fits, name = toolkit.compatible(version, driver), ".".join(map(str, version))
        has = ".".join(map(str, toolkit.cuda_of(driver))) or "an older one"
        if fits == "full":
            yield Seen(f"CUDA {name} ({where}): driver {toolkit.shown(driver)} is made for {has}")
            continue
        words = f"{where} is CUDA {name}, and driver {toolkit.shown(driver)} is made for {has}"
        if fits == "minor":
            words += "; it runs with what that has, PTX that is compiled at run time does not"
        if compat := _compat(asked.root):
            words += f"; the libcuda in {compat} that was to bridge that is covered: the host's driver answers"
        yield found(
            "VGPU-IMG-010", f"CUDA {name}", words, severity="warning" if fits == "minor" else "failure",
            remedy=f"install driver {toolkit.shown(toolkit.driver_for(version))} or newer on the host, "
            f"or use an image with CUDA {has} or older",
        )  # fmt: skip


def toolkit_versions(root: Root, config: Config) -> dict[Version, str]:
    """Version -> where it is said."""
    said: list[tuple[str, str]] = []
    said += ((one[13:], "CUDA_VERSION") for one in config.env if one.startswith("CUDA_VERSION="))
    folders = [f"/usr/local/{name}" for name in root.names("/usr/local") if name.startswith("cuda")]
    for folder in sorted(folders):
        text = (root.read(f"{folder}/version.json", _MAX_TEXT) or b"").decode("utf-8", "backslashreplace")
        said.append((_json_version(text), f"{folder}/version.json"))
        for below in ("lib64", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
            for name in root.names(f"{folder}/{below}"):
                if match := _CUDART.fullmatch(name):
                    said.append((match[1], f"{folder}/{below}/{name}"))
    for folder in _python_folders(root, config):
        for name in root.names(folder):
            if match := _WHEEL.fullmatch(name):
                said.append((match[1], f"{folder}/{name}"))
    found: dict[Version, str] = {}
    for text, where in said:
        try:
            version = toolkit.version(text)[:2]
        except ValueError:
            continue
        found.setdefault(version, where)
    return found


def _python_folders(root: Root, config: Config) -> Iterator[str]:
    """Where an image has Python's packages: NVIDIA's libraries are among them where PyTorch is."""
    own = [one[12:] for one in config.env if one.startswith("VIRTUAL_ENV=")]
    for base in ("/usr", "/usr/local", "/opt/venv", "/opt/conda", *own):
        for name in root.names(f"{base}/lib"):
            if name.startswith("python3"):
                yield f"{base}/lib/{name}/site-packages"
                yield f"{base}/lib/{name}/dist-packages"


def _json_version(text: str) -> str:
    try:
        document = json.loads(text)
        return str(document["cuda"]["version"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _compat(root: Root) -> str:
    """The folder of a forward compatibility package, "" if there is none."""
    for name in root.names("/usr/local"):
        folder = f"/usr/local/{name}/compat"
        if name.startswith("cuda") and any(one.startswith("libcuda.so") for one in root.names(folder)):
            return folder
    return ""


def requirements(asked: Asked) -> Iterator[Result]:
    """NVIDIA_REQUIRE_*: NVIDIA's own runtime refuses by it; ours says it here, and starts."""
    required = toolkit.requirements(asked.config.env)
    if not required:
        yield Seen("no NVIDIA_REQUIRE_*, or it is turned off")
        return
    driver = asked.known_driver()
    brands = {toolkit.brand(name) for name in driver.gpus}
    facts = toolkit.Facts(driver.number, toolkit.cuda_of(driver.number), brands.pop() if len(brands) == 1 else "")
    has = f"driver {driver.version}, CUDA {'.'.join(map(str, facts.cuda)) or 'unknown'}"
    for name, text in sorted(required.items()):
        try:
            held = toolkit.holds(text, facts)
        except toolkit.RequireError as error:
            yield found("VGPU-IMG-012", name, f"{shown(str(error), 100)} is no constraint, in {shown(text, 200)}")
            continue
        if held is None:
            raise CannotSee(name, f"{shown(text, 200)} depends on the GPU's brand or architecture; this host: {has}")
        if held:
            yield Seen(f"{name} is met by {has}")
        else:
            yield found("VGPU-IMG-011", name, f"{shown(text, 300)} is not met: this host has {has}")
