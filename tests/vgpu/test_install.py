"""vgpu install, by packaging/install.py: what it installs works, a second run changes nothing, and only what it
installed goes again."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from oci_hook import policy

ROOT = Path(__file__).parents[2]


def install(prefix: Path, *arguments: str, umask: int = 0o077) -> subprocess.CompletedProcess[str]:
    """An installation with state and log beside the prefix; by an admin whose umask lets nobody read."""
    folders = ["--state-dir", f"{prefix.parent}/state", "--log-dir", f"{prefix.parent}/log"]
    if "--uninstall" in arguments:
        folders = []
    return subprocess.run(
        [sys.executable, str(ROOT / "packaging/install.py"), "--prefix", str(prefix), *folders, *arguments],
        capture_output=True, text=True, timeout=60, umask=umask, check=False,
    )  # fmt: skip


@pytest.fixture
def prefix(tmp_path: Path, needs_build: None) -> Path:
    done = install(tmp_path / "vgpu", "--simulate-gpus", "2", "--runtime", "/bin/true")
    assert done.returncode == 0, done
    return tmp_path / "vgpu"


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every path below `folder` with its inode, mode and time of change."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[str(path.relative_to(folder))] = (status.st_ino, status.st_mode, status.st_mtime_ns)
    return found


def run(prefix: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command, from a folder and with an environment that have nothing to do with it."""
    return subprocess.run(
        [str(prefix / "bin/vgpu"), *arguments],
        capture_output=True, text=True, timeout=60, check=False, cwd="/", env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip


def test_everything_is_readable_by_all_and_writable_by_the_owner_alone(prefix: Path) -> None:
    for path in (prefix, *prefix.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            assert prefix in path.resolve().parents
            continue
        program = path.parent.name == "bin" or ".so" in path.name
        wanted = 0o755 if path.is_dir() or program else 0o644
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (wanted, os.geteuid()), path
    for name in ("bin/vgpu-runtime", "lib/vgpu/wrapper/libcuda.so.1", "lib/vgpu/wrapper/libnvidia-ml.so.1"):
        assert (prefix / name).is_file()
    for entry in ("vgpu_shim.py", "vgpu_hook.py", "oci_hook/hook.py", "oci_hook/__pycache__/hook.cpython-311.pyc"):
        assert (prefix / "lib/vgpu/python" / entry).is_file()
    assert len(list((prefix / "lib/vgpu/sim").glob("lib*.so.*"))) >= 2


@pytest.mark.parametrize("name", ["bin", "lib", "current", "etc/launcher.conf"])
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_is_not_ours_is_in_the_way_and_stays(tmp_path: Path, needs_build: None, name: str, kind: str) -> None:
    """--prefix /usr/local, or / where /bin is a link: refused before anything is written, and never taken out."""
    path = tmp_path / "vgpu" / name
    path.parent.mkdir(parents=True)
    path.mkdir() if kind == "folder" else path.symlink_to("../usr/bin")
    before = tree(tmp_path)
    done = install(tmp_path / "vgpu", "--runtime", "/bin/true")
    assert done.returncode == 5 and f"VGPU-INST-001: {path} is not of vgpu's making" in done.stderr, done
    assert "choose another --prefix" in done.stderr
    done = install(tmp_path / "vgpu", "--uninstall")
    assert done.stdout == f"{tmp_path}/vgpu: nothing of vgpu is installed there\n"
    assert tree(tmp_path) == before


def test_a_second_run_changes_nothing(prefix: Path) -> None:
    before = tree(prefix)
    done = install(prefix, "--simulate-gpus", "2", "--runtime", "/bin/true")
    assert done.stdout.endswith(" is installed and in use already\n")
    assert tree(prefix) == before


def test_the_installed_command_needs_nothing_of_its_surroundings(prefix: Path) -> None:
    before = set(tree(prefix))
    assert run(prefix, "config", "check").stdout == f"{prefix}/etc/config.yaml: good, in force\n"
    assert "2 GPUs" in run(prefix, "inventory", "--refresh").stdout
    assert run(prefix, "inventory").stdout.count("80 GiB") == 2
    assert run(prefix, "ps").returncode == 0
    assert set(tree(prefix)) == before  # no __pycache__ that an uninstall would not know of


def test_the_hot_path_loads_without_looking_at_its_sources(prefix: Path) -> None:
    """The compiled files are used as they are: a source that is newer, and even broken, is not read."""
    python = prefix / "lib/vgpu/python"
    (python / "oci_hook/ledger.py").write_text("this is not Python\n")
    code = f"import sys; sys.path.insert(0, {str(python)!r}); import oci_hook.ledger, oci_hook._vgsys"
    subprocess.run(["/usr/bin/python3", "-I", "-S", "-E", "-c", code], check=True, timeout=30)


def test_the_shim_starts_from_its_pack_and_without_it_from_its_modules(prefix: Path) -> None:
    python = prefix / "lib/vgpu/python"
    command = ["/usr/bin/python3", "-I", "-S", "-E", str(python / "vgpu_shim.py")]

    def says() -> str:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stderr

    usage = says()
    assert usage.startswith("usage: vgpu_shim.py")
    shim = python / "oci_hook/shim.py"
    shim.write_text(shim.read_text().replace("usage: vgpu_shim.py", "from the module: "))
    (python / "oci_hook/__pycache__/shim.cpython-311.pyc").unlink()
    assert says() == usage
    pack = python / "shim.pack"
    pack.write_bytes(b"\0" + pack.read_bytes()[1:])  # of another version of the interpreter
    assert says().startswith("from the module: ")
    pack.unlink()
    assert says().startswith("from the module: ")


def test_an_upgrade_leaves_the_files_that_are_in_use(prefix: Path) -> None:
    wrapper = prefix / "lib/vgpu/wrapper/libcuda.so.1"
    original = wrapper.read_bytes()
    wrapper.write_bytes(b"an older wrapper")
    stray = prefix / "lib/vgpu/python/oci_hook/foreign.py"
    stray.write_text("")
    with open(wrapper, "rb") as in_use:
        assert install(prefix, "--simulate-gpus", "2", "--runtime", "/bin/true").returncode == 0
        assert in_use.read() == b"an older wrapper"  # replaced by a rename, not written over
    assert wrapper.read_bytes() == original
    assert stray.exists()  # not ours to take away


def test_an_admins_configuration_survives_install_and_uninstall(prefix: Path) -> None:
    config = prefix / "etc/config.yaml"
    config.write_text(config.read_text() + "max: {memory: 16GiB}\n")
    mine = config.read_bytes()
    done = install(prefix, "--simulate-gpus", "4", "--runtime", "/bin/false")
    assert done.returncode == 0, done
    assert "is yours and stays" in done.stderr
    assert config.read_bytes() == mine
    compiled = policy.load(str(prefix / "etc/policy.json"))
    assert (compiled.max_memory_bytes, compiled.simulate_gpus, compiled.runtime) == (16 << 30, 2, "/bin/true")
    assert "runtime=/bin/true\n" in (prefix / "etc/launcher.conf").read_text()
    assert install(prefix, "--uninstall").returncode == 0
    assert sorted(tree(prefix)) == ["etc", "etc/config.yaml"]
    assert config.read_bytes() == mine


def test_uninstall_takes_only_what_was_installed(prefix: Path) -> None:
    (prefix / "notes").write_text("mine")
    assert install(prefix, "--uninstall").returncode == 0
    assert sorted(tree(prefix)) == ["notes"]
    (prefix / "notes").unlink()
    again = install(prefix, "--uninstall")
    assert (again.returncode, "nothing of vgpu" in again.stdout) == (0, True)


def test_uninstall_leaves_nothing(prefix: Path) -> None:
    assert install(prefix, "--uninstall").returncode == 0
    assert not prefix.exists()


def refused(done: subprocess.CompletedProcess[str], code: str, *words: str) -> None:
    assert done.returncode == 5, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"vgpu: {code}: ")
    for word in words:
        assert word in done.stderr


def test_what_cannot_be_installed_is_refused_before_anything_is_written(tmp_path: Path, needs_build: None) -> None:
    prefix = tmp_path / "vgpu"
    refused(install(prefix, "--build", str(tmp_path)), "VGPU-INST-001", "has not been built", "make build")
    refused(install(prefix, "--runtime", "/no/runc"), "VGPU-CFG-003", "/no/runc", "is not a program")
    refused(install(prefix, "--simulate-memory", "80", "--simulate-gpus", "1"), "VGPU-CFG-003", "simulate.memory")
    refused(install(prefix, "--state-dir", "state"), "VGPU-CFG-003", "state_dir")
    refused(install(prefix, "--python", "/bin/true"), "VGPU-INST-001", "/true", "no Python")
    assert not prefix.exists()
    prefix.write_text("a file")
    refused(install(prefix), "VGPU-INST-001", str(prefix))


def test_an_interpreter_for_which_the_hook_was_not_built_is_refused(tmp_path: Path, needs_build: None) -> None:
    """A program that loads nothing stands for a Python of another version."""
    other = tmp_path / "python3"
    other.write_text(
        '#!/bin/sh\ncase "$*" in *compileall*) exec /usr/bin/python3 "$@";; esac\necho broken >&2; exit 1\n'
    )
    other.chmod(0o755)
    refused(install(tmp_path / "vgpu", "--python", str(other)), "VGPU-INST-001", "cannot load", "broken")


def test_the_installed_command_calls_itself_vgpu(prefix: Path) -> None:
    done = subprocess.run([prefix / "bin/vgpu", "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert "Usage: vgpu " in done.stdout
