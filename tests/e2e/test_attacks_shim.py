"""Labels, environments, ids and bundles that try to get around shim and policy, on real runc and crun."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_attacks import CUDA, WRAPPED, mark
from tests.harness import bundle, hostile
from tests.harness.hostile import Ground
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e
GIB = 1 << 30


def nothing(root: Path, canary: Path) -> None:
    """The image is harmless."""


def evil_library(folder: Path, proof: Path) -> None:
    """evil.so: whichever process maps it creates `proof`."""
    code = f'#include <fcntl.h>\n__attribute__((constructor)) static void evil(void) {{ creat("{proof}", 0644); }}'
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", folder / "evil.so"], input=code, text=True, check=True
    )


EVIL_ENV = [
    "LD_PRELOAD=./evil.so",
    "LD_AUDIT=./evil.so",
    "LD_LIBRARY_PATH=.",
    "GLIBC_TUNABLES=glibc.rtld.optional_static_tls=1",
    "PYTHONPATH=.",
    "PYTHONHOME=/",
    "PYTHONSTARTUP=./json.py",
    "PYTHONINSPECT=1",
    "PYTHONUSERBASE=.",
    "PATH=/evil:.",
]


@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "proc-self-cwd"])
def test_no_code_of_the_image_runs_in_ours(ground: Ground, absolute: bool, tmp_path: Path) -> None:
    """A8, A9, A10: environment and files of the image, seen from the root and from the bundle alike."""
    proof = tmp_path / "pwned"
    python = f"open({str(proof)!r}, 'w')\n"

    def edit(root: Path, canary: Path) -> None:
        for folder in (root, root.parent):
            evil_library(folder, proof)
            for name in ("json", "os", "sitecustomize", "usercustomize", "oci_hook", "_vgsys", "struct", "site"):
                (folder / f"{name}.py").write_text(python)
            (folder / "encodings").mkdir()
            (folder / "encodings/__init__.py").write_text(python)
            (folder / "evil").mkdir()
            for name in ("ldconfig", "mount", "python3", "runc"):
                (folder / "evil" / name).write_text(f"#!/bin/sh\n: > {proof}\n")
                (folder / "evil" / name).chmod(0o755)

    env = [entry.replace("=./", "=/proc/self/cwd/") if absolute else entry for entry in EVIL_ENV]
    # the program itself is the image's own affair: a static one, by its full path
    outcome = ground.attack(edit, "true", env=env, change=lambda config: config["process"].update(args=["/bin/true"]))
    assert outcome.code == "", outcome
    assert not proof.exists()


def allocated(ground: Ground, **options: Any) -> int:
    """Bytes that the container was given: read while it waits to be started."""
    box = bundle.make(ground.vgpu.runtime, ground.folder / "bundles", ground.tree, ["true"], **options)
    try:
        created = box.create()
        assert created.code == 0, created
        slices = ground.vgpu.allocation(box.id)["placement"]["slices"]
        return sum(part["memory_bytes"] for part in slices)
    finally:
        box.delete()


@pytest.fixture
def capped(stub_vgpu: Vgpu) -> Iterator[None]:
    """The admin allows 4 GiB per container."""
    path = stub_vgpu.prefix / "etc/policy.json"
    before = path.read_bytes()
    path.write_text(json.dumps({**json.loads(before), "max_memory_bytes": 4 * GIB}))
    yield
    path.write_bytes(before)


def docker_folder(ground: Ground, labels: dict[str, str]) -> tuple[str, list[dict[str, Any]]]:
    """(id, mounts) of a container for which Docker keeps config.v2.json with these labels."""
    identity = os.urandom(32).hex()
    folder = ground.folder / "docker" / identity
    folder.mkdir(parents=True)
    (folder / "hostname").write_text("box\n")
    config = folder / "config.v2.json"
    config.write_text(json.dumps({"Name": "/box", "Config": {"Image": "image", "Labels": labels}}))
    config.chmod(0o600)
    source = {
        "destination": "/etc/hostname",
        "type": "bind",
        "source": str(folder / "hostname"),
        "options": ["rbind", "ro"],
    }
    return identity, [source]


def test_the_cap_holds_for_what_an_image_brings(ground: Ground, capped: None) -> None:
    """A11, A12: LABEL and ENV of an image look like the user's own."""
    assert allocated(ground, annotations={"vgpu.memory": "64GiB"}) == 4 * GIB
    assert allocated(ground, env=["VGPU_MEMORY=64GiB"]) == 4 * GIB
    assert allocated(ground, env=["NVIDIA_GPU_MEMORY_LIMIT=65536"]) == 4 * GIB
    identity, mounts = docker_folder(ground, {"vgpu.memory": "64GiB"})
    assert allocated(ground, container_id=identity, mounts=mounts) == 4 * GIB


def test_a_label_wins_over_the_environment_of_the_image(ground: Ground) -> None:
    """A11: duplicates and zeros in the environment neither lift nor disable what was asked for."""
    env = ["VGPU_MEMORY=80GiB", "VGPU_MEMORY=70GiB", "NVIDIA_GPU_MEMORY_LIMIT=1"]
    assert allocated(ground, annotations={"vgpu.memory": "2GiB"}, env=env) == 2 * GIB
    identity, mounts = docker_folder(ground, {"vgpu.memory": "3GiB"})
    assert allocated(ground, container_id=identity, mounts=mounts, env=env) == 3 * GIB


HOSTILE_VALUES = [
    '4096\n"}],"x":{"', "4" * (1 << 20), "4GiB\0", "$(id)GiB", "８GiB",
    "1e999", "-1", "0x10GiB", "inf", "", "4 GiB", "4GB",
]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE_VALUES, ids=lambda value: repr(value[:12]))
def test_a_hostile_value_is_refused_in_one_line(ground: Ground, value: str) -> None:
    outcome = ground.attack(nothing, annotations={"vgpu.memory": value})  # A13
    assert outcome.code.startswith("VGPU-REQ-"), outcome
    assert "\n" not in outcome.message and len(outcome.message) < 1000
    assert outcome.message.isprintable()


def create(ground: Ground, box: bundle.Container, *, folder: Path, identity: str) -> subprocess.CompletedProcess[str]:
    command = box.command("create", "--bundle", str(folder), identity)
    return subprocess.run(
        command, cwd=ground.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("identity", ["../../etc", "..", ".", ".hidden", "a/b", "a b", "x" * 300, ""])
def test_an_id_that_is_no_name_is_refused(ground: Ground, identity: str) -> None:
    box = bundle.make(ground.vgpu.runtime, ground.folder / "bundles", ground.tree, ["true"], annotations=hostile.SLICE)
    done = create(ground, box, folder=box.folder, identity=identity)  # A14
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert ground.vgpu.containers() == []
    box.delete()


def test_a_bundle_path_with_spaces_works(ground: Ground) -> None:
    box = bundle.make(
        ground.vgpu.runtime, ground.folder / "create --bundle b", ground.tree, ["sh", "-c", mark(CUDA)],
        annotations=hostile.SLICE,
    )  # fmt: skip  # A14
    try:
        assert box.run().output.split() == [WRAPPED]
    finally:
        box.delete()


def config_is_link(box: bundle.Container) -> None:
    real = box.folder / "real.json"
    box.config.rename(real)
    box.config.symlink_to(real)


def config_is_huge(box: bundle.Container) -> None:
    config = json.loads(box.config.read_text())
    box.config.write_text(json.dumps(config) + " " * (65 << 20))


def config_is_cut(box: bundle.Container) -> None:
    box.config.write_bytes(box.config.read_bytes()[:-20])


def config_is_fifo(box: bundle.Container) -> None:
    box.config.unlink()
    os.mkfifo(box.config)


@pytest.mark.parametrize(
    "damage", [config_is_link, config_is_huge, config_is_cut, config_is_fifo], ids=lambda damage: damage.__name__
)
def test_a_config_that_is_not_plain_is_refused(ground: Ground, damage: Any) -> None:
    box = bundle.make(ground.vgpu.runtime, ground.folder / "bundles", ground.tree, ["true"], annotations=hostile.SLICE)
    damage(box)  # A15
    created = box.create()
    assert created.code != 0, created
    assert "Traceback" not in created.refusal
    assert ground.vgpu.containers() == []
    box.delete()


def test_what_we_do_not_know_in_a_config_stays(ground: Ground) -> None:
    box = bundle.make(ground.vgpu.runtime, ground.folder / "bundles", ground.tree, ["true"], annotations=hostile.SLICE)
    config = {"futureField": {"a": [1, None, "é"]}, **json.loads(box.config.read_text())}  # A15
    box.config.write_text(json.dumps(config))
    box.config.chmod(0o640)
    os.chown(box.config, 0, 1000)
    try:
        assert box.create().code == 0
        after = json.loads(box.config.read_text())
        assert list(after)[: len(config)] == list(config)
        assert after["futureField"] == config["futureField"]
        status = box.config.stat()
        assert (status.st_mode & 0o7777, status.st_gid) == (0o640, 1000)
    finally:
        box.delete()


@pytest.mark.parametrize("name", ["policy.json", "launcher.conf"])
def test_a_policy_that_others_can_write_is_not_believed(ground: Ground, name: str) -> None:
    path = ground.vgpu.prefix / "etc" / name  # A22
    mode = path.stat().st_mode & 0o7777
    path.chmod(0o666)
    try:
        box = bundle.make(ground.vgpu.runtime, ground.folder / "b", ground.tree, ["true"], annotations=hostile.SLICE)
        created = box.create()
        assert created.code != 0
        assert "VGPU-HOST-006" in created.refusal
        box.delete()
    finally:
        path.chmod(mode)


def replaced(path: Path) -> bytes:
    before = path.read_bytes()
    path.write_bytes(before + b"\0")
    return before


def test_a_driver_file_that_changed_since_the_scan_is_not_mounted(ground: Ground) -> None:
    """Between the shim's look and the hook's: a foreign prestart hook, which runs before ours, changes it."""
    driver = next((ground.vgpu.prefix / "lib/vgpu/sim").glob("libcuda.so.*"))
    before = driver.read_bytes()
    status = driver.stat()
    spoil = ["/bin/sh", "-c", f"printf x >> {driver}"]

    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {"prestart": [{"path": "/bin/sh", "args": spoil}]}

    try:
        outcome = ground.attack(nothing, change=change)
        assert outcome.code == "VGPU-DEP-005", outcome
    finally:
        driver.write_bytes(before)
        os.utime(driver, ns=(status.st_atime_ns, status.st_mtime_ns))
