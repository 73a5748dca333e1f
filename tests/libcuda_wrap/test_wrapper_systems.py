"""The wrapper as it ships loads and enforces on old, current and coming systems, with a loader alone, and on arm64."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from libcuda_wrap import bindings, build
from libcuda_wrap.sim import build as sim_build
from libcuda_wrap.sim import create
from libcuda_wrap.toolchain import PACKAGE, Toolchain
from oci_hook import quota_file
from tests.harness import debian, debian_roots, rootfs
from tests.libcuda_wrap.wrapped import C_TESTS, GIB, MIB, OK, OUT_OF_MEMORY, Client, part

ROOT = Path(__file__).parents[2]
BOX = "usr/lib/vgpu"
QUOTA = 3 * GIB
SUITES = ("bullseye", "bookworm", "trixie", "sid")
NEWEST_GLIBC = (2, 17)
BUILT = ("build/wrapper/libcuda.so.1", "build/sim/libcuda.so.1", "build/fixtures/cuda_client")


@pytest.fixture(scope="session")
def arm64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """wrapper/, sim/ and the clients for arm64. The emulator keeps a table of all addresses: few."""
    out, tools = tmp_path_factory.mktemp("arm64"), Toolchain(arch="aarch64")
    for library in (build.CUDA, build.NVML):
        build.wrapper(library, out / "wrapper", tools)
    sim_build.build(out / "sim", tools, arena_bytes=8 * GIB)
    tools.program([ROOT / "tests/fixtures/cuda_client.c"], out / "cuda_client", flags=["-ldl"])
    flags = [f"-I{PACKAGE / 'include'}", f"-I{PACKAGE / 'generated'}", str(out / "sim/libcuda.so"), "-ldl"]
    tools.program([C_TESTS / "client.c"], out / "client", flags=flags)
    return out


def unpacked(suite: str, package: str) -> Path:
    """A package of a suite, kept below build/; a skip that says so where it cannot be had."""
    try:
        return debian_roots.packages(suite, package)
    except debian.NotOffered as missing:
        pytest.skip(str(missing))


def furnish(root: Path, libraries: Path, wrapper: Path, sim: Path, client: Path) -> None:
    """What the hook mounts, and what the container's program brings. libraries: the loader's folder in `root`."""
    box = root / BOX
    box.mkdir(parents=True)
    for source, target in (("libcuda.so", "libvgpu-driver.so"), ("libnvidia-ml.so", "libvgpu-nvml.so")):
        shutil.copy(sim / f"{source}.{create.DRIVER_VERSION}", box / target)
    (box / "quota").write_bytes(quota_file.quota("c0ffee", [part(0, QUOTA)], burst="hard", priority="normal"))
    (box / "usage").write_bytes(quota_file.usage_header().ljust(quota_file.USAGE_BYTES, b"\0"))
    for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
        shutil.copy(wrapper / name, libraries / name)
    shutil.copy(client, root / "cuda_client")
    create.create(root / "dev/vgpu-sim", 1, 80 * GIB)


def enforces(command: Sequence[str | Path], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done
    assert f"{QUOTA} bytes of memory" in done.stdout and f"took {QUOTA} bytes" in done.stdout
    assert "one byte more: CUDA_ERROR_OUT_OF_MEMORY" in done.stdout


@pytest.fixture
def built(needs_root: None) -> Path:
    missing = [name for name in BUILT if not (ROOT / name).exists()]
    if missing:
        pytest.skip(f"run `make build` first: {', '.join(missing)}")
    return ROOT / "build"


@pytest.mark.parametrize("suite", SUITES)
def test_it_enforces_on_every_debian(built: Path, tmp_path: Path, suite: str) -> None:
    """Roots of that suite's glibc alone: what else an image has does not matter."""
    root = tmp_path / "root"
    shutil.copytree(unpacked(suite, "libc6"), root, symlinks=True)
    for name in ("lib", "lib64"):
        if not (root / name).exists():  # suites whose packages count on a merged /usr
            (root / name).symlink_to(f"usr/{name}")
    furnish(root, (root / "lib" / rootfs.MULTIARCH), built / "wrapper", built / "sim", built / "fixtures/cuda_client")
    enforces(["/usr/sbin/chroot", root, "/cuda_client", "fill"])


def test_it_enforces_where_there_is_nothing_but_the_loader_and_glibc(built: Path, tmp_path: Path) -> None:
    """As in distroless images: no shell, no ld.so.cache, no /etc, no /proc, no /tmp."""
    root = tmp_path / "root"
    libraries = root / rootfs.LIBDIR
    libraries.mkdir(parents=True)
    (root / "lib64").mkdir()
    for name in rootfs.GLIBC:
        shutil.copy(Path("/usr/lib", rootfs.MULTIARCH, name).resolve(), libraries / name)
    loader = "ld-linux-x86-64.so.2"
    shutil.copy(Path("/lib64", loader).resolve(), root / "lib64" / loader)
    furnish(root, libraries, built / "wrapper", built / "sim", built / "fixtures/cuda_client")
    enforces(["/usr/sbin/chroot", root, "/cuda_client", "fill"])


def emulator() -> str:
    found = shutil.which("qemu-aarch64")
    if found is None:
        pytest.skip("no qemu-aarch64: apt-get install qemu-user")
    return found


def arm64_system() -> Path:
    return unpacked("bookworm", "libc6-arm64-cross") / "usr/aarch64-linux-gnu"


@pytest.fixture
def arm64_root(arm64: Path, tmp_path: Path) -> Path:
    """A system for arm64 with a slice, for `qemu-aarch64 -L`: paths are looked for below it first."""
    root = tmp_path / "root"
    shutil.copytree(arm64_system(), root, symlinks=True)
    furnish(root, root / "lib", arm64 / "wrapper", arm64 / "sim", arm64 / "cuda_client")
    return root


def test_it_enforces_on_arm64(arm64_root: Path) -> None:
    enforces([emulator(), "-L", arm64_root, arm64_root / "cuda_client", "fill"])


def test_it_fails_closed_on_arm64(arm64_root: Path) -> None:
    (arm64_root / BOX / "quota").unlink()
    command = [emulator(), "-L", arm64_root, arm64_root / "cuda_client", "info"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "cuInit: CUDA_ERROR_SYSTEM_NOT_READY (802)" in done.stderr, done


FAMILIES = ("linear", "managed", "pitch", "async", "pool", "physical", "array", "array3d", "mipmap")


def test_processes_share_a_quota_on_arm64(arm64: Path, arm64_root: Path) -> None:
    """Each way to take memory and give it back, and what a killed process held: by the loader's and the kernel's own
    means, locks and mappings of files too; only the processor is an emulated one."""
    clients = []
    try:
        for _ in range(2):
            command = [emulator(), "-L", str(arm64_root), str(arm64 / "client")]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            clients.append(Client(process).ready())
        one, other = clients
        for number, family in enumerate(FAMILIES):
            assert one.ask(f"alloc {family} {number} {4 * MIB}")[0] == OK, family
        held = bindings.read_usage(arm64_root / BOX / "usage").gpus[0].used_bytes
        assert held == other.ask("info")[2] - other.ask("info")[1] >= len(FAMILIES) * 4 * MIB
        for number, family in enumerate(FAMILIES):
            assert one.ask(f"free {family} {number}")[0] == OK, family
        assert one.ask(f"alloc linear 0 {2 * GIB}")[0] == OK
        assert other.ask(f"alloc linear 0 {2 * GIB}")[0] == OUT_OF_MEMORY
        one.kill()
        assert other.ask(f"alloc linear 0 {2 * GIB}")[0] == OK
        assert other.end() == ""
    finally:
        for client in clients:
            client.kill()


def test_the_ledger_model_on_arm64(tmp_path: Path) -> None:
    """Of weakly ordered memory the emulator says nothing: this is about the swap of 16 bytes, and alignment."""
    model = tmp_path / "model"
    flags = ["-D_GNU_SOURCE", "-Wno-missing-prototypes", f"-I{PACKAGE / 'src'}", f"-I{PACKAGE / 'include'}"]
    Toolchain(arch="aarch64").program([C_TESTS / "ledger_model.c"], model, flags=flags)
    command = [emulator(), "-L", arm64_system(), model, "1", "300"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "ok 300\n", done


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_no_symbol_version_above_glibc_2_17(request: pytest.FixtureRequest, plain_wrapper: Path, machine: str) -> None:
    folder = plain_wrapper if machine == "x86_64" else request.getfixturevalue("arm64") / "wrapper"
    for name in ("libcuda.so.1", "libnvidia-ml.so.1"):
        command = ["readelf", "-h", "-V", folder / name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert {"x86_64": "X86-64", "aarch64": "AArch64"}[machine] in said
        versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", said)}
        assert versions and max(versions) <= NEWEST_GLIBC


@pytest.fixture
def plain_wrapper(built: Path) -> Path:
    return built / "wrapper"
