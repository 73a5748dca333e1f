"""python -m vgpu.doctor.manual [--check]: write docs/troubleshooting.md from catalogue.yaml, or say that it differs."""

from __future__ import annotations

import sys
from pathlib import Path

from vgpu.doctor import catalogue
from vgpu.doctor.catalogue import Entry

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"
HEAD = """\
<!-- Generated from vgpu/doctor/catalogue.yaml by python -m vgpu.doctor.manual. Do not edit. -->
# Troubleshooting: every code

A refusal is one line: `vgpu: CODE: what was found; to mend it: how`. It knows the names and values of your case; this
page has what is the same in all cases. `vgpu doctor --code CODE` shows an entry offline, `vgpu doctor` looks for all
that can be seen on the host ([doctor.md](doctor.md)).

*failure*: a container does not start, or its slice does not hold. *warning*: it works, but see to it.
"""


def text() -> str:
    """The whole page."""
    parts = [HEAD]
    for group, title in catalogue.groups().items():
        inside = [entry for entry in catalogue.entries().values() if entry.group == group]
        parts.append(f"\n## {title}\n")
        parts += map(_section, inside)
    return "".join(parts)


def _section(entry: Entry) -> str:
    more = "" if entry.page.startswith(DOCUMENT.name) else f" More: [{entry.page.partition('#')[0]}]({entry.page})."
    return (
        f'\n<a id="{entry.code.lower()}"></a>\n'
        f"### {entry.code}: {entry.title}\n\n"
        f"*{entry.severity}.* {entry.cause}{more}\n\n"
        f"- Found by: {entry.found}\n"
        f"- To mend it: `{entry.remedy}`\n"
    )


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: python -m vgpu.doctor.manual [--check]", file=sys.stderr)
        return 2
    wanted = text()
    if DOCUMENT.exists() and DOCUMENT.read_text(encoding="utf-8") == wanted:
        return 0
    if arguments:
        print(f"docs/{DOCUMENT.name}: not as the catalogue says; run python -m vgpu.doctor.manual", file=sys.stderr)
        return 1
    DOCUMENT.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
