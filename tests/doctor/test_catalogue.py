"""The catalogue is the one list: what is raised is in it, what is in it is raised, and the manual says the same."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from oci_hook.errors import RequestError
from vgpu.doctor import catalogue, manual

ROOT = Path(__file__).parents[2]
ANY_CODE = re.compile(r"VGPU-[A-Z]+-[0-9]+")
FOLDERS = ("oci_hook", "libcuda_wrap", "runtime_config", "vgpu", "packaging")


def raised_in_python(text: str) -> set[str]:
    """Codes that stand alone as a string: what is raised or reported. Comparisons and docstrings raise nothing."""
    tree = ast.parse(text)
    compared = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Compare) for part in ast.walk(node)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in compared
        if ANY_CODE.fullmatch(node.value)
    }


@cache
def raised() -> dict[str, set[str]]:
    """code -> the files that raise it."""
    found: dict[str, set[str]] = {}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix == ".py":
                codes = raised_in_python(path.read_text())
            elif path.suffix in (".c", ".h"):
                codes = set(ANY_CODE.findall(path.read_text()))
            else:
                continue
            for code in codes:
                found.setdefault(code, set()).add(str(path.relative_to(ROOT)))
    return found


def test_every_code_that_is_raised_is_in_the_catalogue() -> None:
    unknown = {code: files for code, files in raised().items() if code not in catalogue.entries()}
    assert unknown == {}


def test_every_code_of_the_catalogue_is_raised() -> None:
    assert [code for code in catalogue.entries() if code not in raised()] == []


def test_a_code_that_is_only_compared_or_told_about_is_not_raised() -> None:
    text = '"""About VGPU-AAA-001."""\nif code == "VGPU-AAA-002":\n    raise E("VGPU-AAA-003", f"VGPU-AAA-004")\n'
    assert raised_in_python(text) == {"VGPU-AAA-003", "VGPU-AAA-004"}


def test_no_code_is_put_together_at_run_time() -> None:
    """Else none of these tests could see it."""
    found = []
    for path in [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr) and any(
                isinstance(part, ast.Constant) and re.search(r"VGPU-[A-Z]*-?$", str(part.value)) for part in node.values
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize("code", sorted(catalogue.entries()))
def test_each_entry_is_complete(code: str) -> None:
    entry = catalogue.entries()[code]
    assert catalogue.CODE.fullmatch(code)
    assert entry.group in catalogue.groups()
    assert entry.severity in catalogue.SEVERITIES
    for text in (entry.title, entry.cause, entry.found, entry.remedy):
        assert len(text) > 4 and text == text.strip() and text.isprintable()
    assert not entry.title.endswith("."), "one clause"
    assert entry.cause.endswith(".")
    assert "`" not in entry.remedy, "a command"
    page, _, anchor = entry.page.partition("#")
    text = manual.text() if page == manual.DOCUMENT.name else (ROOT / "docs" / page).read_text()
    headings = [re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
                for line in text.splitlines() if line.startswith("#")]  # fmt: skip
    assert not anchor or anchor in headings


def test_titles_tell_codes_apart() -> None:
    titles = [entry.title for entry in catalogue.entries().values()]
    assert len(set(titles)) == len(titles)


def test_codes_stand_in_order_and_in_the_order_of_their_groups() -> None:
    groups = list(catalogue.groups())
    codes = list(catalogue.entries())
    assert codes == sorted(codes, key=lambda code: (groups.index(code.split("-")[1]), code))


def test_the_manual_is_as_the_catalogue_says() -> None:
    assert manual.DOCUMENT.read_text() == manual.text(), "run python -m vgpu.doctor.manual"


def test_a_manual_that_differs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manual, "DOCUMENT", tmp_path / "troubleshooting.md")
    assert manual.main(["--check"]) == 1
    assert manual.main([]) == 0
    assert manual.main(["--check"]) == 0
    manual.DOCUMENT.write_text(manual.DOCUMENT.read_text().replace("musl", "mussel"))
    assert manual.main(["--check"]) == 1
    assert manual.main(["--chekc"]) == 2


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vgpu", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)


def test_code_explains_offline() -> None:
    done = doctor("--code", "vgpu-dep-003")
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("VGPU-DEP-003: the image has musl", "why:", "found by:", "to mend it:", "docs/"):
        assert word in done.stdout
    found = json.loads(doctor("--code", "VGPU-DEP-003", "--json").stdout)
    assert found["code"]["title"] == catalogue.entries()["VGPU-DEP-003"].title


def test_a_code_that_there_is_not_is_refused_with_the_nearest() -> None:
    with pytest.raises(RequestError) as caught:
        catalogue.entry("VGPU-DPE-003")
    assert caught.value.code == "VGPU-REQ-006"
    assert "VGPU-DEP-003" in caught.value.remedy
    done = doctor("--code", "x")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (3, "", 1)
