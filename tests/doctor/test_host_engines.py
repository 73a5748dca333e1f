"""Engines, programs with known faults, hook files and CDI: each fault is named, and mended by its remedy."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import time
from pathlib import Path

import pytest
from prepared import DRIVER, LIBRARIES, Installation, Tree, fault, look, mended

from runtime_config import launcher_conf
from runtime_config.engines import crio, hooks_d, podman
from tests.harness import bundle, dockerd
from vgpu.doctor.finding import OK, UNSEEN
from vgpu.doctor.host import programs
from vgpu.doctor.host.machine import Host


def daemon_json(tree: Tree, launcher: Path | None, name: str = "etc/docker/daemon.json") -> Path:
    runtimes = {"vgpu": {"path": str(launcher)}} if launcher else {}
    return tree.write(name, json.dumps({"runtimes": runtimes}, indent=4) + "\n")


@pytest.fixture
def both(tree: Tree, here: Installation) -> Host:
    """The installation's policy, and for the rest the prepared root, in which its launcher is as well."""
    (tree.root / str(here.vgpu.prefix.parent).lstrip("/")).mkdir(parents=True)
    (tree.root / str(here.vgpu.prefix).lstrip("/")).symlink_to(here.vgpu.prefix)
    return dataclasses.replace(here.host, root=str(tree.root))


@pytest.mark.seeds("VGPU-ENG-001")
def test_docker_that_does_not_know_the_runtime(tree: Tree, here: Installation, both: Host) -> None:
    path = daemon_json(tree, None)
    tree.program("usr/sbin/dockerd", "")
    one = fault(both, "engines", "VGPU-ENG-001", "none of docker has the runtime vgpu")
    assert one.remedy == "vgpu configure docker --reload"
    here.follow(f"vgpu configure docker --config {path}")  # here no dockerd reads it
    mended(both, "engines", "VGPU-ENG-001")
    assert look(both, "Docker").state == OK


@pytest.mark.seeds("VGPU-ENG-002")
def test_docker_whose_runtime_leads_to_nothing(tree: Tree, here: Installation, both: Host) -> None:
    path = daemon_json(tree, Path("/opt/gone/bin/vgpu-runtime"))
    one = fault(both, "Docker", "VGPU-ENG-002", "/opt/gone/bin/vgpu-runtime", "no program")
    here.follow(one.remedy.replace("--reload", f"--config {path}"))
    mended(both, "Docker", "VGPU-ENG-002")


@pytest.mark.seeds("VGPU-ENG-002")
def test_docker_that_has_the_runtime_of_another_installation(tree: Tree, both: Host) -> None:
    other = tree.program("opt/other/bin/vgpu-runtime", "")
    daemon_json(tree, Path("/opt/other/bin/vgpu-runtime"))
    one = fault(both, "Docker", "VGPU-ENG-002", "/opt/other/bin/vgpu-runtime", "this installation is")
    assert one.severity == "warning" and other.exists()


@pytest.mark.seeds("VGPU-ENG-003")
def test_a_daemon_json_that_dockerd_does_not_read(tree: Tree, here: Installation, both: Host) -> None:
    daemon_json(tree, here.vgpu.runtime)
    other = tree.write("srv/daemon.json", "{}\n")
    tree.process(812, "dockerd", "/usr/sbin/dockerd", "--config-file=/srv/daemon.json", "-H", "fd://")
    one = fault(both, "Docker", "VGPU-ENG-003", "/etc/docker/daemon.json", "dockerd reads /srv/daemon.json")
    here.follow(one.remedy.replace("/srv/daemon.json", str(other)))
    tree.write("etc/docker/daemon.json", "{}\n")
    mended(both, "Docker", "VGPU-ENG-003")
    assert look(both, "Docker").state == OK


@pytest.mark.seeds("VGPU-CFG-006")
def test_a_setting_in_the_file_and_on_the_command_line(tree: Tree, here: Installation, both: Host) -> None:
    daemon_json(tree, here.vgpu.runtime)
    command = tree.process(812, "dockerd", "/usr/sbin/dockerd", "--add-runtime", "vgpu=/opt/vgpu/bin/vgpu-runtime")
    one = fault(both, "Docker", "VGPU-CFG-006", "(process 812)", "would no longer start")
    assert "move the flag into the file" in one.remedy
    command.write_text("/usr/sbin/dockerd\0")
    mended(both, "Docker", "VGPU-CFG-006")


@pytest.mark.seeds("VGPU-CFG-006")
def test_a_setting_that_only_the_unit_would_shadow_at_the_next_start(
    tree: Tree, here: Installation, both: Host
) -> None:
    daemon_json(tree, here.vgpu.runtime)
    unit = "[Service]\nExecStart=/usr/sbin/dockerd --add-runtime=vgpu=/opt/x -H fd://\n"
    path = tree.write("lib/systemd/system/docker.service", unit)
    fault(both, "Docker", "VGPU-CFG-006", "docker.service", "--add-runtime vgpu=/opt/x")
    path.write_text(unit.replace(" --add-runtime=vgpu=/opt/x", ""))
    mended(both, "Docker", "VGPU-CFG-006")


@pytest.mark.seeds("VGPU-ENG-002")
@pytest.mark.parametrize(("engine", "name"), [("podman", "Podman"), ("crio", "CRI-O")])
def test_podman_and_crio_whose_runtime_leads_to_nothing(
    tree: Tree, here: Installation, both: Host, engine: str, name: str
) -> None:
    path = tree.root / f"etc/{engine}.conf.d/vgpu.conf"
    path.parent.mkdir(parents=True)
    here.follow(f"vgpu configure {engine} --config {path}")
    wanted = {"podman": podman.DEFAULT_PATH, "crio": crio.DEFAULT_PATH}[engine]
    read = tree.write(wanted.lstrip("/"), path.read_text().replace(str(here.vgpu.runtime), "/gone/bin/vgpu-runtime"))
    one = fault(both, name, "VGPU-ENG-002", wanted, "/gone/bin/vgpu-runtime")
    assert one.remedy == f"vgpu configure {engine} --undo && vgpu configure {engine}"
    read.write_text(path.read_text())  # what these two commands leave
    mended(both, name, "VGPU-ENG-002")


@pytest.mark.seeds("VGPU-CFG-001", "VGPU-CFG-003")
@pytest.mark.parametrize(
    ("text", "code", "words"),
    [('{"runtimes": {},}\n', "VGPU-CFG-001", "line 1"), ('{"runtimes": []}\n', "VGPU-CFG-003", "runtimes=")],
)
def test_a_daemon_json_that_cannot_be_used(
    tree: Tree, here: Installation, both: Host, text: str, code: str, words: str
) -> None:
    tree.write("etc/docker/daemon.json", text)
    fault(both, "Docker", code, words)
    daemon_json(tree, here.vgpu.runtime)  # mended by hand, at the place that it names
    mended(both, "Docker", code)


def test_a_containerd_that_docker_has_started_for_itself_is_dockers(tree: Tree, both: Host) -> None:
    """Its file is Docker's own, in a version that no other containerd has, and nobody may edit it."""
    own = tree.write("run/docker/containerd/containerd.toml", "version = 0\n")
    tree.process(800, "dockerd", "/usr/bin/dockerd")
    tree.process(900, "containerd", "containerd", "--config", f"/{own.relative_to(tree.root)}")
    fault(both, "containerd", "VGPU-CFG-003", "version=0")  # as long as nobody says whose it is
    tree.write("proc/900/status", "Name:\tcontainerd\nPPid:\t800\n")
    mended(both, "containerd", "VGPU-CFG-003")


@pytest.mark.seeds("VGPU-CFG-004")
def test_containerd_that_was_not_restarted(tree: Tree, here: Installation, both: Host) -> None:
    tree.process(900, "containerd", "/usr/bin/containerd")
    path = tree.write("etc/containerd/config.toml", "version = 2\n")
    here.follow(f"vgpu configure containerd --config {path}")
    later = time.time() + 60
    os.utime(path, (later, later))
    one = fault(both, "containerd", "VGPU-CFG-004", "/etc/containerd/config.toml", "process 900")
    assert one.remedy == "systemctl restart containerd"
    os.utime(path, (1, 1))  # a containerd that started after the change
    mended(both, "containerd", "VGPU-CFG-004")


@pytest.mark.e2e
@pytest.mark.seeds("VGPU-CFG-004")
def test_dockerd_that_has_not_read_its_file(here: Installation, tmp_path: Path) -> None:
    """A real daemon: its own answer counts, and the remedy is what makes it read the file."""
    with dockerd.running(tmp_path / "docker", {}) as docker:
        host = dataclasses.replace(here.host, docker=docker.host, ask=True)
        here.follow(f"vgpu configure docker --config {docker.config}")
        one = fault(host, "Docker's API", "VGPU-CFG-004", docker.host, "at None", str(here.vgpu.runtime))
        assert one.remedy == "systemctl reload docker"  # which sends SIGHUP, as this does to the private daemon
        here.follow(f"vgpu configure docker --config {docker.config} --host {docker.host} --reload")
        mended(host, "Docker's API", "VGPU-CFG-004")
        assert "has the runtime vgpu" in look(host, "Docker's API").seen[0]


def test_a_dockerd_that_may_not_be_asked_is_not_seen(tree: Tree, both: Host) -> None:
    tree.process(812, "dockerd", "/usr/sbin/dockerd")
    host = dataclasses.replace(both, ask=True)
    (unseen,) = look(host, "Docker's API").unseen
    assert "root" in unseen.why


@pytest.mark.seeds("VGPU-RUN-001", "VGPU-RUN-002", "VGPU-RUN-003")
@pytest.mark.parametrize(
    ("name", "prints", "code", "cve", "fixed"),
    [("runc", "runc version 1.1.11", "VGPU-RUN-001", "CVE-2024-21626", "1.5.0"),
     ("runc", "runc version 1.4.0-rc2", "VGPU-RUN-001", "CVE-2025-31133", "1.5.0-rc3"),
     ("crun", "crun version 1.8.1", "VGPU-RUN-001", "CVE-2026-47766", "1.28"),
     ("nvidia-ctk", "NVIDIA Container Toolkit CLI version 1.17.7", "VGPU-RUN-002", "CVE-2025-23266", "1.17.8"),
     ("dockerd", "Docker version 26.1.4, build 5650f9b", "VGPU-RUN-003", "CVE-2024-41110", "26.1.5"),
     ("containerd", "containerd github.com/containerd/containerd v1.7.28 b98a3aa", "VGPU-RUN-003", "CVE-2024-25621",
      "1.7.29")],
)  # fmt: skip
def test_a_program_with_a_known_fault(tree: Tree, name: str, prints: str, code: str, cve: str, fixed: str) -> None:
    tree.program(f"usr/local/bin/{name}", prints)
    one = fault(tree.host, "programs", code, f"/usr/local/bin/{name}", cve)
    assert one.severity == "warning" and one.remedy.startswith("install ")
    old = next(word for word in prints.replace(",", "").split() if word.lstrip("v")[0].isdigit())
    tree.program(f"usr/local/bin/{name}", prints.replace(old, fixed))
    mended(tree.host, "programs", code)


def debian(tree: Tree, package: str, version: str, changelog: str | None) -> None:
    """The package's program is Debian's, as dpkg's own files say."""
    tree.write(f"var/lib/dpkg/info/{package}.list", f"/.\n/usr\n/usr/sbin\n/usr/sbin/{package}\n")
    status = f"Package: {package}\nStatus: install ok installed\nPriority: optional\nVersion: {version}\n\n"
    tree.write("var/lib/dpkg/status", f"Package: base\nStatus: install ok installed\nVersion: 9\n\n{status}")
    if changelog is not None:
        path = tree.write(f"usr/share/doc/{package}/changelog.Debian.gz", "")
        path.write_bytes(gzip.compress(changelog.encode()))


def test_a_fix_that_the_distribution_took_over_is_no_finding(tree: Tree) -> None:
    tree.program("usr/sbin/runc", "runc version 1.1.5+ds1")
    every = "\n".join(f"  * {one.cve}: mended" for one in programs.known()["runc"])
    debian(tree, "runc", "1.1.5+ds1-1+deb12u9", f"runc (1.1.5+ds1-1+deb12u9) bookworm-security\n\n{every}\n")
    check = look(tree.host, "programs")
    assert check.findings == ()
    assert "1.1.5+ds1-1+deb12u9, with its fixes" in check.seen[0]


def test_only_what_the_distribution_has_not_mended_is_told(tree: Tree) -> None:
    tree.program("usr/sbin/runc", "runc version 1.1.5+ds1")
    debian(tree, "runc", "1.1.5+ds1-1+deb12u1", "  * CVE-2024-21626: several container breakouts\n")
    one = fault(tree.host, "programs", "VGPU-RUN-001", "CVE-2024-45310", "1.1.5+ds1-1+deb12u1 names none")
    assert "CVE-2024-21626" not in one.evidence
    assert "--only-upgrade runc" in one.remedy


def test_a_package_without_its_changelog_is_not_judged(tree: Tree) -> None:
    tree.program("usr/sbin/runc", "runc version 1.1.5+ds1")
    debian(tree, "runc", "1.1.5+ds1-1+deb12u1", None)
    check = look(tree.host, "programs")
    assert check.state == UNSEEN and check.findings == ()
    assert "apt changelog runc" in check.unseen[0].why


def test_this_machines_own_programs_are_judged_by_their_real_answers(here: Installation) -> None:
    host = dataclasses.replace(here.host, ask=True)
    check = look(host, "programs")
    told = " ".join([*check.seen, *(f"{one.subject} {one.evidence}" for one in check.findings)])
    told += " ".join(one.subject for one in check.unseen)
    assert str(bundle.low_level("runc", here.vgpu.prefix)) in told


@pytest.mark.parametrize(
    ("has", "fixed", "expected"),
    [("1.1.11", ["1.1.12"], False), ("1.1.12", ["1.1.12"], True), ("1.2.0-rc.3", ["1.1.14", "1.2.0-rc3"], True),
     ("1.2.0-rc2", ["1.1.14", "1.2.0-rc3"], False), ("1.3.1", ["1.2.8", "1.3.3", "1.4.0-rc3"], False),
     ("1.5.0", ["1.2.8", "1.3.3", "1.4.0-rc3"], True), ("24.0.9", ["23.0.15", "25.0.6"], False),
     ("28.0.1", ["23.0.15", "25.0.6"], True), ("26.2.0", ["26.1.5", "27.1.1"], True)],
)  # fmt: skip
def test_a_fix_counts_in_its_own_line_of_releases(has: str, fixed: list[str], expected: bool) -> None:
    version = programs.version(f"version {has}+ds1")
    assert version is not None
    assert programs.is_fixed(version, tuple(fixed)) is expected


def test_every_row_of_known_faults_can_be_compared() -> None:
    assert {program.key for program in programs.PROGRAMS} == set(programs.known())
    for one in [one for rows in programs.known().values() for one in rows]:
        assert one.cve.startswith("CVE-") and one.what and one.source
        assert one.fixed and all(programs.version(text) for text in one.fixed)


def hook_file(tree: Tree, text: str) -> Path:
    return tree.write("usr/share/containers/oci/hooks.d/oci-nvidia-hook.json", text)


@pytest.mark.seeds("VGPU-ENG-004")
def test_a_hook_file_whose_program_is_gone(tree: Tree) -> None:
    program = "/usr/bin/nvidia-container-runtime-hook"
    path = hook_file(tree, json.dumps({"version": "1.0.0", "hook": {"path": program}, "when": {"always": True}}))
    one = fault(tree.host, "hook files", "VGPU-ENG-004", path.name, program)
    tree.follow(one.remedy.partition("or: ")[2])
    mended(tree.host, "hook files", "VGPU-ENG-004")


@pytest.mark.seeds("VGPU-ENG-004")
def test_our_own_hook_file_after_vgpu_was_moved_away(tree: Tree) -> None:
    tree.program("usr/bin/python3.11", "")
    script = tree.write("opt/vgpu/lib/vgpu/python/vgpu_hook.py", "")
    ours = hooks_d.HookFile("poststop", "/usr/bin/python3.11", "/opt/vgpu")
    tree.write(f"{hooks_d.FOLDER.lstrip('/')}/{ours.name}", ours.text())
    mended(tree.host, "hook files", "VGPU-ENG-004")
    script.unlink()
    fault(tree.host, "hook files", "VGPU-ENG-004", ours.name, "/opt/vgpu/lib/vgpu/python/vgpu_hook.py")
    script.touch()  # installed again
    mended(tree.host, "hook files", "VGPU-ENG-004")


@pytest.mark.seeds("VGPU-ENG-005")
@pytest.mark.parametrize("text", ["{", '{"version": "1.0.0"}', "[]"])
def test_a_hook_file_that_cannot_be_read(tree: Tree, text: str) -> None:
    path = hook_file(tree, text)
    one = fault(tree.host, "hook files", "VGPU-ENG-005", path.name)
    tree.follow(one.remedy.partition("or: ")[2])
    mended(tree.host, "hook files", "VGPU-ENG-005")


def cdi(tree: Tree, version: str) -> Path:
    library = f"/{LIBRARIES}/libcuda.so.{version}"
    spec = {
        "cdiVersion": "0.6.0", "kind": "nvidia.com/gpu",
        "devices": [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}}],
        "containerEdits": {"mounts": [{"hostPath": library, "containerPath": library}]},
    }  # fmt: skip
    return tree.write("etc/cdi/nvidia.yaml", json.dumps(spec))


@pytest.mark.seeds("VGPU-ENG-006")
def test_a_cdi_spec_whose_files_are_gone(tree: Tree) -> None:
    cdi(tree, "535.104.05")
    one = fault(tree.host, "CDI", "VGPU-ENG-006", "/etc/cdi/nvidia.yaml", "libcuda.so.535.104.05", "no longer there")
    assert one.remedy == "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    cdi(tree, DRIVER)  # what that writes
    mended(tree.host, "CDI", "VGPU-ENG-006")


@pytest.mark.seeds("VGPU-ENG-007")
def test_a_cdi_spec_of_another_driver(tree: Tree) -> None:
    tree.write(f"{LIBRARIES}/libcuda.so.535.104.05", "")
    cdi(tree, "535.104.05")
    fault(tree.host, "CDI", "VGPU-ENG-007", "driver 535.104.05", f"driver {DRIVER} is loaded")
    cdi(tree, DRIVER)
    mended(tree.host, "CDI", "VGPU-ENG-007")


@pytest.mark.seeds("VGPU-ENG-008")
@pytest.mark.parametrize("text", ["{", "- a\n- b\n", "devices: 7\n", "kind: [\n"])
def test_a_cdi_spec_that_cannot_be_read(tree: Tree, text: str) -> None:
    path = tree.write("etc/cdi/broken.yaml", text)
    one = fault(tree.host, "CDI", "VGPU-ENG-008", "/etc/cdi/broken.yaml")
    assert one.remedy == "mend or remove /etc/cdi/broken.yaml"
    path.unlink()
    mended(tree.host, "CDI", "VGPU-ENG-008")


@pytest.mark.seeds("VGPU-ENG-008")
def test_a_device_that_two_files_name(tree: Tree) -> None:
    first = cdi(tree, DRIVER)
    second = tree.write("etc/cdi/other.yaml", first.read_text())
    fault(tree.host, "CDI", "VGPU-ENG-008", "nvidia.com/gpu=0 is in /etc/cdi/nvidia.yaml too")
    second.unlink()  # as it says
    mended(tree.host, "CDI", "VGPU-ENG-008")


@pytest.mark.seeds("VGPU-ENG-007")
def test_our_own_spec_after_the_installation_changed(tree: Tree, here: Installation, both: Host) -> None:
    path = tree.root / "etc/cdi/vgpu.json"
    path.parent.mkdir(parents=True)
    here.follow(f"vgpu cdi generate --output {path}")
    for name in ("ctl", "gpu0", "gpu1"):  # its devices, which are files of the simulation
        device = tree.root / str(here.vgpu.state).lstrip("/") / "sim" / name
        device.parent.mkdir(parents=True, exist_ok=True)
        device.touch()
    tree.program(launcher_conf.python_of(str(here.vgpu.prefix)).lstrip("/"), "")  # its hooks' interpreter
    path.write_text(path.read_text().replace("poststop", "poststart"))
    one = fault(both, "CDI", "VGPU-ENG-007", "/etc/cdi/vgpu.json", "other devices or hooks")
    here.follow(one.remedy.replace("/etc/cdi", str(path.parent)))
    mended(both, "CDI", "VGPU-ENG-007")
