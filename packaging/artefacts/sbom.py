"""python -m artefacts.sbom FILE… [--out DIR]: bills of materials, CycloneDX 1.6, beside the artefacts or in DIR.

Listed are: every file of ours with its digest, what is linked into it and what it needs, the Python packages that it
depends on, and the tools that built it. The bill depends on these alone: no date, no random number.
The wheel has one in `.dist-info/sboms/` too (PEP 770). Source: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tomllib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from email.message import Message
from email.parser import HeaderParser
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from artefacts import archive
from oci_hook import elf
from oci_hook.errors import VgpuError

ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]
OURS = "Apache-2.0"
# what zig links into a program or a library; version: of the copy in the zig that we build with, see zig_libraries()
MUSL, COMPILER_RT, NONSHARED = "musl", "compiler-rt", "libc_nonshared"
LINKED: dict[str, Json] = {
    MUSL: {"id": "MIT"},
    COMPILER_RT: {"id": "MIT"},
    # the part of glibc that is in every library for it, such as pthread_atfork; its files may be linked into anything
    NONSHARED: {"name": "LGPL-2.1-or-later, with the permission of its files to be linked into other programs"},
}
BUILD_TOOLS = ("ziglang", "cffi", "hatchling")
MACHINES = {elf.X86_64: "x86_64", elf.AARCH64: "aarch64"}
VENDOR = "/lib/vgpu/vendor/"  # in a package: Python packages of others
# files of others that may lie in an installation
FOREIGN = {"_cffi_backend": ("cffi", "MIT-0")}


def bill(name: str, files: Mapping[str, bytes], digest: str = "") -> Json:
    """The bill of the artefact `name`. digest: SHA-256 of its file, if it is one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    package, version = project["name"], project["version"]
    root: Json = {
        "type": "application", "bom-ref": f"artefact:{name}", "name": package, "version": version,
        "description": project["description"], "licenses": _licence(OURS), "purl": _purl(package, version),
        "properties": _properties({"artefact": name}),
    }  # fmt: skip
    if digest:
        root["hashes"] = _hashes(digest)
    own = [_file(path, data) for path, data in sorted(files.items())]
    linked, needed, links = _elf_parts(files)
    brought = _vendored(files)
    asked = {part["bom-ref"]: part for text in project["dependencies"] for part in [_requirement(text)]}
    python = [part for _, part in sorted({**asked, **brought}.items())]
    tools = _tools()
    tree = [{"ref": root["bom-ref"], "dependsOn": sorted(part["bom-ref"] for part in (*own, *python))}, *links]
    document: Json = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": [*own, *linked, *needed, *python, *tools],
        "dependencies": tree,
    }
    content = json.dumps(document, sort_keys=True).encode()
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(content).hexdigest())}"
    return document


def text(document: Json) -> str:
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _file(path: str, data: bytes) -> Json:
    component: Json = {
        "type": "file", "bom-ref": f"file:{path}", "name": path, "hashes": _hashes(hashlib.sha256(data).hexdigest()),
    }  # fmt: skip
    if VENDOR not in path:  # the package that it is of says its licence
        component["licenses"] = _licence(_foreign(path)[1])
    found = parsed(data)
    if found is not None:
        component["properties"] = _properties(
            {
                "elf:machine": MACHINES.get(found.machine, str(found.machine)),
                "elf:soname": found.soname,
                "elf:needed": " ".join(found.needed),
                "elf:runpath": found.runpath,
                "elf:versions": " ".join(sorted({name for names in found.requires.values() for name in names})),
                "elf:build-id": found.build_id,
            }
        )
    return component


def _foreign(path: str) -> tuple[str, str]:
    name = path.rpartition("/")[2]
    return next((whose for start, whose in FOREIGN.items() if name.startswith(start)), ("", OURS))


def parsed(data: bytes) -> elf.Elf | None:
    """None for what is no ELF file."""
    try:
        return elf.parse_bytes(data) if data.startswith(b"\x7fELF") else None
    except elf.ElfError:
        return None  # the closure check says what is wrong with it


def _elf_parts(files: Mapping[str, bytes]) -> tuple[list[Json], list[Json], list[Json]]:
    """What is linked into the ELF files, what they expect of the host or container, and who needs which."""
    linked, needed, tree = set(), set(), []
    sonames = {found.soname or path.rpartition("/")[2]: path for path, data in files.items() if (found := parsed(data))}
    for path, data in sorted(files.items()):
        if (found := parsed(data)) is None:
            continue
        inside = () if _foreign(path)[0] else (COMPILER_RT, NONSHARED) if found.needed else (MUSL, COMPILER_RT)
        linked |= set(inside)
        outside = [name for name in found.needed if name not in sonames]
        needed |= set(outside)
        within = [f"file:{sonames[name]}" for name in found.needed if name in sonames]
        refs = {*(f"linked:{name}" for name in inside), *(f"host:{name}" for name in outside), *within}
        tree.append({"ref": f"file:{path}", "dependsOn": sorted(refs)})
    return [_linked(name) for name in sorted(linked)], [_needed(name) for name in sorted(needed)], tree


def _linked(name: str) -> Json:
    component: Json = {"type": "library", "bom-ref": f"linked:{name}", "name": name}
    version = zig_libraries().get(name)
    if version:
        component["version"] = version
    return {
        **component,
        "licenses": [{"license": LINKED[name]}],
        "properties": _properties({"linked": "statically, by zig"}),
    }


def _needed(name: str) -> Json:
    where = (
        "the hook mounts the driver's own file under this name" if name.startswith("libvgpu-") else "host or container"
    )
    return {
        "type": "library", "bom-ref": f"host:{name}", "name": name, "scope": "excluded",
        "properties": _properties({"provided-by": where}),
    }  # fmt: skip


def _requirement(text: str) -> Json:
    """'cffi>=1.15': a package that pip installs beside ours; only the range is known here."""
    name = next(text[:at] for at, char in enumerate([*text, " "]) if not (char.isalnum() or char in "-_."))
    return {
        "type": "library", "bom-ref": f"python:{name}", "name": name, "purl": _purl(name),
        "properties": _properties({"requirement": text}),
    }  # fmt: skip


def _vendored(files: Mapping[str, bytes]) -> dict[str, Json]:
    """The Python packages that lie in the artefact itself, with their version and licence: bom-ref -> component."""
    found = {}
    for path, data in files.items():
        if VENDOR in path and path.endswith(".dist-info/METADATA"):
            said = HeaderParser().parsestr(data.decode("utf-8", "replace"))
            name, version = str(said["Name"]), str(said["Version"])
            ref = f"python:{name}"
            found[ref] = {
                "type": "library", "bom-ref": ref, "name": name, "version": version, "purl": _purl(name, version),
                "licenses": _declared(said), "properties": _properties({"brought": path.rpartition("/")[0]}),
            }  # fmt: skip
    return found


def _declared(said: Message) -> list[Json]:
    """The licence as a package's METADATA has it: an expression, or a name in words."""
    if said["License-Expression"]:
        return [{"expression": said["License-Expression"]}]
    classifiers = [text.rpartition(" :: ")[2] for text in said.get_all("Classifier", []) if text.startswith("License")]
    return [{"license": {"name": text}} for text in [*classifiers, said["License"]] if text][:1]


def _tools() -> list[Json]:
    """What built it and is no part of it: excluded, in CycloneDX's words."""
    found = []
    for name in BUILD_TOOLS:
        version = metadata.version(name)
        found.append(
            {
                "type": "application", "bom-ref": f"tool:{name}", "name": name, "version": version, "scope": "excluded",
                "purl": _purl(name, version), "properties": _properties({"role": "build"}),
            }
        )  # fmt: skip
    return found


@cache
def zig_libraries() -> dict[str, str]:
    """Name -> version of what this environment's zig links in; the others' is zig's own."""
    own = f"zig-{metadata.version('ziglang')}"
    versions = {COMPILER_RT: own, NONSHARED: own}
    ziglang = next(
        (file for file in metadata.files("ziglang") or () if str(file).endswith("musl/src/internal/version.h")), None
    )
    if ziglang is not None:
        versions[MUSL] = ziglang.read_text().split('"')[1]
    return versions


def _hashes(sha256: str) -> list[Json]:
    return [{"alg": "SHA-256", "content": sha256}]


def _licence(identifier: str) -> list[Json]:
    return [{"license": {"id": identifier}}]


def _purl(name: str, version: str = "") -> str:
    return f"pkg:pypi/{name.lower().replace('_', '-')}" + (f"@{version}" if version else "")


def _properties(values: Mapping[str, str]) -> list[Json]:
    return [{"name": f"vgpu:{name}", "value": value} for name, value in sorted(values.items()) if value]


def write(paths: Iterable[Path], out: Path | None) -> list[Path]:
    """One bill for each artefact, as <name>.cdx.json."""
    written = []
    for path in paths:
        found = archive.read(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        target = (out or path.parent) / f"{found.name}.cdx.json"
        target.write_text(text(bill(found.name, found.files, digest)))
        written.append(target)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m artefacts.sbom", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("artefacts", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="folder for the bills; default: beside each artefact")
    options = parser.parse_args(arguments)
    try:
        print(*write(options.artefacts, options.out), sep="\n")
    except VgpuError as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
