"""What the seeded faults have in common: an installation before real runc, and the rule that the remedy mends.

Each test brings a fault about, asks for its code and evidence, does what the remedy says, and runs the same again.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness import bundle
from tests.harness.bundle import Container
from tests.harness.installed import Vgpu

_LINE = re.compile(r"vgpu: (VGPU-[A-Z]+-[0-9]{3}): (.*?; to mend it: [^\n]*)")
SLICE = {"vgpu.memory": "8GiB"}


@dataclass(frozen=True, slots=True)
class Told:
    """How something ended. code: "" where it went well. text: what was said, the remedy included."""

    code: str
    text: str


Run = Callable[[], Told]


@dataclass(frozen=True, slots=True)
class Ground:
    """vgpu: the installation, which a test leaves as it was. tree: a root with the C client. folder: the test's own."""

    vgpu: Vgpu
    tree: Path
    folder: Path

    def start(self, asked: Mapping[str, str] = SLICE, *, tree: Path | None = None, **options: Any) -> Told:
        """One container that ends at once."""
        box = bundle.container(
            self.vgpu.runtime, self.folder / "b", tree or self.tree, ["true"], annotations=asked, **options
        )
        with box as made:
            result = made.run()
        return told(result.code, result.refusal)

    @contextmanager
    def running(self, *args: str, asked: Mapping[str, str] = SLICE, until: str = "") -> Iterator[Container]:
        """A container whose program has said `until`."""
        with bundle.container(self.vgpu.runtime, self.folder / "r", self.tree, args, annotations=asked) as box:
            assert box.create().code == 0
            box.start()
            while until not in box.output():
                assert Path(f"/proc/{box.pid}").exists(), box.output()
            yield box
            bundle.kill(box.pid)

    def cli(self, *arguments: str) -> Told:
        """The operator's command."""
        return program(*self.vgpu.command(*arguments))

    def configured(self, yaml: str) -> None:
        """config.yaml with `yaml` at its end, in force."""
        path = self.vgpu.prefix / "etc/config.yaml"
        path.write_text(f"{path.read_text()}\n{yaml}\n")
        self.vgpu("config", "apply")


def program(*command: str, stdin: str = "") -> Told:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    return told(done.returncode, done.stderr)


def told(code: int, text: str) -> Told:
    found = _LINE.search(text.replace("\\", ""))
    assert code == 0 or found, f"a failure without a code: {code} {text}"
    return Told(found[1] if found and code else "", text)


def seeded(code: str, fault: Run, evidence: str, mend: Callable[[], object], again: Run | None = None) -> None:
    """`fault` is refused with `code` and names `evidence`; after `mend`, which is what the remedy says, it works.

    again: the same, with what the remedy says in its arguments.
    """
    before = fault()
    assert before.code == code, before
    for words in evidence.split(" … "):
        assert words in before.text, (words, before.text)
    mend()
    after = (again or fault)()
    assert after.code == "", after


def nothing() -> None:
    """Where the remedy is another argument."""


def row(mark: pytest.MarkDecorator, *values: object) -> Any:
    """A row of a table of faults, named by its code."""
    return pytest.param(mark.args[0], *values, marks=mark, id=mark.args[0])
