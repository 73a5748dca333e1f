"""Every rule of the closure check, each by a real ELF file that breaks it; and what we ship breaks none."""

from __future__ import annotations

import subprocess
from pathlib import Path
from struct import pack_into, unpack_from

import pytest
from artefacts import archive, closure
from artefacts.archive import Artefact

NAME = "oci_hook/_vgsys.abi3.so"  # has the strictest rule
GOOD = ("-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack")
SOURCE = "int one(void) { return 1; }\n"
ELSEWHERE = "/srv/builder/checkout"


def library(
    folder: Path, *flags: str, source: str = SOURCE, name: str = "lib.so", good: tuple[str, ...] = GOOD
) -> Path:
    """A shared object by the machine's gcc; later flags win."""
    code = folder / "source.c"
    code.write_text(source)
    made = folder / name
    command = ["gcc", "-O1", "-shared", "-fPIC", *good, str(code), "-o", str(made), *flags]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return made


def kinds(*files: tuple[str, bytes], links: dict[str, str] | None = None) -> list[str]:
    artefact = Artefact("seeded", dict(files), links or {})
    return [finding.kind for finding in closure.check(artefact, closure.rules())]


def test_a_good_library_has_no_finding(tmp_path: Path) -> None:
    assert kinds((NAME, library(tmp_path).read_bytes())) == []


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("rpath", ["-Wl,--disable-new-dtags,-rpath,$ORIGIN"]),
        ("runpath", [f"-Wl,--enable-new-dtags,-rpath,{ELSEWHERE}/lib"]),
        ("runpath", ["-Wl,--enable-new-dtags,-rpath,$ORIGIN/../../lib"]),
        ("runpath", ["-Wl,--enable-new-dtags,-rpath,lib"]),
        ("stack", ["-Wl,-z,execstack"]),
        ("relro", ["-Wl,-z,norelro"]),
        ("relro", ["-Wl,-z,lazy"]),
    ],
)
def test_how_it_was_linked(tmp_path: Path, kind: str, flags: list[str]) -> None:
    found = kinds((NAME, library(tmp_path, *flags).read_bytes()))
    assert kind in found
    assert set(found) <= {kind, "path"}  # a RUNPATH is a path in its text, too


def test_a_segment_that_is_writable_and_executable(tmp_path: Path) -> None:
    data = bytearray(library(tmp_path).read_bytes())
    at, count = unpack_from("<Q", data, 32)[0], unpack_from("<H", data, 56)[0]
    for header in range(at, at + count * 56, 56):
        if unpack_from("<II", data, header) == (1, 5):  # PT_LOAD, readable and executable
            pack_into("<I", data, header + 4, 7)
    assert kinds((NAME, bytes(data))) == ["segment"]


def test_a_library_that_nobody_ships(tmp_path: Path) -> None:
    stub = library(tmp_path, "-Wl,-soname,libnobody.so.7", name="libnobody.so")
    made = library(tmp_path, "-Wl,--no-as-needed", str(stub), "-Wl,-rpath,$ORIGIN")
    assert kinds((NAME, made.read_bytes())) == ["missing"]
    beside = (NAME.replace("_vgsys.abi3.so", "libnobody.so.7"), stub.read_bytes())
    assert kinds((NAME, made.read_bytes()), beside) == ["undeclared"]  # found now; but nobody has said what it may need
    unreachable = library(tmp_path, "-Wl,--no-as-needed", str(stub))  # beside it, but it does not look there
    assert kinds((NAME, unreachable.read_bytes()), beside) == ["missing", "undeclared"]


def test_a_library_that_is_reached_by_a_link_and_lacks_a_version(tmp_path: Path) -> None:
    script = tmp_path / "versions"
    script.write_text("V_1 { one; };\n")
    stub = library(tmp_path, "-Wl,-soname,libinner.so.1", f"-Wl,--version-script={script}", name="libinner.so")
    caller = "int one(void); int two(void) { return one(); }\n"
    made = library(tmp_path, str(stub), "-Wl,-rpath,$ORIGIN", source=caller)
    old = library(tmp_path, "-Wl,-soname,libinner.so.1", name="old.so")
    inner = "oci_hook/libinner.so.1.0"
    links = {"oci_hook/libinner.so.1": "libinner.so.1.0"}
    files = [(NAME, made.read_bytes()), (inner, stub.read_bytes())]
    assert kinds(*files, links=links) == ["undeclared"]
    assert kinds(files[0], (inner, old.read_bytes()), links=links) == ["version", "undeclared"]
    assert kinds(files[0], links={"oci_hook/libinner.so.1": "libinner.so.1"}) == ["missing"]  # a link to itself


def test_a_glibc_newer_than_declared(tmp_path: Path) -> None:
    source = "#include <stdlib.h>\nunsigned roll(void) { return arc4random(); }\n"  # since glibc 2.36
    found = closure.check(
        Artefact("seeded", {NAME: library(tmp_path, source=source).read_bytes()}, {}), closure.rules()
    )
    assert [finding.kind for finding in found] == ["version"]
    assert "GLIBC_2.36 of libc.so.6; 2.17" in found[0].text


def test_a_path_of_the_machine_that_built_it(tmp_path: Path) -> None:
    source = f'const char *where(void) {{ return "{ELSEWHERE}/vgsys.c"; }}\n'
    assert kinds((NAME, library(tmp_path, source=source).read_bytes())) == ["path"]
    host = 'const char *where(void) { return "/proc/self/exe"; }\n'
    assert (
        kinds(
            ("a/wrapper/libcuda.so.1", library(tmp_path, "-Wl,-rpath,/usr/lib/vgpu:$ORIGIN", source=host).read_bytes())
        )
        == []
    )


def test_the_wrapper_must_have_its_runpath(tmp_path: Path) -> None:
    assert kinds(("a/wrapper/libcuda.so.1", library(tmp_path).read_bytes())) == ["runpath"]


def test_code_that_must_be_changed_at_load(tmp_path: Path) -> None:
    source = 'extern int other; __asm__(".text\\n.quad other\\n"); int one(void) { return 1; }\n'
    assert kinds((NAME, library(tmp_path, "-Wl,-z,notext", source=source).read_bytes())) == ["textrel"]


def test_a_launcher_that_needs_a_loader(tmp_path: Path) -> None:
    source, program = tmp_path / "main.c", tmp_path / "vgpu-hook"
    source.write_text("int main(void) { return 0; }\n")
    subprocess.run(["gcc", str(source), "-o", str(program)], check=True, timeout=60)
    assert kinds(("bin/vgpu-hook", program.read_bytes()))[0] == "static"


def test_files_for_two_processors_and_damaged_ones(tmp_path: Path) -> None:
    good = library(tmp_path).read_bytes()
    other = good[:18] + (183).to_bytes(2, "little") + good[20:]
    assert kinds(("a/" + NAME, good), ("b/" + NAME, other)) == ["machine"]
    assert kinds((NAME, good[:100])) == ["damaged"]
    assert kinds(("bin/something-else", good)) == ["undeclared"]


@pytest.mark.parametrize("size", range(64, 16000, 331))
def test_no_damage_shows_a_traceback(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    whole = _once(tmp_path_factory)
    cut = whole[:size]
    torn = whole[:size] + b"\xff" * 16 + whole[size + 16 :]
    for data in (cut, torn):
        assert all(isinstance(kind, str) for kind in kinds((NAME, data)))


_MADE: list[bytes] = []


def _once(factory: pytest.TempPathFactory) -> bytes:
    if not _MADE:
        _MADE.append(library(factory.mktemp("once")).read_bytes())
    return _MADE[0]


def test_what_make_build_made_is_clean(needs_build: None) -> None:
    root = Path(__file__).parents[2] / "build"
    files = {
        str(path.relative_to(root)): path.read_bytes()
        for part in ("launcher", "wrapper", "sim", "python/oci_hook")
        for path in (root / part).iterdir()
        if path.is_file() and not path.is_symlink()
    }
    artefact = Artefact("build", files, {})
    assert [finding.line() for finding in closure.check(artefact, closure.rules())] == []
    assert sum(data[:4] == b"\x7fELF" for data in files.values()) == 7


def test_the_command_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "prefix/oci_hook"
    package.mkdir(parents=True)
    library(package, "-Wl,-z,execstack", name="_vgsys.abi3.so")
    (package / "link").symlink_to("source.c")
    assert closure.main([str(tmp_path / "prefix")]) == 1
    assert capsys.readouterr().out == f"prefix: {NAME}: stack: its stack would be executable\n"


@pytest.mark.parametrize("name", ["a.whl", "a.tar.gz", "a.deb", "a.rpm", "a.txt", "missing.whl"])
def test_what_is_no_artefact_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    if name != "missing.whl":
        path.write_bytes(b"nothing of the kind")
    assert closure.main([str(path)]) == 5
    said = capsys.readouterr().err
    assert said.startswith("vgpu: VGPU-PKG-001: ") and name in said and said.count("\n") == 1


def test_a_debian_package_is_looked_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    control = {"Package": "a", "Version": "1", "Architecture": "amd64", "Maintainer": "a <a@b>", "Description": "a"}
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text("".join(f"{name}: {value}\n" for name, value in control.items()))
    package = root / "opt/vgpu/lib/vgpu/python/oci_hook"
    package.mkdir(parents=True)
    library(package, "-Wl,-z,lazy", name="_vgsys.abi3.so")
    deb = tmp_path / "a.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(root), str(deb)], check=True, capture_output=True)
    assert closure.main([str(deb)]) == 1
    assert capsys.readouterr().out.startswith(f"a.deb: opt/vgpu/lib/vgpu/python/{NAME}: relro: ")


def test_links_to_folders_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "prefix/versions/1").mkdir(parents=True)
    (tmp_path / "prefix/current").symlink_to("versions/1")
    assert archive.read(tmp_path / "prefix").links == {"current": "versions/1"}
