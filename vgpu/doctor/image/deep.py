"""Every ELF file of an image: what would not load, and what could be found that should not be."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

from oci_hook import preflight
from oci_hook.elf import Elf, ElfError
from oci_hook.errors import ImageError, shown
from oci_hook.preflight import Problem, Provider
from vgpu.doctor.finding import CannotSee, Result, Seen, Unseen, found, refused
from vgpu.doctor.image import program
from vgpu.doctor.image.archive import At
from vgpu.doctor.image.folder import Folder
from vgpu.doctor.image.program import Root

_DRIVER = ("libcuda.so", "libnvidia-ml.so")
MAX_SECONDS = 900.0  # a hostile image could take for ever; a large one takes a minute
_NAMED = 3  # files that a finding names
_MAX_FOUND = 50  # findings; a tree that was cut in half has thousands

Lacking = dict[tuple[str, str], list[Problem]]  # code and library -> who lacks it
Refusals = list[tuple[str, ImageError]]


def examine(
    root: Root, view: preflight.Image | None, ours: set[str], own: Sequence[str], told: set[str], at: At
) -> Iterator[Result]:
    """view: None where there is no glibc. own: folders in which the image's own program looks: a start covers them.

    told: files of which is told elsewhere what they lack.
    """
    if view is None:
        raise CannotSee("its files", "there is no glibc whose loader could be asked")
    files: dict[str, Elf] = {}
    names: dict[str, list[str]] = defaultdict(list)  # name of a library -> where it is
    for count, path in enumerate(root.files()):
        if count % 100 == 0:
            at(path)
        try:
            facts = root.elf(path)
        except ElfError:
            continue
        if facts is not None and facts.machine == view.machine:
            files[path] = facts
            names[os.path.basename(path)].append(path)
            if facts.soname not in ("", os.path.basename(path)):
                names[facts.soname].append(path)
    others = {path: facts for path, facts in files.items() if path not in told}
    lacking, refusals, late = _problems(view, others, ours, at)
    yield from _lacking(lacking, names, len(files))
    yield from (refused(error, path, severity="warning") for path, error in refusals[:_NAMED])
    yield from program.homes(root, [(path, Provider(path, facts)) for path, facts in others.items()])
    yield from _uncovered(view, files, names, own)
    if late:
        yield Unseen("its files", f"{late} of {len(files)} were not looked at: it took more than {MAX_SECONDS:g} s")
    if isinstance(root, Folder) and root.blind:
        yield Unseen("some folders", "; ".join(root.blind[:_NAMED]))


def _problems(view: preflight.Image, files: dict[str, Elf], ours: set[str], at: At) -> tuple[Lacking, Refusals, int]:
    """What each file lacks itself; files whose search would not end; how many there was no time for."""
    lacking: Lacking = defaultdict(list)
    refusals: Refusals = []
    until = time.monotonic() + MAX_SECONDS
    for count, (path, facts) in enumerate(files.items()):
        if time.monotonic() > until:
            return lacking, refusals, len(files) - count
        if count % 100 == 0:
            at(f"{count} of {len(files)}: {path}")
        try:
            for one in program.problems(view, path, facts, ours):
                if one.who == path:  # those that it shares with a library are that library's
                    lacking[one.code, one.soname].append(one)
        except ImageError as error:
            refusals.append((path, error))
    return lacking, refusals, 0


def _lacking(lacking: Lacking, names: dict[str, list[str]], count: int) -> Iterator[Result]:
    elsewhere = 0
    shown_so_far = 0
    for (code, soname), problems in sorted(lacking.items()):
        if not problems[0].wanted and names.get(soname):
            elsewhere += len(problems)
            continue
        shown_so_far += 1
        if shown_so_far > _MAX_FOUND:
            continue
        users = [one.who for one in problems]
        more = f" and {len(users) - _NAMED} more" if len(users) > _NAMED else ""
        words = problems[0].text + (f"; needed by {', '.join(users[:_NAMED])}{more}" if len(users) > 1 else "")
        yield found(code, soname, words, severity="warning", remedy=problems[0].remedy)
    if shown_so_far > _MAX_FOUND:
        raise CannotSee("further libraries", f"{shown_so_far - _MAX_FOUND} more are missing: too many to list")
    if elsewhere:
        yield Seen(f"{elsewhere} needs are met only if the program that loads them has loaded them before")
    yield Seen(f"{count} ELF files looked at")


def _uncovered(
    view: preflight.Image, files: dict[str, Elf], names: dict[str, list[str]], own: Sequence[str]
) -> Iterator[Result]:
    """Copies of the driver that some file's RUNPATH leads to: nothing is mounted over them."""
    covered = {view.root.identity(copy.path) for copy in preflight.copies(view, own)}
    leads: dict[str, str] = {}  # folder -> a file that looks there
    for path, facts in files.items():
        provider = Provider(path, facts)
        for folder in (*provider.rpath(), *provider.runpath()):
            leads.setdefault(os.path.normpath(folder), path)
    open_ones = [
        path
        for name in sorted(names) if name.startswith(_DRIVER)
        for path in names[name]
        if os.path.basename(path) == name and os.path.dirname(path) in leads and path in files
        if view.root.identity(path) not in covered
    ]  # fmt: skip
    for path in open_ones[:_MAX_FOUND]:
        reader = leads[os.path.dirname(path)]
        yield found(
            "VGPU-IMG-009", path, f"it would be loaded by {shown(reader, 200)}, whose RUNPATH leads there",
            remedy=f"remove {path} from the image: the driver comes from the host",
        )  # fmt: skip
