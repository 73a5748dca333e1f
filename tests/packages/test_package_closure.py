"""The packages' ELF files find what they need, and their bills of materials say what is in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from artefacts import archive, closure, sbom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.packages.conftest import Made


@pytest.fixture(params=["deb", "rpm"])
def package(request: pytest.FixtureRequest, made: Made) -> Path:
    if request.param == "rpm" and shutil.which("rpm2archive") is None:
        pytest.skip("rpm2archive is not installed: apt-get install rpm2cpio")
    found: Path = getattr(made, request.param)
    return found


def test_every_elf_file_of_a_package_finds_what_it_needs(package: Path) -> None:
    artefact = archive.read(package)
    assert [finding.line() for finding in closure.check(artefact, closure.rules())] == []
    assert sum(data[:4] == b"\x7fELF" for data in artefact.files.values()) == 7


def test_its_bill_names_the_packages_that_it_brings(package: Path, tmp_path: Path) -> None:
    [written] = sbom.write([package], tmp_path)
    text = written.read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = {part["bom-ref"]: part for part in json.loads(text)["components"]}
    assert parts["python:docker"]["version"] and parts["python:docker"]["licenses"] == [{"expression": "Apache-2.0"}]
    assert parts["python:typer"]["licenses"] == [{"license": {"name": "MIT License"}}]
    assert "version" not in parts["python:cffi"]  # the distribution's
    vendored = [part for ref, part in parts.items() if ref.startswith("file:") and "/vendor/" in ref]
    assert vendored and not any("licenses" in part for part in vendored)
