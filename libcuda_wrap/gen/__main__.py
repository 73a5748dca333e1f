"""python -m libcuda_wrap.gen [--check]: write what comes from the tables, or say what is not as it should be."""

from __future__ import annotations

import sys
from pathlib import Path

from libcuda_wrap import coverage
from libcuda_wrap.gen import render, table
from oci_hook.errors import HostError, VgpuError

PACKAGE = Path(__file__).resolve().parents[1]
DOCUMENT = PACKAGE.parent / "docs" / "entry-points.md"


def outputs() -> dict[Path, str]:
    """Every generated file with its text."""
    generated = PACKAGE / "generated"
    texts: dict[Path, str] = {}
    tables = {}
    for library in (render.CUDA, render.NVML):
        rows = tables[library.key] = table.read(PACKAGE / library.source)
        texts[generated / f"{library.key}_handlers.h"] = render.handlers_h(library, rows)
        texts[generated / f"{library.key}_exports.c"] = render.exports_c(library, rows)
        texts[generated / f"{library.key}_prototypes.h"] = render.prototypes_h(library, rows)
        texts[generated / f"{library.key}_exports.map"] = render.version_script(library, rows)
    texts[generated / "cuda_symbols.inc"] = render.symbols_inc(render.CUDA, tables["cuda"])
    texts[DOCUMENT] = render.document(tables["cuda"], tables["nvml"])
    return texts


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: python -m libcuda_wrap.gen [--check]", file=sys.stderr)
        return 2
    try:
        texts = outputs()
        for branch, names in coverage.unknown_in_lists().items():
            raise HostError(
                "VGPU-HOST-008", f"driver {branch} exports {', '.join(names)}", remedy="write a row for each of them"
            )
    except VgpuError as err:
        print(err.line(), file=sys.stderr)
        return err.exit_code
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if arguments:
            print(
                f"{path.relative_to(PACKAGE.parent)}: not as the tables say; run python -m libcuda_wrap.gen",
                file=sys.stderr,
            )
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(texts[path])
    return 1 if arguments and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
