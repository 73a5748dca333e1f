"""The packages in a whole Debian, without a network: installed, used, upgraded and forced out under a container that
allocates, removed, purged. The .deb by apt; the .rpm by Debian's dnf, with a list of installed packages of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from tests.harness import debian, debroot, work
from tests.harness.debroot import Root
from tests.packages.conftest import Made
from tests.packages.managed import VGPU, Guest, Host, guest, stand_in

# making a Debian takes minutes: `make packages-test`
OTHERS = [("deb", "bookworm"), ("deb", "trixie")] if os.environ.get("VGPU_LONG_TESTS") else []
HOSTS = [("deb", debroot.MACHINE), ("rpm", debroot.MACHINE), *OTHERS]
ADMINS = {"etc/vgpu", "etc/vgpu/config.yaml", "opt/vgpu", "opt/vgpu/etc", "opt/vgpu/etc/config.yaml"}
STOPPED = "disable --now vgpu-monitor.service vgpu-exporter.service vgpu-inventory.service"
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def debians(tmp_path_factory: pytest.TempPathFactory, needs_root: None) -> Iterator[Callable[[str], Root]]:
    """Suite -> a Debian, made when first asked for."""
    made: dict[str, Root] = {}
    with contextlib.ExitStack() as stack:

        def opened(suite: str) -> Root:
            if suite not in made:
                try:
                    debroot.base(suite)
                except debian.NotOffered as missing:
                    pytest.skip(str(missing))
                made[suite] = stack.enter_context(debroot.opened(suite, tmp_path_factory.mktemp(suite)))
            return made[suite]

        yield opened


@pytest.mark.parametrize(("kind", "suite"), HOSTS)
def test_from_installed_to_purged(
    kind: str, suite: str, made: Made, debians: Callable[[str], Root], tmp_path: Path
) -> None:
    host = Host(debians(suite), kind)
    host.prepare()
    if kind == "rpm":
        refused_without_what_it_needs(host, made)
        host.install(stand_in(tmp_path))
    before = host.root.paths()
    installed_and_set_up(host, made)
    with guest(host) as working:
        upgraded_under(host, made, working)
        not_removed_under(host, working)
        forced_out_under(host, made, working)
        working.end()
    removed(host, before)
    purged(host, made)
    assert host.root.paths() == before


def refused_without_what_it_needs(host: Host, made: Made) -> None:
    said = host.install(made.rpm, check=False)
    assert "nothing provides python3-cffi needed by vgpu" in said and "(runc or crun)" in said
    assert not (host.root.path / "usr/lib/vgpu-runtime").exists()


def installed_and_set_up(host: Host, made: Made) -> None:
    host.install(made.deb if host.kind == "deb" else made.rpm)
    assert "0.1.0" in host.status()
    verify = ["dpkg", "--verify", "vgpu"] if host.kind == "deb" else ["rpm", "--verify", "vgpu"]
    assert host.root(*verify).stdout == ""  # every file as it was packed; by rpm also owner and mode
    assert not any("enable" in line or "start vgpu" in line.replace("try-restart", "") for line in host.told())
    assert host.root("vgpu", "version").stdout == "0.1.0\n"
    assert host.root("readlink", "/etc/vgpu/config.yaml").stdout == "/opt/vgpu/etc/config.yaml\n"
    config = host.root.path / "opt/vgpu/etc/config.yaml"
    config.write_text(config.read_text() + "\nsimulate: {gpus: 1, memory: 80GiB}\n")
    host.root("vgpu", "config", "apply")
    assert "80 GiB" in host.root("vgpu", "inventory", "--refresh").stdout


def upgraded_under(host: Host, made: Made, working: Guest) -> None:
    host.install(made.later if host.kind == "deb" else made.later_rpm)
    assert "0.2.0" in host.status() and host.root("vgpu", "version").stdout == "0.2.0\n"
    assert STOPPED not in host.told()
    working.goes_on()
    rows = {row["release"]: row for row in host.json("versions")["versions"]}
    assert rows["0.1.0"]["containers"] == [working.box.id] and rows["0.2.0"]["current"]


def not_removed_under(host: Host, working: Guest) -> None:
    """The package manager has failed, and nothing has changed: the services run on too."""
    status, paths = host.status(), host.root.paths()
    refused = host.remove()
    assert refused.returncode != 0 and "VGPU-INST-003" in refused.stdout + refused.stderr, refused
    assert host.told() == []
    assert host.status().split()[-1] == status.split()[-1] and host.root.paths() == paths
    working.goes_on()


def forced_out_under(host: Host, made: Made, working: Guest) -> None:
    """What it needs stays, and a package that comes back finds it."""
    host.force_out()
    assert host.told() == [STOPPED, "daemon-reload"]
    assert not (host.root.path / "usr/bin/vgpu").is_symlink()
    assert not (host.root.path / "usr/lib/vgpu-runtime").exists()
    working.goes_on()
    assert [used >= 4 * work.GIB for used in host.used()] == [True]
    host.install(made.later if host.kind == "deb" else made.later_rpm)
    rows = {row["release"]: row["containers"] for row in host.json("versions")["versions"]}
    assert rows == {"0.1.0": [working.box.id], "0.2.0": []}
    working.goes_on()


def removed(host: Host, before: Collection[str]) -> None:
    """What the admin made stays. before: all paths of the root."""
    assert host.used() == []
    if host.kind == "deb":  # another python3, say: the same one, so the same version
        host.root("dpkg-trigger", "--no-await", "--by-package=vgpu", "/usr/bin/python3")
        host.root("dpkg", "--triggers-only", "--pending")
        assert host.root("vgpu", "version").stdout == "0.2.0\n"
    host.told()
    done = host.remove()
    assert done.returncode == 0, done
    assert host.told() == [STOPPED, "daemon-reload"]
    left = host.root.paths().keys() - set(before)
    assert {name for name in left if not name.startswith("var/lib/vgpu")} == ADMINS


def purged(host: Host, made: Made) -> None:
    if host.kind == "deb":
        host.root("dpkg", "--purge", "vgpu")
    else:  # which knows no purge
        host.install(made.later_rpm)
        host.root(VGPU, "uninstall", "--purge")
        assert host.remove().returncode == 0
