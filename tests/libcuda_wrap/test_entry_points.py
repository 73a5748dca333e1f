"""The table of entry points is complete and agrees with the header; what is generated from it is up to date."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from libcuda_wrap import bindings
from libcuda_wrap.gen import __main__ as gen
from libcuda_wrap.gen import table
from libcuda_wrap.toolchain import PACKAGE
from oci_hook import quota_file
from oci_hook.errors import HostError

TWO = "cuA: {kind: answer, since: 1, handler: h, args: [int a]}\ncuB: {kind: answer, since: 1, handler: h, args: []}\n"


def declared(include: Path) -> set[str]:
    command = ["gcc", "-E", "-P", "-D__CUDA_API_VERSION_INTERNAL", f"-I{include}", "-x", "c", "-"]
    done = subprocess.run(command, input="#include <cuda.h>\n", capture_output=True, text=True, check=True)
    text = re.sub(r"__attribute__\(\([^)]*\)\)", "", done.stdout)
    return set(re.findall(r"\bCUresult\s+(cu\w+)\s*\(", text))


def test_every_function_of_the_header_has_a_row(include: Path) -> None:
    names = declared(include)
    assert len(names) == 685
    assert names <= {row.name for row in table.read(PACKAGE / "entry_points.yaml")}


def test_since_is_what_the_header_says(include: Path) -> None:
    versions = re.findall(r"PFN_(cu\w+?)_v(\d+)(_ptds|_ptsz)?\)", (include / "cudaTypedefs.h").read_text())
    known = {(name, suffix, int(version)) for name, version, suffix in versions}
    for row in table.read(PACKAGE / "entry_points.yaml"):
        match = re.fullmatch(r"(\w+?)(_v\d+)?(_ptds|_ptsz)?", row.name)
        assert match
        base, version, suffix = match[1], match[2] or "", match[3] or ""
        if any(name in (base, base + version) for name, _, _ in known):
            assert {(base, suffix, row.since), (base + version, suffix, row.since)} & known, row


def compiles(include: Path, text: str) -> None:
    command = ["gcc", "-std=gnu11", "-fsyntax-only", "-D__CUDA_API_VERSION_INTERNAL", f"-I{include}"]
    command += [f"-I{PACKAGE / 'generated'}", f"-I{PACKAGE / 'include'}", "-x", "c", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_our_signatures_are_the_headers(include: Path) -> None:
    compiles(include, '#include <cuda.h>\n#include "cuda_prototypes.h"\n')


def layout_program(code: str) -> str:
    """A C program that prints "struct field offset" for what vgw_cuda.h declares, and "struct - size"."""
    lines = ["#include <stdio.h>", '#include "vgw_cuda.h"', "int main(void) {"]
    for body, name in re.findall(r"typedef struct \w+ \{((?:[^{}]|\{[^{}]*\})*)\} (\w+);", code):
        lines.append(f'printf("{name} - %zu\\n", sizeof({name}));')
        for field in re.findall(r"(\w+)(?:\[\d+\])?;", re.sub(r"struct \{.*?\}", "", body, flags=re.DOTALL)):
            if not field.startswith("reserved"):
                lines.append(f'printf("{name} {field} %zu\\n", offsetof({name}, {field}));')
    return "\n".join([*lines, "}"])


def test_our_types_and_values_are_the_headers(include: Path, tmp_path: Path) -> None:
    """Each enumerator, macro and complete struct of vgw_cuda.h is asserted under the vendor's header."""
    code = re.sub(r"/\*.*?\*/", "", (PACKAGE / "include" / "vgw_cuda.h").read_text(), flags=re.DOTALL)
    values = re.findall(r"\b(CU\w+) = (\w+)", code) + re.findall(r"#define (CUDA\w+) +(0x\w+)", code)
    asserts = [f'_Static_assert({name} == {value}, "{name}");' for name, value in values]
    command = ["gcc", f"-I{PACKAGE / 'include'}", "-x", "c", "-", "-o", str(tmp_path / "layout")]
    subprocess.run(command, input=layout_program(code), text=True, check=True)
    said = subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True).stdout
    for struct, field, value in (line.split() for line in said.splitlines()):
        what = f"sizeof({struct})" if field == "-" else f"offsetof({struct}, {field})"
        asserts.append(f'_Static_assert({what} == {value}, "{struct}");')
    assert len(values) > 60 and len(asserts) > len(values) + 30
    compiles(include, "#include <stddef.h>\n#include <cuda.h>\n" + "\n".join(asserts))


def test_what_is_generated_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert gen.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cuA: {kind: other, since: 2000}\n", "kind 'other' is none of"),
        ("cuA: {kind: pass}\n", "since None is not a version"),
        ("cuA: {kind: charge, since: 2000, args: []}\n", "with handler None"),
        ("cuA: {kind: answer, since: 2000, handler: a}\n", "without args"),
        ("cuA: {kind: refuse, since: 2000, args: []}\n", "without a why"),
        ("cuMemAllocX: {kind: pass, since: 2000}\n", "without a why"),
        ("cuA: {kind: pass, since: 2000, wyh: typo}\n", "has more than"),
        ("cuB: {kind: pass, since: 2000}\ncuA: {kind: pass, since: 2000}\n", "not sorted"),
        (TWO, "other arguments"),
        ("- cuA\n", "not a mapping"),
        ("cuA: {kind: [\n", "the file"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_right_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "entry_points.yaml"
    path.write_text(text)
    with pytest.raises(HostError) as caught:
        table.read(path)
    assert said in str(caught.value) and caught.value.code == "VGPU-HOST-008"


def test_the_host_writes_what_the_wrapper_maps() -> None:
    types = bindings.ffi()
    assert types.sizeof("struct vgw_quota") == quota_file.QUOTA_BYTES
    assert types.sizeof("struct vgw_usage") == quota_file.USAGE_BYTES
    offsets = {
        ("struct vgw_quota", "gpus"): 128,
        ("struct vgw_quota", "generation"): 96,
        ("struct vgw_quota_gpu", "memory_bytes"): 48,
        ("struct vgw_quota_gpu", "cores_percent"): 56,
        ("struct vgw_usage", "armed_ns"): 16,
        ("struct vgw_usage", "slot_high"): 28,
        ("struct vgw_usage", "gpus"): 128,
        ("struct vgw_usage", "slots"): 128 + 16 * 1024,
        ("struct vgw_usage_gpu", "stamp"): 8,
        ("struct vgw_usage_gpu", "peak_bytes"): 64,
        ("struct vgw_usage_gpu", "launches"): 192,
        ("struct vgw_usage_gpu", "waits"): 256,
        ("struct vgw_usage_gpu", "limiter"): 512,
        ("struct vgw_usage_slot", "gpus"): 64,
        ("struct vgw_usage_slot_gpu", "held"): 16,
    }
    assert {key: types.offsetof(*key) for key in offsets} == offsets


@pytest.mark.parametrize("damage", [b"", b"\0" * quota_file.USAGE_BYTES])
def test_a_usage_file_of_another_version_is_an_error_that_names_it(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "usage"
    path.write_bytes(damage)
    for read in (bindings.read_usage, bindings.read_quota):
        with pytest.raises(HostError, match="usage") as caught:
            read(path)
        assert caught.value.code == "VGPU-HOST-009"
    with pytest.raises(HostError):
        bindings.read_usage(tmp_path / "nothing")


def test_the_reasons_of_denials_have_the_headers_names_and_order() -> None:
    names = bindings.ffi().typeof("enum vgw_denial").elements
    assert [names[number] for number in range(len(bindings.DENIALS))] == [
        f"VGW_DENIED_{name.upper()}" for name in bindings.DENIALS
    ]
    assert names[len(bindings.DENIALS)] == "VGW_DENIALS"
