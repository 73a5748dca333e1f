"""vgpu configure --all: every engine of this host, each for itself. One that fails leaves the others whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from oci_hook.errors import HostError, VgpuError
from runtime_config.engines import containerd, crio, docker, hooks_d, k3s, podman
from vgpu import configure, configure_containerd, configure_drop_in, configure_k3s, output
from vgpu.configure import Edit, Tell

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # sudo and cron may lack /usr/sbin


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of every engine. prefix: where vgpu is installed. host: Docker's socket, as docker -H."""

    prefix: str
    host: str = "unix:///var/run/docker.sock"
    undo: bool = False
    set_default: bool = False
    dry_run: bool = False
    force: bool = False
    reload: bool = False
    verify: bool = False

    def edit(self, path: str, editor: configure.Editor) -> Edit:
        return Edit(path, editor, undo=self.undo, set_default=self.set_default, dry_run=self.dry_run, force=self.force)


@dataclass(frozen=True, slots=True)
class Known:
    """An engine that can be configured. It is on this host if its `program` is ("": none), or its `file`."""

    program: str
    file: str
    do: Callable[[Wish, str, Tell], dict[str, Any]]  # the wish, how the program was found, lines for people

    def found(self) -> tuple[str, str]:
        """The program's path, "" if it is not there, and how the engine shows itself, "" if not at all."""
        path = f"{os.environ.get('PATH', '')}:{_PATH}"
        program = (self.program and shutil.which(self.program, path=path)) or ""
        return program, program or (self.file if os.path.lexists(self.file) else "")


def _docker(wish: Wish, program: str, tell: Tell) -> dict[str, Any]:
    engine = configure.Engine(wish.host, reload=wish.reload, verify=wish.verify or wish.reload)
    return configure.do(wish.edit(docker.DEFAULT_PATH, docker), engine, wish.prefix, tell)


def _containerd(wish: Wish, program: str, tell: Tell) -> dict[str, Any]:
    edit = wish.edit(containerd.DEFAULT_PATH, containerd)
    asked = program or "containerd"
    return configure_containerd.do(edit, wish.prefix, asked, tell, verify=wish.verify and bool(program))


def _podman(wish: Wish, program: str, tell: Tell) -> dict[str, Any]:
    hooks = hooks_d.FOLDER if wish.undo else None  # they may be there from an earlier `configure podman --hooks`
    request = configure_drop_in.Request(wish.edit(podman.DEFAULT_PATH, podman), wish.prefix, hooks, program or None)
    return configure_drop_in.do("podman", request, tell, verify=wish.verify and bool(program))


def _crio(wish: Wish, program: str, tell: Tell) -> dict[str, Any]:
    request = configure_drop_in.Request(wish.edit(crio.DEFAULT_PATH, crio), wish.prefix)
    return configure_drop_in.do("crio", request, tell, verify=False)


def _rancher(engine: str) -> Callable[[Wish, str, Tell], dict[str, Any]]:
    def do(wish: Wish, program: str, tell: Tell) -> dict[str, Any]:
        request = configure_k3s.Request(
            engine,
            k3s.FILES[engine],
            wish.prefix,
            undo=wish.undo,
            set_default=wish.set_default,
            dry_run=wish.dry_run,
            verify=wish.verify,
        )
        return configure_k3s.do(request, tell)

    return do


ENGINES = {
    "docker": Known("dockerd", docker.DEFAULT_PATH, _docker),
    "containerd": Known("containerd", containerd.DEFAULT_PATH, _containerd),
    "podman": Known("podman", podman.DEFAULT_PATH, _podman),
    "crio": Known("crio", crio.DEFAULT_PATH, _crio),
    **{name: Known("", path, _rancher(name)) for name, path in k3s.FILES.items()},
}


def run(wish: Wish, *, as_json: bool) -> int:
    """The command. Returns 0, configure.WOULD_CHANGE, or the exit code of the first engine that failed.

    Raises VGPU-CFG-010 if there is no engine, but for an undo: then there is nothing to do.
    """
    results = list(_each(wish, configure.quiet if as_json else configure.say))
    if not any(result["found"] for result in results) and not wish.undo:
        names = ", ".join(ENGINES)
        remedy = "install one, or name its file: vgpu configure docker --config PATH"
        raise HostError("VGPU-CFG-010", f"none of {names} is on this host", remedy=remedy)
    failed = [result["exit_code"] for result in results if "exit_code" in result]
    changes = any(result.get("changed") for result in results)
    if as_json:
        output.emit_json({"dry_run": wish.dry_run, "engines": results})
    elif failed:
        done = [result["engine"] for result in results if result["found"] and "error" not in result]
        output.message(f"vgpu: {len(failed)} failed; done in full: {', '.join(done) or 'none'}")
    if failed:
        return int(failed[0])
    return configure.WOULD_CHANGE if wish.dry_run and changes else 0


def _each(wish: Wish, tell: Tell) -> Iterator[dict[str, Any]]:
    for name, known in ENGINES.items():
        program, how = known.found()
        missing = f"no {known.program}, no {known.file}" if known.program else f"no {known.file}"
        tell(f"{name}: {f'found, {how}' if how else f'not on this host ({missing})'}")
        result: dict[str, Any] = {"engine": name, "found": how or None}
        if not how:
            yield result
            continue
        try:
            result |= known.do(wish, program, tell)
            advice: list[str] = result.pop("advice", [])
            for line in () if tell is configure.quiet else advice:
                output.message(f"vgpu: {line}")
        except VgpuError as error:
            if tell is not configure.quiet:
                output.message(error.line())
            told = {"code": error.code, "message": str(error), "remedy": error.remedy}
            result |= {"error": told, "exit_code": error.exit_code}
        yield result
