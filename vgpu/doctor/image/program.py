"""The program that an image starts: which file that is, what reads it, and whether the image has what it needs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence

from oci_hook import preflight, programs
from oci_hook.elf import Elf, ElfError
from oci_hook.errors import shown
from oci_hook.preflight import Needs, Problem, Provider
from oci_hook.records import Start
from vgpu.doctor.finding import Finding, Result, Seen, found
from vgpu.doctor.image.archive import Config
from vgpu.doctor.image.folder import Folder
from vgpu.doctor.image.tree import Tree

Root = Folder | Tree
PROGRAM = ("VGPU-DEP-006", "VGPU-DEP-007")  # codes for what a program of the image lacks: a library, a version
_SHELLS = ("sh", "bash", "dash", "ash")
_HOMES = ("/home/", "/root/", "/Users/", "/var/home/")


def started(config: Config) -> Iterator[str]:
    """The words that name a program: the first of the command, and of the line that a shell is given."""
    words = (*config.entrypoint, *config.cmd)
    if not words:
        return
    yield words[0]
    if os.path.basename(words[0]) in _SHELLS and len(words) > 2 and words[1] == "-c":
        try:
            line = [word for word in shlex.split(words[2]) if "=" not in word and word != "exec"]
        except ValueError:
            return
        if line and line[0].replace("/", "").replace("-", "").replace(".", "").replace("_", "").isalnum():
            yield line[0]


def examine(root: Root, image: preflight.Image | None, config: Config, word: str, ours: set[str]) -> Iterator[Result]:
    """One program. image: None where there is no glibc; then only whether it is there is said. ours: names that will
    be there in the container."""
    reader = ""
    for _ in range(programs.MAX_SCRIPTS):
        path = programs.path_of(root, Start(config.env, config.cwd, word))
        if not path:
            yield _not_there(word, reader)
            return
        if reader:
            yield Seen(f"{reader} is a script, and {path} reads it")
        word = programs.reader(root, path)
        if not word:
            break
        reader = path
    try:
        facts = root.elf(path)
    except ElfError as error:
        yield _no_program(path, str(error))
        return
    if facts is not None and facts.machine != (machine := preflight.MACHINES[os.uname().machine]):
        yield _no_program(path, f"for another processor (ELF machine {facts.machine}, and this host's is {machine})")
    elif facts is not None:
        yield from _loads(root, image, path, facts, ours)


def _not_there(word: str, reader: str) -> Finding:
    if reader:
        evidence = f"{reader} is a script that begins with #! {shown(word, 200)}, which the image does not have"
    else:
        evidence = f"the image has no program {shown(word, 200)}" + ("" if "/" in word else ", nowhere in its PATH")
    remedy = "add it to the image, or start another: docker run --entrypoint PROGRAM IMAGE"
    return found("VGPU-IMG-008", word, evidence, remedy=remedy)


def _no_program(path: str, why: str) -> Finding:
    evidence = f'it is {why}; the kernel answers "exec format error", or it could not load the driver'
    return found("VGPU-IMG-008", path, evidence, remedy=f"put a 64-bit program for this processor at {path}")


def _loads(root: Root, image: preflight.Image | None, path: str, facts: Elf, ours: set[str]) -> Iterator[Result]:
    if facts.interpreter and not root.is_file(facts.interpreter):
        family = "musl" if "musl" in facts.interpreter else "glibc"
        evidence = f"it is to be loaded by {shown(facts.interpreter, 200)}, which the image does not have"
        yield found(
            "VGPU-DEP-008", path, evidence,
            remedy=f"use an image with {family}, or build {path} for this one",
        )  # fmt: skip
        return
    if not facts.interpreter and not facts.needed:
        yield Seen(f"{path} is a static program: it needs no library, and cannot load the driver either")
        return
    if image is None:
        return
    listed = list(problems(image, root.real(path) or path, facts, ours))
    yield from (found(one.code, path, one.text, remedy=one.remedy) for one in listed)
    if not listed:
        yield Seen(f"{path} has all libraries that it needs")
    yield from homes(root, [(path, Provider(path, facts))])


def problems(image: preflight.Image, path: str, facts: Elf, ours: set[str]) -> list[Problem]:
    """What one file of the image lacks. path: without links, for $ORIGIN."""
    needs: Needs = preflight.needs_of(path, Provider(path, facts))
    return list(preflight.problems(image.another(), [needs], ours, PROGRAM))


def homes(root: Root, files: Sequence[tuple[str, Provider]]) -> Iterator[Finding]:
    """Search paths into someone's home: they hold on the machine of whoever built the file, and nowhere else."""
    users: dict[str, list[str]] = {}
    for path, provider in files:
        for folder in (provider.elf.runpath or provider.elf.rpath).split(":"):
            own = path.split("/")[:3] == folder.split("/")[:3] and root.identity(folder)  # an image may live in a home
            if f"{folder}/".startswith(_HOMES) and not own:
                users.setdefault(folder, []).append(path)
    for folder, paths in users.items():
        there = "which the image has" if root.identity(folder) else "which the image does not have"
        yield found(
            "VGPU-DEP-009", paths[0], f"its RUNPATH leads to {shown(folder, 200)}, {there}{_more(paths)}",
            remedy=f"patchelf --set-rpath '$ORIGIN' {paths[0]}, and keep its libraries beside it",
        )  # fmt: skip


def _more(paths: Sequence[str]) -> str:
    return "" if len(paths) == 1 else f" (and {len(paths) - 1} more files)"
