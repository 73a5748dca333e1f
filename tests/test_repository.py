"""Rules that hold for every file of the repository: size, and nothing of the machine that it was written on."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
CODE = {".py", ".c", ".h", ".sh", ""}  # "" for Makefile and .ci/run
# in pieces, so that this file is not its own finding
FORBIDDEN = [
    (r"/wor" r"k/", "a path of one machine"),
    (r"/home/[a-z]", "a path of one machine"),
    (
        r"py" r"pi\.org|deb\.deb" r"ian\.org|index\.dock" r"er\.io|registry\.np" r"mjs",
        "the address of a package registry",
    ),
]


def files() -> list[Path]:
    """Everything that git tracks, and what it would: data and generated code included."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [path for name in listed.splitlines() if (path := ROOT / name).is_file()]


def code() -> list[Path]:
    """What people read and write: no data, no generated code."""
    return [
        path
        for path in files()
        if path.suffix in CODE and not {"generated", "corpus"} & set(path.parts) and path.name != "LICENSE"
    ]


def function_lengths(path: Path) -> list[tuple[str, int]]:
    """(name, lines) of each function, docstring included. In C its braces stand in the first column (clang-format)."""
    lines = path.read_text().splitlines()
    if path.suffix == ".py":
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, functions)]
        return [(node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in nodes]
    found, start = [], None
    for number, line in enumerate(lines if path.suffix in (".c", ".h") else []):
        if line.startswith("{"):
            start = number
        elif line.startswith("}") and start is not None:
            found.append((lines[start - 1].strip(), number - start + 2))
            start = None
    return found


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in code()}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_longer_than_a_page() -> None:
    too_long = [
        f"{path.relative_to(ROOT)}: {name}: {length}"
        for path in code()
        for name, length in function_lengths(path)
        if length > MAX_FUNCTION_LINES
    ]
    assert too_long == []


@pytest.mark.parametrize(("pattern", "what"), FORBIDDEN, ids=[what for _, what in FORBIDDEN])
def test_nothing_names_the_machine_it_was_written_on(pattern: str, what: str) -> None:
    found = []
    for path in files():
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {what}: {match[0]}" for match in re.finditer(pattern, text)]
    assert found == []


def test_the_length_of_c_functions_is_seen(tmp_path: Path) -> None:
    source = tmp_path / "a.c"
    source.write_text("int f(void)\n{\n" + "    f();\n" * 70 + "}\n\nint g(void)\n{\n}\n")
    assert function_lengths(source) == [("int f(void)", 73), ("int g(void)", 3)]


def test_every_test_that_a_document_names_is_there() -> None:
    """`test_file.py` and `test_file.py::test_name`: a promise whose test has gone is a promise no more."""
    tests = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    missing = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files()
        if path.suffix == ".md"
        for match in re.finditer(r"\b(test_\w+\.py)(?:::(test_\w+))?", path.read_text())
        if match[1] not in tests or (match[2] and f"def {match[2]}(" not in tests[match[1]])
    ]
    assert missing == []


def test_every_page_is_in_the_list_of_pages() -> None:
    index = (ROOT / "docs/README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index] == ["README.md"]


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in files()
        if path.suffix == ".md"
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text())
        if not (path.parent / target).exists()
    ]
    assert broken == []
