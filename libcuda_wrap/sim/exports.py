"""What the two libraries export, as generated C: every name of the driver's interface, implemented here or not.

A name that no C file defines gets a stub of its own (addresses must differ: a wrapper turns them back
into names). `_ptsz` and `_ptds` names, and older versions with the same arguments, jump to the function they stand for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from libcuda_wrap.toolchain import PACKAGE

SIM = PACKAGE / "sim"
NAME = re.compile(r"(?P<base>.+?)(?:_v(?P<version>[0-9]+))?(?P<thread>_pt[ds][sz])?")
JUMP = {"x86_64": "jmp", "aarch64": "b"}
# An older name whose arguments are those of the newer one.
SAME_ARGUMENTS = {
    "cuCtxDestroy": "cuCtxDestroy_v2",
    "cuCtxPopCurrent": "cuCtxPopCurrent_v2",
    "cuCtxPushCurrent": "cuCtxPushCurrent_v2",
    "cuDevicePrimaryCtxRelease": "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxReset": "cuDevicePrimaryCtxReset_v2",
    "cuDevicePrimaryCtxSetFlags": "cuDevicePrimaryCtxSetFlags_v2",
    "cuEventDestroy": "cuEventDestroy_v2",
    "cuMemHostRegister": "cuMemHostRegister_v2",
    "cuStreamDestroy": "cuStreamDestroy_v2",
}
_DEFINITION = re.compile(r"^(?:VGS_(?:API|NVML)|__attribute__.*\bchar \*)\s*(\w+)\(", re.M)
_COPY = re.compile(r"^VGS_COPY\((\w+), (\w+),", re.M)
_SET = re.compile(r"^VGS_SET\((\d+),", re.M)


def implemented(sources: Iterable[Path]) -> set[str]:
    """Names that the C files define with VGS_API or VGS_NVML, the macros' own included."""
    names: set[str] = set()
    for path in sources:
        text = path.read_text()
        names.update(_DEFINITION.findall(text))
        for pair in _COPY.findall(text):
            names.update(pair)
        for bits in _SET.findall(text):
            names.update(f"cuMemset{form}{bits}{end}" for form in ("D", "D2D") for end in ("_v2", "Async"))
    return names


def _split(name: str) -> tuple[str, int, bool]:
    match = NAME.fullmatch(name)
    assert match, name
    return match["base"], int(match["version"] or 1), bool(match["thread"])


def _target(name: str, defined: set[str], fallback: str) -> str:
    """What the stub of `name`, which no file defines, jumps to."""
    plain = re.sub(r"_pt[ds][sz]$", "", name)
    for candidate in (plain, SAME_ARGUMENTS.get(plain, "")):
        if candidate in defined:
            return candidate
    return fallback


def stubs(names: Iterable[str], defined: set[str], fallback: str, arch: str) -> str:
    """Assembly: one exported symbol for each name that is not defined."""
    lines = ['.section .note.GNU-stack,"",%progbits', ".text"]
    for name in sorted(set(names) - defined):
        target = _target(name, defined, fallback)
        lines += [
            f".globl {name}",
            f".type {name}, %function",
            ".balign 16",
            f"{name}: {JUMP[arch]} {target}",
            f".size {name}, .-{name}",
        ]
    return "\n".join(lines) + "\n"


def table(rows: Mapping[str, Mapping[str, object]]) -> str:
    """C: the table that cuGetProcAddress searches."""
    order = sorted((*_split(name)[::2], int(str(row["since"])), _split(name)[1], name) for name, row in rows.items())
    lines = ['#include "vgs_lookup.h"', ""]
    lines += [f"extern char {name}[];" for name in sorted(rows)]
    lines += ["", "const struct vgs_export vgs_exports[] = {"]
    lines += [f'    {{"{base}", {since}, {int(thread)}, {name}}},' for base, thread, since, _, name in order]
    lines += ["};", "const size_t vgs_export_count = sizeof vgs_exports / sizeof *vgs_exports;", ""]
    return "\n".join(lines)
