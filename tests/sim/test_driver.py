"""The C tests: on the driver as it is shipped, and under the sanitizers for addresses and undefined behaviour."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import SymbolTableSection

from libcuda_wrap.sim import build
from libcuda_wrap.toolchain import PACKAGE, Toolchain
from tests.sim.conftest import compile_test

PROGRAMS = ("memory", "work", "processes", "slices")


@pytest.mark.parametrize("name", PROGRAMS)
def test_c(name: str, driver: Path, environment: dict[str, str], tmp_path: Path) -> None:
    program = compile_test(name, driver, tmp_path, Toolchain())
    done = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checked")
    build.build(out, Toolchain("gcc", "address,undefined"))
    return out


@pytest.mark.parametrize("name", PROGRAMS)
def test_c_under_sanitizers(name: str, checked: Path, environment: dict[str, str], tmp_path: Path) -> None:
    program = compile_test(name, checked, tmp_path, Toolchain("gcc", "address,undefined"))
    options = {"UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1", "LD_LIBRARY_PATH": str(checked)}
    done = subprocess.run([program], env={**environment, **options}, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_an_allocation_and_its_free_are_quick(driver: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """Else nothing could be said of the wrapper's cost. The bound leaves room for a busy machine."""
    program = compile_test("speed", driver, tmp_path, Toolchain())
    done = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert float(done.stdout) < 600


def _symbols(library: Path) -> dict[str, int]:
    with library.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".dynsym")
        assert isinstance(table, SymbolTableSection)
        return {each.name: each["st_value"] for each in table.iter_symbols() if each["st_shndx"] != "SHN_UNDEF"}


def test_every_function_is_exported_at_an_address_of_its_own(driver: Path) -> None:
    """The wrapper turns addresses back into names."""
    rows = yaml.safe_load((PACKAGE / "entry_points.yaml").read_text())
    symbols = _symbols(driver / "libcuda.so.1")
    assert rows.keys() - symbols.keys() == set()
    assert len({symbols[name] for name in rows}) == len(rows)
    own = {"vgsSetKernelTime", "vgsSetFillTime", "vgsSetPoolPiece"}
    assert {name for name in symbols if not name.startswith("cu")} == own


def test_nvml_has_every_function_that_pynvml_asks_for(driver: Path) -> None:
    pynvml = pytest.importorskip("pynvml")
    asked = set(re.findall(r'_nvmlGetFunctionPointer\("(nvml\w+)"\)', Path(pynvml.__file__).read_text()))
    known = set((PACKAGE / "sim/nvml_functions.txt").read_text().split())
    symbols = _symbols(driver / "libnvidia-ml.so.1").keys()
    assert len(asked) > 300
    assert known - symbols == set()
    assert asked - symbols - {"nvmlGetFunctionPointer"} == set()


@pytest.mark.parametrize("name", ["libcuda", "libnvidia-ml"])
def test_the_library_loads_in_an_old_image(driver: Path, name: str) -> None:
    with (driver / f"{name}.so.1").open("rb") as file:
        elf = ELFFile(file)
        dynamic = elf.get_section_by_name(".dynamic")
        assert isinstance(dynamic, DynamicSection)
        assert [tag.soname for tag in dynamic.iter_tags("DT_SONAME")] == [f"{name}.so.1"]
        needed = elf.get_section_by_name(".gnu.version_r")
        assert isinstance(needed, GNUVerNeedSection)
        versions = {entry.name for _, entries in needed.iter_versions() for entry in entries}
    numbers = [tuple(map(int, each.removeprefix("GLIBC_").split("."))) for each in versions if each != "GLIBC_PRIVATE"]
    assert max(numbers) <= (2, 17)


def test_the_same_sources_give_the_same_bytes(driver: Path, tmp_path: Path) -> None:
    build.build(tmp_path / "again")
    for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
        assert (tmp_path / "again" / name).read_bytes() == (driver / name).read_bytes()
