"""Shim and launcher start at every container: what they load is a fixed, short list."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from start_path import PYTHON, Installed, install

# every module that the interpreter has loaded when the shim has done its work
ALLOWED = {
    # of the interpreter's own start
    "__main__", "_codecs", "_frozen_importlib", "_frozen_importlib_external", "_imp", "_io", "_signal", "_thread",
    "_warnings", "_weakref", "abc", "_abc", "builtins", "codecs", "encodings", "encodings.aliases", "encodings.utf_8",
    "io", "marshal", "sys", "zipimport", "encodings.ascii", "encodings.latin_1",
    # ours
    "__future__", "os", "os.path", "posix", "posixpath", "genericpath", "stat", "_stat", "_collections_abc", "time",
    "fcntl", "struct", "_struct", "_json", "_socket", "gc", "_sha256",
}  # fmt: skip
FORBIDDEN = {
    "json",
    "re",
    "dataclasses",
    "typing",
    "enum",
    "logging",
    "argparse",
    "pathlib",
    "subprocess",
    "ctypes",
    "contextlib",
}

PROBE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from oci_hook import shim
import os
def told(call, code):
    print("\\n".join(sorted(sys.modules)))
    sys.stdout.flush()
    os._exit(code)
shim._answer = told
sys.exit(shim.main(sys.argv[1:]))
"""


@pytest.fixture
def vgpu(tmp_path: Path) -> Installed:
    return install(tmp_path)


def loaded(vgpu: Installed) -> set[str]:
    """The modules at the moment when the shim lets the launcher become runc."""
    python = f"{vgpu.policy.prefix}/lib/vgpu/python"
    policy = f"{vgpu.policy.prefix}/etc/policy.json"
    command = [PYTHON, "-I", "-S", "-E", "-c", PROBE, python, "--policy", policy, "--runtime", "/bin/true"]
    command += [
        "--bundle",
        str(vgpu.bundle),
        "--config",
        "config.json",
        "--id",
        "x1",
        "--log",
        "",
        "--log-format",
        "json",
    ]
    command += ["--launcher", str(os.getpid()), "--answer", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_start_with_a_slice_loads_what_the_list_says(vgpu: Installed) -> None:
    vgpu.write_config("x1", labels={"vgpu.memory": "8GiB"})
    modules = {name for name in loaded(vgpu) if name.partition(".")[0] != "oci_hook"}
    assert modules & FORBIDDEN == set()
    assert modules - ALLOWED == set()
    assert vgpu.containers() == ["x1"]


def test_the_compiled_files_are_used(vgpu: Installed) -> None:
    vgpu.write_config("x1", labels={"vgpu.memory": "8GiB"})
    before = {path: path.stat().st_mtime_ns for path in Path(vgpu.policy.prefix).rglob("*.pyc")}
    assert any("shim" in path.name for path in before)
    loaded(vgpu)
    assert {path: path.stat().st_mtime_ns for path in Path(vgpu.policy.prefix).rglob("*.pyc")} == before
