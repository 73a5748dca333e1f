"""vgpu upgrade, rollback, uninstall and versions: which version is in use, who stands on which, and what stays."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from oci_hook import ledger, policy
from tests.harness import releases
from tests.vgpu.test_install import install, refused, tree
from vgpu.installer import tenants

QUOTA = "lib/vgpu/python/oci_hook/quota_file.py"
NEWER_LAYOUT = (QUOTA, "QUOTA_MAGIC, QUOTA_VERSION = 0x51574756, 1", "QUOTA_MAGIC, QUOTA_VERSION = 0x51574756, 2")


class Host:
    """One prefix, with state and log beside it, and releases to upgrade to."""

    def __init__(self, base: Path) -> None:
        self.base, self.prefix, self.state = base, base / "vgpu", base / "state"
        done = install(self.prefix, "--simulate-gpus", "1", "--runtime", "/bin/true")
        assert done.returncode == 0, done

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.prefix / "bin/vgpu"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    @property
    def home(self) -> Path:
        return (self.prefix / "current").resolve()

    def release(self, number: str, *changes: tuple[str, str, str]) -> str:
        return str(releases.later(self.home, self.base / number, number, *changes))

    def upgrade(self, number: str, *changes: tuple[str, str, str]) -> Path:
        done = self("upgrade", "--from", self.release(number, *changes))
        assert done.returncode == 0, done
        return self.home

    def container(self, name: str, home: Path, quota: int = 1, pid: int | None = None) -> Path:
        """What the hook leaves of a container that runs on the version in `home`; this process stands for its init."""
        folder = self.state / "containers" / name
        (folder / "box").mkdir(parents=True)
        owner = ledger.process(pid or os.getpid())
        assert owner is not None
        entry = {"schema": 1, "id": name, "name": f"the-{name}", "state": "armed",
                 "init": {"pid": owner.pid, "start_ticks": owner.start_ticks}}  # fmt: skip
        (folder / "allocation.json").write_text(json.dumps(entry))
        plan = {"mounts": [{"source": f"{home}/lib/vgpu/wrapper/libcuda.so.1"}]}
        (folder / "plan.json").write_text(json.dumps(plan))
        (folder / "box/quota").write_bytes(struct.pack("<II", 0x51574756, quota))
        (folder / "box/usage").write_bytes(struct.pack("<II", 0x55574756, 2))
        return folder

    def versions(self) -> dict[str, Sequence[str]]:
        """Release -> what `vgpu versions` says of it, and the containers on it."""
        found = json.loads(self("versions", "--json").stdout)
        return {
            one["release"]: [*(word for word in ("current", "previous") if one[word]), *one["containers"]]
            for one in found["versions"]
        }


@pytest.fixture
def host(tmp_path: Path, needs_build: None) -> Host:
    return Host(tmp_path)


def ended(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def test_there_and_back(host: Host) -> None:
    first, kept = host.home, tree(host.home)
    second = host.upgrade("0.2.0")
    assert tree(first) == kept  # not one file was touched
    assert host.versions() == {"0.1.0": ["previous"], "0.2.0": ["current"]}
    assert host("version").stdout == "0.2.0\n"
    assert (host.prefix / "bin/vgpu-runtime").resolve() == second / "bin/vgpu-runtime"
    loaded = policy.load(str(host.prefix / "etc/policy.json"))
    assert (loaded.prefix, loaded.simulate_gpus) == (str(second), 1)
    assert f"shim={second}/lib/vgpu/python/vgpu_shim.py\n" in (host.prefix / "etc/launcher.conf").read_text()

    config = host.prefix / "etc/config.yaml"
    config.write_text(config.read_text() + "max: {memory: 16GiB}\n")
    done = host("rollback")
    assert done.returncode == 0 and "0.1.0-" in done.stdout, done
    assert host.versions() == {"0.1.0": ["current"], "0.2.0": ["previous"]}
    assert policy.load(str(host.prefix / "etc/policy.json")).max_memory_bytes == 16 << 30  # of today, not of then
    assert host("config", "check").stdout == f"{config}: good, in force\n"


def test_a_version_that_does_not_know_a_setting_is_not_gone_back_to(host: Host) -> None:
    """Else the caps of config.yaml would silently not hold."""
    setting = '    "log_dir": Setting('
    more = f'    "new_dir": Setting("log_dir", _path, "a path"),\n{setting}'
    second = host.upgrade("0.2.0", ("lib/vgpu/cli/runtime_config/policy_file.py", setting, more))
    config = host.prefix / "etc/config.yaml"
    config.write_text(config.read_text() + "new_dir: /var/lib/vgpu\n")
    before = tree(host.prefix)
    refused(host("rollback"), "VGPU-INST-002", "0.1.0-", "cannot use config.yaml", "VGPU-CFG-003", "new_dir")
    assert tree(host.prefix) == before and host.home == second


def test_what_is_not_there_cannot_be_gone_to(host: Host) -> None:
    refused(host("rollback"), "VGPU-INST-001", "no version", "vgpu versions")
    refused(host("rollback", "--to", "7"), "VGPU-INST-001", "'7'")
    refused(host("upgrade", "--prefix", str(host.base / "else")), "VGPU-INST-001", "nothing of vgpu")
    refused(host("upgrade", "--from", str(host.base)), "VGPU-INST-001", "holds no vgpu")
    assert host("rollback", "--to", host.home.name).stdout.endswith("is in use already\n")
    (host.home / "manifest.json").write_text('{"schema": 2}')
    refused(host("versions"), "VGPU-INST-001", "layout 2", f"{host.home}/bin/vgpu")


def test_a_dry_run_says_what_would_be_done_and_does_nothing(host: Host) -> None:
    release = host.release("0.2.0")
    before = tree(host.prefix)
    done = host("upgrade", "--from", release, "--dry-run")
    assert done.returncode == 2 and "0.2.0-" in done.stdout and "would be in use" in done.stdout, done
    same = host("upgrade", "--dry-run")
    assert same.returncode == 0 and "nothing to do" in same.stdout, same
    assert host("uninstall", "--dry-run").returncode == 2
    assert tree(host.prefix) == before
    host("upgrade", "--from", release)
    before = tree(host.prefix)
    assert host("rollback", "--dry-run").returncode == 2
    assert tree(host.prefix) == before


@pytest.mark.seeds("VGPU-INST-002")
def test_containers_that_the_other_version_cannot_read_stop_the_switch_both_ways(host: Host) -> None:
    folder = host.container("old", host.home)
    newer = host.release("0.2.0", NEWER_LAYOUT)
    first = host.home
    refusal = host("upgrade", "--from", newer)
    refused(refusal, "VGPU-INST-002", "old (the-old)", "quota has layout 1, 2 known", "--force")
    assert host.home == first
    forced = host("upgrade", "--from", newer, "--force")
    assert forced.returncode == 0 and "cannot manage old (the-old)" in forced.stderr, forced
    ended(folder)
    host.container("new", host.home, quota=2)
    refused(host("rollback"), "VGPU-INST-002", "new (the-new)", "quota has layout 2, 1 known")
    assert host.versions() == {"0.1.0": ["previous"], "0.2.0": ["current", "new"]}


def test_a_version_goes_when_no_container_needs_it(host: Host) -> None:
    first, folder = host.home, host.container("busy", host.home)
    host.upgrade("0.2.0")
    host.upgrade("0.3.0")
    assert host.versions() == {"0.1.0": ["busy"], "0.2.0": ["previous"], "0.3.0": ["current"]}
    shown = host("versions").stdout
    assert "ON ANOTHER VERSION" in shown and "the-busy" in shown
    assert "in use by busy (the-busy)" in host("versions", "prune").stdout and first.is_dir()
    ended(folder)
    assert host("versions", "prune", "--dry-run").returncode == 2 and first.is_dir()
    assert host("versions", "prune").returncode == 0
    assert host.versions() == {"0.2.0": ["previous"], "0.3.0": ["current"]}
    assert sorted(os.listdir(host.prefix / "versions")) == sorted({host.home.name, host("versions").stdout.split()[3]})


@pytest.mark.seeds("VGPU-INST-003")
def test_uninstall_waits_for_the_containers_or_leaves_what_they_need(host: Host) -> None:
    first, folder = host.home, host.container("busy", host.home)
    host.upgrade("0.2.0")
    host.upgrade("0.3.0")
    before = tree(host.prefix)
    refused(host("uninstall"), "VGPU-INST-003", "busy (the-busy)", "--force")
    assert tree(host.prefix) == before
    forced = host("uninstall", "--force")
    assert forced.returncode == 0 and "stays in part, for busy (the-busy)" in forced.stderr, forced
    assert host.versions() == {"0.1.0": ["busy"], "0.3.0": ["current"]}  # and what the engine ends it by
    assert first.is_dir() and folder.is_dir()
    ended(folder)
    assert host("uninstall").returncode == 0
    assert not host.prefix.exists() and not host.state.exists()


def test_uninstall_takes_our_keys_out_of_the_engines_files_to_the_byte(host: Host) -> None:
    docker, containerd = host.base / "daemon.json", host.base / "config.toml"
    data_root = f'{{\n\t"data-root": "{host.base}/no-docker"\n}}\n'  # where no container is
    texts = {docker: data_root, containerd: "version = 2 # ours\n"}
    for path, text in texts.items():
        path.write_text(text)
    others = host.base / "others.json"
    others.write_text('{"runtimes": {"vgpu": {"path": "/elsewhere/bin/vgpu-runtime"}}}')
    assert host("configure", "docker", "--config", str(docker)).returncode == 0
    assert host("configure", "containerd", "--config", str(containerd)).returncode == 0
    podman, crio, spec, hooks = (host.base / name for name in ("vgpu.conf", "99-vgpu.conf", "cdi.json", "hooks.d"))
    hooks.mkdir()
    assert host("inventory", "--refresh").returncode == 0
    for command in (
        ("configure", "podman", "--config", str(podman), "--hooks", "--hooks-dir", str(hooks)),
        ("configure", "crio", "--config", str(crio)),
        ("cdi", "generate", "--output", str(spec)),
    ):
        done = host(*command)
        assert done.returncode == 0, done
    named = {"docker": docker, "containerd": containerd, "podman": podman, "crio": crio, "cdi": spec}
    named |= {f"{stage}-hook": hooks / f"vgpu-{stage}.json" for stage in ("createRuntime", "poststop")}
    files = [word for name, path in named.items() for word in ("--engine-config", f"{name}={path}")]
    assert all(path.exists() for path in named.values())
    shown = host("uninstall", *files, "--dry-run")
    assert shown.returncode == 2 and f'-\t\t\t"path": "{host.prefix}/bin/vgpu-runtime"' in shown.stdout, shown
    assert host("uninstall", *files).returncode == 0
    assert {path: path.read_text() for path in texts} == texts
    assert not any(path.exists() for path in named.values() if path not in texts)
    assert not list(host.base.glob("*.vgpu-backup")) and not host.prefix.exists()
    wrong = install(host.prefix, "--uninstall", "--engine-config", "podman=")
    assert wrong.returncode == 2 and "engine-config" in wrong.stderr


def test_an_engines_file_that_names_another_prefix_is_left_alone(host: Host) -> None:
    path = host.base / "daemon.json"
    path.write_text('{"runtimes": {"vgpu": {"path": "/elsewhere/bin/vgpu-runtime"}}}')
    before = path.read_bytes()
    assert host("uninstall", "--engine-config", f"docker={path}").returncode == 0
    assert path.read_bytes() == before


def test_the_audit_log_and_an_admins_configuration_go_with_purge_only(host: Host) -> None:
    log = host.base / "log"
    log.mkdir(exist_ok=True)
    (log / "audit.jsonl").write_text("{}\n")
    config = host.prefix / "etc/config.yaml"
    config.write_text(config.read_text() + "# mine\n")
    done = host("uninstall")
    assert "is yours and stays" in done.stderr and "has the audit log and stays" in done.stderr, done
    assert config.exists() and (log / "audit.jsonl").exists()
    again = install(host.prefix, "--runtime", "/bin/true")
    assert again.returncode == 0 and config.read_text().endswith("# mine\n"), again
    assert host("uninstall", "--purge").returncode == 0
    assert not host.prefix.exists() and not log.exists()


def test_units_name_the_prefix_and_go_unless_they_were_changed(host: Host) -> None:
    units = host.base / "units"
    assert host("upgrade", "--units", str(units)).returncode == 0
    monitor = (units / "vgpu-monitor.service").read_text()
    assert f"ExecStart={host.prefix}/bin/vgpu monitor\n" in monitor and "/opt/vgpu" not in monitor
    (units / "vgpu-exporter.service").write_text("# mine\n")
    assert host("uninstall", "--units", str(units)).returncode == 0
    assert os.listdir(units) == ["vgpu-exporter.service"]


def test_containers_that_podman_started_by_us_are_seen(tmp_path: Path) -> None:
    """As Podman and CRI-O call conmon; a folder stands for /proc."""
    for pid, words in {
        "7": ["/usr/bin/conmon", "--api-version", "1", "-c", "one", "-u", "one", "-r", "/opt/vgpu/bin/vgpu-runtime"],
        "8": ["/usr/bin/conmon", "-c", "two", "-r", "/usr/bin/crun"],
        "9": ["conmon", "--cid", "three", "--runtime", "/opt/vgpu/bin/vgpu-runtime"],
    }.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "comm").write_text("conmon\n")
        (tmp_path / pid / "cmdline").write_text("\0".join(words) + "\0")
    assert tenants.started_by("/opt/vgpu/bin/vgpu-runtime", str(tmp_path)) == {"one", "three"}
