"""The launcher becomes runc at once unless the bundle may hold a request, and never loops or hides a failure."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest
from start_path import ID, ROOT, Installed, install

LABELS = {"vgpu.memory": "8GiB", "vgpu.cores": "30"}


@pytest.fixture
def vgpu(tmp_path: Path) -> Installed:
    return install(tmp_path)


@pytest.fixture
def no_shim(vgpu: Installed) -> Installed:
    """Whoever reaches the shim here fails: its interpreter is one that ends without a word."""
    conf = vgpu.base / "prefix/etc/launcher.conf"
    conf.write_text(conf.read_text().replace("/usr/bin/python3", "/bin/false"))
    return vgpu


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["--root", "create", "state", ID],
        ["--root=/x", "start", ID],
        ["--log", "/dev/null", "--systemd-cgroup", "delete", "--force", ID],
        ["exec", "--process", "create", ID, "create"],
        ["kill", ID, "9"],
        ["list"],
        [],
        ["create"],
        ["create", "--help"],
        ["create", "", "-b", "/nowhere"],
    ],
)
def test_every_other_call_becomes_runc_word_for_word(no_shim: Installed, words: list[str]) -> None:
    done = no_shim.run(*words)
    assert done.returncode == 0, done.stderr
    assert no_shim.called() == words
    assert not (no_shim.base / "state/containers").exists()


def test_a_create_that_asks_for_nothing_becomes_runc_and_touches_nothing(no_shim: Installed) -> None:
    before = no_shim.write_config(labels={"maintainer": '<a&b>\t"x"'}, env=["A=<&>", 'B="\\\\"'])
    (no_shim.bundle / "config.json").write_bytes(before)
    found = os.stat(no_shim.bundle / "config.json")
    assert no_shim.create().returncode == 0
    words = no_shim.called()
    assert words is not None
    assert words[-1] == ID
    assert (no_shim.bundle / "config.json").read_bytes() == before
    after = os.stat(no_shim.bundle / "config.json")
    assert (found.st_ino, found.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert no_shim.containers() == []


def test_the_environment_is_passed_on_with_one_variable_added(no_shim: Installed) -> None:
    no_shim.write_config()
    no_shim.create(env={"A": "1", "LD_LIBRARY_PATH": "/x", "NOTIFY_SOCKET": "/s"})
    lines = set((no_shim.base / "env").read_text().splitlines())
    ours = {line for line in lines if not line.startswith(("PWD=", "SHLVL=", "_=", "OLDPWD="))}  # the script's own
    assert ours == {"A=1", "LD_LIBRARY_PATH=/x", "NOTIFY_SOCKET=/s", "VGPU_LAUNCHER_DEPTH=1"}


@pytest.mark.parametrize(
    "asking",
    [
        {"labels": LABELS},
        {"annotations": {"vgpu.memory": "8GiB"}},
        {"env": ["VGPU_MEMORY=8GiB"]},
        {"env": ["NVIDIA_GPU_MEMORY_LIMIT=8192"]},
        {"env": ["CUDA_DEVICE_MEMORY_LIMIT_0=8g"]},
        {"labels": {"vgpu.memroy": "8GiB"}},
    ],
)
def test_what_may_be_a_request_goes_to_the_shim(no_shim: Installed, asking: dict[str, object]) -> None:
    no_shim.write_config(**asking)
    line = refusal(no_shim, no_shim.create(), "VGPU-HOST-004")
    assert "the shim ended before it had an answer" in line


@pytest.mark.parametrize(
    "text", [r'{"annotations":{"\u0076gpu.memory":"8GiB"}}', r'{"a":"\/etc\/hosts"}', r'{"a":"VGPU\u005fMEMORY"}', ""]
)
def test_a_name_written_with_escapes_goes_to_the_shim(no_shim: Installed, text: str) -> None:
    no_shim.bundle.mkdir()
    (no_shim.bundle / "config.json").write_text(text)
    assert no_shim.create().returncode == 5


@pytest.mark.parametrize("file", ["hostname", "hosts", "resolv.conf"])
def test_dockers_labels_are_found_beside_any_of_its_three_files(no_shim: Installed, file: str) -> None:
    no_shim.write_config(labels=LABELS)
    text = (no_shim.bundle / "config.json").read_text().replace('/hosts"', f'/{file}"')
    (no_shim.bundle / "config.json").write_text(text)
    assert no_shim.create().returncode == 5
    assert no_shim.create(container="another").returncode == 0  # not in a folder of that name: not its labels


def test_what_cannot_be_looked_at_goes_to_the_shim(no_shim: Installed) -> None:
    no_shim.bundle.mkdir()
    assert no_shim.create().returncode == 5  # no config.json
    os.mkfifo(no_shim.bundle / "config.json")
    assert no_shim.create().returncode == 5  # and no waiting for a writer
    (no_shim.bundle / "config.json").unlink()
    no_shim.write_config(labels={"a": "b"})
    docker = no_shim.base / f"docker/containers/{ID}/config.v2.json"
    docker.unlink()
    docker.mkdir()
    assert no_shim.create().returncode == 5


BUNDLE_FORMS = [
    ["create", "--bundle", "{}", ID],
    ["create", "--bundle={}", ID],
    ["create", "-b", "{}", ID],
    ["create", "-b{}", ID],
    ["create", "-bundle", "{}", ID],
    ["create", "--bund={}", ID],
    ["create", ID, "--bundle", "{}"],
    ["--root", "/x", "--debug", "create", "--no-pivot", "--pid-file=/x", "--bundle", "{}", "--", ID],
    ["--systemd-cgroup", "--log=/dev/null", "run", "-d", "--keep", "--bundle", "{}", ID],
    ["--an-option-of-tomorrow", "value", "create", "--bundle", "{}", ID],
    ["--cgroup-manager", "disabled", "--rootless", "false", "create", "-b", "{}", "--preserve-fds", "3", ID],
    ["--log-level", "run", "create", "--console-socket", "create", "-b", "{}", ID],
]


@pytest.mark.parametrize("words", BUNDLE_FORMS)
def test_the_bundle_is_found_in_each_form_that_runc_or_crun_takes(vgpu: Installed, words: list[str]) -> None:
    vgpu.write_config(labels=LABELS)
    filled = [word.replace("{}", str(vgpu.bundle)) for word in words]
    done = vgpu.run(*filled)
    assert done.returncode == 0, done.stderr
    assert vgpu.called() == filled
    assert vgpu.config()["annotations"]["vgpu.memory"] == "8GiB"


def test_a_bundle_folder_may_be_named_anything(vgpu: Installed, tmp_path: Path) -> None:
    vgpu.write_config(labels=LABELS)
    for name in ("create", "with space", "--bundle"):
        folder = tmp_path / name
        shutil.copytree(vgpu.bundle, folder)
        assert vgpu.run("create", "--bundle", str(folder), ID).returncode == 0
        assert "vgpu" in (folder / "config.json").read_text()
    vgpu.write_config(labels=LABELS)
    assert vgpu.run("create", ID, cwd=vgpu.bundle).returncode == 0  # no --bundle: the current folder
    assert "vgpu.memory" in vgpu.config()["annotations"]


def test_crun_takes_another_name_for_config_json(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    os.rename(vgpu.bundle / "config.json", vgpu.bundle / "other.json")
    assert vgpu.run("create", "--config", "other.json", "-b", str(vgpu.bundle), ID).returncode == 0
    assert "vgpu.memory" in (vgpu.bundle / "other.json").read_text()


def refusal(vgpu: Installed, done: subprocess.CompletedProcess[str], code: str) -> str:
    """The one line, the same on standard error and in the runtime's log."""
    assert done.returncode == 5, done.stderr
    assert vgpu.called() is None
    line = done.stderr.removesuffix("\n")
    assert "\n" not in line
    assert line.startswith(f"vgpu: {code}: ")
    assert "; to mend it: " in line
    assert "no such file or directory" not in line.lower()
    assert [entry["msg"] for entry in vgpu.log()] == [line]
    assert vgpu.log()[0]["level"] == "error"
    return line


def test_it_refuses_to_be_its_own_runtime(vgpu: Installed) -> None:
    conf = vgpu.base / "prefix/etc/launcher.conf"
    os.link(vgpu.launcher, vgpu.base / "another-name")
    for name in (vgpu.launcher, vgpu.base / "another-name"):
        conf.write_text(conf.read_text().replace(str(vgpu.runc), str(name)))
        refusal(vgpu, vgpu.create(), "VGPU-HOST-004")


def test_a_script_that_leads_back_is_noticed(vgpu: Installed) -> None:
    vgpu.write_config()
    vgpu.runc.write_text(f'#!/bin/sh\nexec {vgpu.launcher} "$@"\n')
    assert "leads back" in refusal(vgpu, vgpu.create(), "VGPU-HOST-004")


def test_a_runtime_that_cannot_be_started(vgpu: Installed) -> None:
    vgpu.write_config()
    vgpu.runc.chmod(0o644)
    refusal(vgpu, vgpu.create(), "VGPU-HOST-004")
    vgpu.runc.write_bytes(b"\x7fELF nonsense")
    vgpu.runc.chmod(0o755)
    refusal(vgpu, vgpu.create(), "VGPU-HOST-004")
    vgpu.runc.unlink()
    refusal(vgpu, vgpu.create(), "VGPU-HOST-004")


def test_an_interpreter_that_cannot_be_started(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    conf = vgpu.base / "prefix/etc/launcher.conf"
    conf.write_text(conf.read_text().replace("/usr/bin/python3", "/no/python"))
    said = refusal(vgpu, vgpu.create(), "VGPU-HOST-004")
    assert "/no/python cannot be started" in said and "install the interpreter again" in said


def test_a_shim_that_is_killed_is_told(vgpu: Installed) -> None:
    vgpu.write_config(labels=LABELS)
    (vgpu.base / "prefix/lib/vgpu/python/vgpu_shim.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    assert "the shim ended before it had an answer" in refusal(vgpu, vgpu.create(), "VGPU-HOST-004")


def test_a_configuration_that_others_can_write_is_not_believed(vgpu: Installed) -> None:
    conf = vgpu.base / "prefix/etc/launcher.conf"
    conf.chmod(0o666)
    refusal(vgpu, vgpu.create(), "VGPU-HOST-006")
    conf.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(conf, 12345, 0)
        refusal(vgpu, vgpu.create(), "VGPU-HOST-006")
        os.chown(conf, 0, 0)
    (vgpu.base / "prefix/lib/vgpu/python/vgpu_shim.py").chmod(0o666)
    vgpu.write_config(labels=LABELS)
    refusal(vgpu, vgpu.create(), "VGPU-HOST-006")


@pytest.mark.parametrize("text", ["", "runtime=runc\n", "runtime=/a\npython=/b\nshim=/c\n", "x" * 70_000])
def test_a_configuration_that_is_incomplete(vgpu: Installed, text: str) -> None:
    (vgpu.base / "prefix/etc/launcher.conf").write_text(text)
    refusal(vgpu, vgpu.create(), "VGPU-HOST-001")
    (vgpu.base / "prefix/etc/launcher.conf").unlink()
    refusal(vgpu, vgpu.create(), "VGPU-HOST-001")


def test_it_is_static_and_adds_little(no_shim: Installed) -> None:
    header = subprocess.run(["readelf", "-ld", str(no_shim.launcher)], capture_output=True, text=True, check=True)
    assert "INTERP" not in header.stdout
    assert "NEEDED" not in header.stdout
    assert no_shim.launcher.stat().st_mode & stat.S_ISUID == 0
    no_shim.runc.unlink()
    no_shim.runc.symlink_to("/bin/true")
    times = []
    for _ in range(20):
        start = time.perf_counter()
        no_shim.create()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1  # a coarse net; benchmarks/start.py measures


def test_it_builds_without_a_warning_by_gcc_too(tmp_path: Path) -> None:
    from oci_hook.launcher.build import build

    if shutil.which("gcc") is None:
        if os.environ.get("CI"):
            pytest.fail("gcc is missing")
        pytest.skip("gcc is missing")
    assert build(tmp_path, cc="gcc").stat().st_mode & 0o111


def test_formatting_is_clang_formats() -> None:
    if shutil.which("clang-format") is None:
        if os.environ.get("CI"):
            pytest.fail("clang-format is missing")
        pytest.skip("clang-format is missing")
    sources = [str(path) for path in sorted((ROOT / "oci_hook/launcher").glob("*.[ch]"))]
    subprocess.run(["clang-format", "--dry-run", "-Werror", *sources], check=True, timeout=60)
