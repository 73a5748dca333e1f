"""A grant: the host's policy, inventory and standing as they are for a user's rootless engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from oci_hook import fastjson, files, hook, ledger, placement, policy, rootless, standing
from oci_hook.errors import VgpuError
from oci_hook.records import Ask, Gpu, Host, Inventory, Plan, Policy, Request, Reservation, Start
from oci_hook.values import as_json, replace

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30
UID = 4711
NEVER = (1 << 63) - 1


def part(uuid: str = "GPU-0", memory: int = 16 * GIB, cores: int = 50, uid: int = UID) -> Reservation:
    return Reservation(f"user:{uid}", uuid, memory, cores, NEVER)


def gpu(index: int) -> Gpu:
    return Gpu(index, f"GPU-{index}", "Simulated GPU", 80 * GIB, f"0:{index}", index)


HAVE = Inventory("1", True, "key", (gpu(0), gpu(1)), (), (), ())


@pytest.fixture
def host(tmp_path: Path) -> Policy:
    return Policy("/bin/true", str(tmp_path), str(tmp_path / "state"), str(tmp_path / "log"), overcommit_memory=2.0)


@pytest.fixture
def theirs(host: Policy) -> Policy:
    """The host's policy within a grant of 16 GiB and 50 % of GPU 0."""
    return rootless.within(host, UID, (part(),), has_folder=True)


def test_a_user_has_a_ledger_and_a_log_of_their_own_and_the_hosts_inventory_and_standing(theirs: Policy) -> None:
    home = f"{theirs.host_state_dir}/users/{UID}"
    assert (theirs.state_dir, theirs.log_dir) == (home, f"{home}/log")
    assert standing.path(theirs) == f"{os.path.dirname(theirs.host_state_dir)}/log/standing.json"


def test_all_containers_together_get_no_more_than_the_grant(theirs: Policy) -> None:
    """The same placement, on GPUs as large as the grant; the host's overcommit was used once, by the grant itself."""
    assert theirs.grant is not None
    have = rootless.narrowed(HAVE, theirs.grant)
    assert [(one.uuid, one.memory_bytes, one.cores_percent) for one in have.gpus] == [("GPU-0", 16 * GIB, 50)]

    def reasons(ask: Ask) -> list[str | None]:
        return [one.reject for one in placement.place(Request((ask,)), have.gpus, (), theirs).candidates]

    assert reasons(Ask(16 * GIB, None, 50)) == [None]
    assert reasons(Ask(16 * GIB + 1)) == ["CardInsufficientMemory"]
    assert reasons(Ask(GIB, None, 51)) == ["CardInsufficientCore"]
    half = placement.place(Request((Ask(None, 50),)), have.gpus, (), theirs)
    assert half.slices[0].memory_bytes == 8 * GIB  # of what was granted


def test_who_asks_for_no_share_gets_the_whole_grants_and_nothing_is_borrowed(theirs: Policy, host: Policy) -> None:
    asked, notes = policy.clamp(Request((Ask(GIB),), burst="soft"), theirs)
    assert (asked.asks[0].cores_percent, asked.burst) == (50, "hard")
    assert notes == ("cores: no limit asked, 50 % allowed", "burst: soft asked, hard allowed within a grant of cores")
    assert policy.clamp(Request((Ask(GIB),), burst="soft"), host)[0].burst == "soft"
    without_cores = rootless.within(host, UID, (part(cores=0),), has_folder=True)
    assert policy.clamp(Request((Ask(GIB),), burst="soft"), without_cores) == (Request((Ask(GIB),), burst="soft"), ())


def test_roots_own_starts_leave_the_grant_alone(host: Policy) -> None:
    standing_now = Host(reservations=(part(memory=60 * GIB, cores=50),))
    one_gpu, plain = [gpu(0)], replace(host, overcommit_memory=1.0)
    [fits] = placement.place(Request((Ask(20 * GIB, None, 50),)), one_gpu, (), plain, standing_now).candidates
    [memory] = placement.place(Request((Ask(20 * GIB + 1),)), one_gpu, (), plain, standing_now).candidates
    [cores] = placement.place(Request((Ask(GIB, None, 51),)), one_gpu, (), plain, standing_now).candidates
    [alone] = placement.place(Request((Ask(GIB),), policy="exclusive"), one_gpu, (), plain, standing_now).candidates
    assert [one.reject for one in (fits, memory, cores, alone)] == [
        None, "CardInsufficientMemory", "CardInsufficientCore", "ExclusiveDeviceAllocateConflict",
    ]  # fmt: skip


def test_cordons_and_sick_gpus_are_the_hosts_and_reservations_are_not_seen(theirs: Policy, host: Policy) -> None:
    os.makedirs(host.log_dir)
    said = Host(cordoned={"GPU-0": "repair"}, sick={"GPU-1": "XID 79"}, reservations=(part(), part(uid=1)))
    standing.save(host, said)
    assert standing.load(theirs) == replace(said, reservations=())
    assert rootless.granted(standing.load(host)) == {1: (part(uid=1),), UID: (part(),)}


def test_a_revoked_grant_gives_nothing_but_what_runs_can_end(host: Policy) -> None:
    without = rootless.within(host, UID, (), has_folder=True)
    assert without.state_dir.endswith(f"/users/{UID}")
    assert without.grant is not None
    with pytest.raises(VgpuError, match="has no grant") as caught:
        rootless.inventory_now(without, without.grant)
    assert caught.value.code == "VGPU-HOST-012" and f"grant {UID} --memory" in caught.value.remedy


def test_in_a_user_namespace_only_an_owner_without_a_number_can_be_the_hosts_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maps = {"rootless": [(0, UID, 1), (1, 200000, 65536)], "the host": [(0, 0, (1 << 32) - 1)]}
    for where, trusted in (("rootless", True), ("the host", False)):
        monkeypatch.setattr(rootless, "_uid_map", lambda rows=maps[where]: iter(rows))
        assert files.is_trusted(65534) is trusted, where
        assert not files.is_trusted(1234)
        assert files.is_trusted(0) and files.is_trusted(os.geteuid())


def test_a_runtime_that_has_lost_its_bundle_has_it_from_the_shim(
    theirs: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As crun 1.21 with device files and --userns=keep-id; without the shim the state is all that is known."""
    seen: list[hook.Inside] = []
    monkeypatch.setattr(hook, "make_mounts", lambda state, inside, *rest: seen.append(inside))
    monkeypatch.setattr(hook, "_require_creating", lambda *words: None)
    monkeypatch.setattr(ledger, "arm", lambda *words, **more: None)
    monkeypatch.setattr(ledger, "read_plan", lambda *words: Plan((), ()))
    lost, start = hook.State("x1", os.getpid(), "/"), Start(("A=1",), "/work")
    hook.prestart(theirs, lost, hook.Prepared(Plan((), ()), str(tmp_path), start))
    assert seen == [hook.Inside(str(tmp_path), start)]
    with pytest.raises(VgpuError) as caught:
        hook.prestart(theirs, lost)
    assert caught.value.code == "VGPU-OCI-001"


LOAD = """
import sys
sys.path.insert(0, sys.argv[1])
from oci_hook import policy
found = policy.load(sys.argv[2])
print(found.grant.uid, len(found.grant.parts), found.state_dir)
"""


@pytest.mark.parametrize("namespace", [(), ("unshare", "--user", "--map-root-user")])
def test_whose_grant_it_is_follows_from_the_real_user(
    e2e_folder: Path, needs_root: None, namespace: tuple[str, ...]
) -> None:
    """As that user, and as root of a user namespace of theirs, which is what a rootless engine runs in."""
    folder = Path(tempfile.mkdtemp(dir=e2e_folder))
    folder.chmod(0o755)
    shutil.copytree(ROOT / "oci_hook", folder / "oci_hook")
    host = Policy("/bin/true", str(folder), str(folder / "state"), str(folder / "log"))
    os.makedirs(host.log_dir)
    os.makedirs(f"{host.state_dir}/users/{UID}")
    os.chown(f"{host.state_dir}/users/{UID}", UID, UID)
    standing.save(host, Host(reservations=(part(), part("GPU-1"), part("GPU-1", uid=UID + 1))))
    compiled = folder / "policy.json"
    compiled.write_text(fastjson.dumps(as_json(host)))
    compiled.chmod(0o644)
    command = ["/usr/bin/python3", "-I", "-c", LOAD, folder, compiled]
    for uid, expected in ((UID, f"{UID} 2 {host.state_dir}/users/{UID}"), (UID + 1, f"{UID + 1} 1 {host.state_dir}/")):
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        done = subprocess.run([*become, *namespace, *command], capture_output=True, text=True, timeout=30, check=False)
        assert done.stdout.startswith(expected), done
    assert policy.load(str(compiled)).grant is None  # the host's root
