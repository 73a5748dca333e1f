"""Every code of the catalogue is brought about by a test that shows its remedy to mend it: marked `seeds(CODE)`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from vgpu.doctor import catalogue

TESTS = Path(__file__).parents[1]
AT_LEAST = 40
# code -> why no test brings it about
EXCEPTIONS: dict[str, str] = {}


def seeds(path: Path) -> Iterator[str]:
    """The codes of all calls `pytest.mark.seeds("…")`, or `seeds("…")` where that was given a name, in one file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "seeds":
            yield from (part.value for part in node.args if isinstance(part, ast.Constant))  # type: ignore[misc]


def seeded() -> set[str]:
    return {code for path in TESTS.rglob("test_*.py") if path != Path(__file__) for code in seeds(path)}


def test_every_code_is_seeded() -> None:
    assert sorted(set(catalogue.entries()) - seeded() - set(EXCEPTIONS)) == []


def test_what_is_seeded_is_in_the_catalogue() -> None:
    assert sorted(seeded() - set(catalogue.entries())) == []


def test_an_exception_is_none_once_it_is_seeded() -> None:
    assert sorted(set(EXCEPTIONS) & seeded()) == []


def test_at_least_forty() -> None:
    assert len(seeded()) >= AT_LEAST
