"""The bills of materials: valid by CycloneDX's own schema, complete, and true."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from artefacts import archive, sbom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.harness import wheels


def valid(text: str) -> dict[str, Any]:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document: dict[str, Any] = json.loads(text)
    return document


def by_ref(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {part["bom-ref"]: part for part in document["components"]}


def properties(part: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in part.get("properties", [])}


@pytest.fixture(scope="module")
def inner(made: wheels.Made) -> dict[str, Any]:
    """The bill inside of the wheel."""
    files = archive.read(made.wheel).files
    [name] = [path for path in files if path.endswith(".cdx.json")]
    assert name.endswith(".dist-info/sboms/vgpu-runtime.cdx.json")  # where PEP 770 has it
    return valid(files[name].decode())


def test_the_wheels_bill_has_every_file_of_it_with_its_digest(made: wheels.Made, inner: dict[str, Any]) -> None:
    files = {path: data for path, data in archive.read(made.wheel).files.items() if ".dist-info/" not in path}
    listed = {part["name"]: part["hashes"][0]["content"] for part in inner["components"] if part["type"] == "file"}
    assert listed == {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


def test_it_says_what_is_linked_in_what_is_needed_and_what_built_it(inner: dict[str, Any]) -> None:
    parts, tree = by_ref(inner), {entry["ref"]: entry["dependsOn"] for entry in inner["dependencies"]}
    wrapper, launcher = "file:vgpu/parts/wrapper/libcuda.so.1", "file:vgpu/parts/launcher/vgpu-runtime"
    assert properties(parts[wrapper])["vgpu:elf:needed"].split()[0] == "libvgpu-driver.so"
    assert {"host:libc.so.6", "host:libvgpu-driver.so"} <= set(tree[wrapper])
    assert "linked:libc_nonshared" in tree[wrapper]  # glibc's pthread_atfork
    assert tree[launcher] == ["linked:compiler-rt", "linked:musl"]
    assert parts["linked:musl"]["version"].startswith("1.2.")
    assert parts["tool:ziglang"]["version"] == "0.15.2" and parts["tool:ziglang"]["scope"] == "excluded"
    declared = set(wheels.project()["project"]["dependencies"])
    assert {
        properties(part)["vgpu:requirement"] for ref, part in parts.items() if ref.startswith("python:")
    } == declared
    assert all(ref in parts for refs in tree.values() for ref in refs)  # nothing depends on what is not listed
    root = inner["metadata"]["component"]
    assert (
        root["licenses"] == [{"license": {"id": "Apache-2.0"}}]
        and root["version"] == wheels.project()["project"]["version"]
    )


def test_a_bill_beside_each_artefact(made: wheels.Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = tmp_path / "prefix/lib/vgpu/python"
    prefix.mkdir(parents=True)
    backend = next((Path(__file__).parents[2] / "build/python").glob("_cffi_backend*.so"))
    shutil.copy(backend, prefix)
    artefacts = [shutil.copy(made.wheel, tmp_path), shutil.copy(made.sdist, tmp_path), str(tmp_path / "prefix")]
    assert sbom.main(artefacts) == 0
    written = capsys.readouterr().out.split()
    assert written == [f"{path}.cdx.json" for path in artefacts]
    bills = [valid(Path(path).read_text()) for path in written]
    digest = hashlib.sha256(made.wheel.read_bytes()).hexdigest()
    assert bills[0]["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    foreign = by_ref(bills[2])[f"file:lib/vgpu/python/{backend.name}"]
    assert foreign["licenses"] == [{"license": {"id": "MIT-0"}}]  # cffi's, not ours
    assert len({bill["serialNumber"] for bill in bills}) == 3


def test_the_same_artefact_has_the_same_bill(made: wheels.Made) -> None:
    files = archive.read(made.wheel).files
    assert sbom.text(sbom.bill("a", files)) == sbom.text(sbom.bill("a", dict(reversed(list(files.items())))))


@pytest.mark.seeds("VGPU-PKG-001")
def test_what_is_no_artefact_gets_no_bill(
    made: wheels.Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = tmp_path / made.wheel.name
    assert sbom.main([str(wheel)]) == 5
    assert "VGPU-PKG-001" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    wheel.write_bytes(made.wheel.read_bytes()[:-1000])  # a copy that broke off
    assert sbom.main([str(wheel)]) == 5
    said = capsys.readouterr().err
    assert said.startswith(f"vgpu: VGPU-PKG-001: {wheel}: ") and said.count("\n") == 1
    shutil.copy(made.wheel, wheel)  # what `make wheel` leaves
    assert sbom.main([str(wheel)]) == 0
