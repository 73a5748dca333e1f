"""vgpu grant: what root gives a user, what is shown of it, and what a user's own folder can do to root's commands."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from oci_hook import ledger, policy, quota_file, rootless, standing
from oci_hook.errors import HostError, VgpuError
from oci_hook.records import Allocation, Ask, Placement, Plan, Policy, Process, Request, Slice
from oci_hook.values import replace
from runtime_config import launcher_conf, policy_file
from vgpu import grant, inventory, ps, users
from vgpu.config import apply
from vgpu.doctor.container import look
from vgpu.installer import tenants
from vgpu.installer.layout import Prefix
from vgpu.monitor import collect

GIB = 1 << 30
UID = 4711
SIXTEEN = {"memory": "16GiB", "cores": "50"}


@pytest.fixture
def config(tmp_path: Path, needs_root: None, needs_build: None) -> str:
    """A policy in force, on two simulated GPUs of 80 GiB."""
    for name in ("wrapper", "sim"):
        shutil.copytree(Path("build", name), tmp_path / "prefix/lib/vgpu" / name)
    etc = tmp_path / "prefix/etc"
    etc.mkdir()
    text = policy_file.template("/bin/true", str(tmp_path / "state"), str(tmp_path / "log"), simulate_gpus=2)
    (etc / "config.yaml").write_text(text)
    (etc / "launcher.conf").write_text(
        launcher_conf.text(str(etc.parent), "/bin/true", "/usr/bin/python3", str(tmp_path / "state"))
    )
    apply(str(etc / "config.yaml"), as_json=True)
    inventory.scan(policy.load(str(etc / "policy.json")))
    return str(etc / "config.yaml")


def in_force(config: str) -> Policy:
    return policy.load(config.replace("config.yaml", "policy.json"))


def user(config: str) -> users.User:
    [found] = users.every(in_force(config))
    return found


def give(config: str, *, force: bool = False, **settings: str) -> None:
    grant.give(config, str(UID), settings or SIXTEEN, force=force, as_json=False)


def give_out(
    where: Policy, memory: int = 8 * GIB, container: str = "c" * 64, owner: Process | None = None
) -> Allocation:
    """An entry in that ledger, of this process or of `owner`."""
    creator = owner or ledger.process(os.getpid())
    assert creator is not None
    part = Slice(0, user_gpu(where), memory, 20)
    one = Allocation(container, "job", "image:1", "creating", 1, creator, None, Request((Ask(memory),)),
                     Placement("binpack", (part,), ()), (), True, "1")  # fmt: skip
    quota = quota_file.quota(container, (part,), burst="hard", priority="normal")
    with book_of(where) as book:
        book.add(one, Plan((), ()), quota, quota_file.usage_header(), quota_file.USAGE_BYTES)
    return one


@contextlib.contextmanager
def book_of(where: Policy) -> Iterator[ledger.Ledger]:
    """A user's ledger, which root refuses to write: for the moment it is root's."""
    owner = os.stat(where.state_dir).st_uid
    os.chown(where.state_dir, 0, 0)
    try:
        with ledger.Ledger(where.state_dir) as book:
            yield book
    finally:
        os.chown(where.state_dir, owner, owner)


def user_gpu(where: Policy) -> str:
    assert where.grant is not None
    return where.grant.parts[0].uuid


def test_a_grant_is_in_roots_book_and_has_a_folder_of_the_users(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    give(config)
    [kept] = standing.load(in_force(config)).reservations
    assert (kept.name, kept.memory_bytes, kept.cores_percent) == (f"user:{UID}", 16 * GIB, 50)
    folder = os.stat(user(config).policy.state_dir)
    assert (folder.st_uid, folder.st_mode & 0o777) == (UID, 0o700)
    assert "16 GiB, 50 % of its time" in capsys.readouterr().out
    ps.run(config, as_json=False)
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("user:")]
    assert row.split() == [f"user:{UID}", str(UID), "0", "0", "B", "/", "16", "GiB", "50", "%", "grant"]
    assert [entry["event"] for entry in log(config)] == ["grant"]


def log(config: str) -> list[dict[str, object]]:
    lines = Path(in_force(config).log_dir, "audit.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_new_grant_takes_the_place_of_the_old_on_the_same_gpu(config: str) -> None:
    give(config, memory="16GiB", devices="1")
    give(config, memory="70GiB")
    [kept] = standing.load(in_force(config)).reservations
    assert kept.memory_bytes == 70 * GIB and kept.uuid == inventory.scan(in_force(config)).gpus[1].uuid
    give(config, memory="1GiB", count="2")
    assert len(standing.load(in_force(config)).reservations) == 2


@pytest.mark.parametrize(
    ("who", "settings", "code"),
    [
        ("no-such-user", SIXTEEN, "VGPU-REQ-006"), ("0", SIXTEEN, "VGPU-REQ-006"), ("root", SIXTEEN, "VGPU-REQ-006"),
        ("9" * 30, SIXTEEN, "VGPU-REQ-006"), ("a\0b", SIXTEEN, "VGPU-REQ-006"), ("-1", SIXTEEN, "VGPU-REQ-006"),
        (str(UID), {"memory": "16"}, "VGPU-REQ-001"), (str(UID), {"cores": "5"}, "VGPU-REQ-004"),
        (str(UID), {"memory": "1GiB", "cores": "101"}, "VGPU-REQ-002"),
        (str(UID), {"memory": "1GiB", "devices": "7"}, "VGPU-PLC-002"),
        (str(UID), {"memory": "81GiB"}, "VGPU-PLC-001"), (str(UID), {"memory": "1GiB", "count": "3"}, "VGPU-PLC-001"),
    ],
)  # fmt: skip
def test_what_cannot_be_granted_is_refused_and_nothing_is_written(
    config: str, who: str, settings: dict[str, str], code: str
) -> None:
    with pytest.raises(VgpuError) as caught:
        grant.give(config, who, settings, force=False, as_json=False)
    assert caught.value.code == code
    assert not os.path.exists(standing.path(in_force(config)))
    assert not os.path.exists(f"{in_force(config).state_dir}/users")


@pytest.mark.seeds("VGPU-PLC-007")
def test_what_is_in_use_is_not_taken_back_until_it_has_ended(config: str) -> None:
    give(config)
    give_out(user(config).policy)
    before = standing.load(in_force(config))
    for less in (lambda: give(config, memory="7GiB"), lambda: give(config, memory="16GiB", cores="10"),
                 lambda: grant.revoke(config, str(UID), force=False, as_json=False)):  # fmt: skip
        with pytest.raises(VgpuError) as caught:
            less()
        assert caught.value.code == "VGPU-PLC-007" and "c" * 12 in str(caught.value)
        assert standing.load(in_force(config)) == before
    give(config, memory="8GiB", cores="20")  # what they have is enough
    with book_of(user(config).policy) as book:
        book.remove("c" * 64)  # as the remedy does
    grant.revoke(config, str(UID), force=False, as_json=False)
    assert standing.load(in_force(config)).reservations == ()
    assert not os.path.exists(f"{in_force(config).state_dir}/users/{UID}")
    assert [entry["event"] for entry in log(config)] == ["grant", "grant", "revoke"]


def test_by_force_it_is_taken_back_and_what_runs_is_still_seen(config: str) -> None:
    give(config)
    give_out(user(config).policy)
    grant.revoke(config, str(UID), force=True, as_json=False)
    assert user(config).parts == ()
    [seen] = ps.collect(in_force(config))
    assert (seen["user"], seen["state"]) == (str(UID), "creating")
    with pytest.raises(VgpuError) as caught:
        grant.revoke(config, str(UID), force=False, as_json=False)
    assert caught.value.code == "VGPU-PLC-004"


def test_root_sees_the_users_containers_within_the_grant_and_counts_them_once(config: str) -> None:
    give(config)
    one = give_out(user(config).policy)
    host = in_force(config)
    [seen] = ps.collect(host)
    assert (seen["id"], seen["user"], seen["name"]) == (one.id, str(UID), "job")
    [gpu] = ps.given.by_gpu([seen], users.grants(host), host)
    assert (gpu["given_bytes"], gpu["given_cores_percent"]) == (16 * GIB, 50)
    [told] = users.grants(host)
    assert (told["gpus"][0]["given_bytes"], told["gpus"][0]["given_cores_percent"]) == (8 * GIB, 20)
    [sampled] = collect.read_containers(host)[0]
    assert sampled.name == f"{UID}: job"
    where, found = look.resolve(host, "job")
    assert found == one and where.state_dir == user(config).policy.state_dir
    assert [tenant.id for tenant in tenants.find(Prefix(Path(host.prefix)), host.state_dir)] == [one.id]


def test_a_list_of_grants_that_cannot_be_read_hides_no_container(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    give(config)
    one, host = give_out(user(config).policy), in_force(config)
    Path(standing.path(host)).write_text("{")
    ps.run(config, as_json=False)
    said = capsys.readouterr()
    assert "job" in said.out and said.err.count("VGPU-HOST-010") == 1
    found, troubles = collect.read_containers(host)
    assert [seen.id for seen in found] == [one.id] and [part for part, _ in troubles if part == "ledger"] == ["ledger"]
    with pytest.raises(HostError, match="standing"):
        users.grants(host)


def test_nothing_in_a_users_folder_stops_roots_commands_or_passes_for_somebody_elses(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    give(config)
    host, theirs = in_force(config), user(config).policy
    give_out(theirs, container="good")
    bad = give_out(theirs, container="types")
    path = Path(theirs.state_dir, "containers/types/allocation.json")
    text = json.loads(path.read_text())
    for field, value in (("name", {"a": 1}), ("clamped", [1]), ("created_ns", "x"), ("simulated", "yes")):
        path.write_text(json.dumps({**text, field: value}))
        with pytest.raises(VgpuError) as caught:
            users.read(user(config), bad.id)
        assert caught.value.code == "VGPU-HOST-003"
    give_out(theirs, container="fifo")
    for name in ("usage", "quota"):
        os.unlink(f"{theirs.state_dir}/containers/fifo/box/{name}")
        os.mkfifo(f"{theirs.state_dir}/containers/fifo/box/{name}")
    os.symlink("/", f"{theirs.state_dir}/containers/link")
    # a process that is not in a user namespace of theirs: ours
    other = give_out(theirs, container="stolen")
    with book_of(theirs) as book:
        book.rewrite(replace(other, state="armed", init=ledger.process(os.getpid())))
    shown = {one["id"]: one for one in ps.collect(host)}
    assert sorted(shown) == ["fifo", "good"] and shown["fifo"]["trouble"]
    assert "types is no entry of user" in capsys.readouterr().err
    assert {one.id for one in collect.read_containers(host)[0]} == {"fifo", "good"}


def test_a_user_whose_folder_is_a_link_shows_nobody_elses_containers(config: str) -> None:
    give(config)
    host, theirs = in_force(config), user(config)
    one = replace(theirs.policy, state_dir=host.state_dir)  # root's own ledger
    give_out(one)
    os.symlink(f"{host.state_dir}/containers", f"{theirs.policy.state_dir}/containers")
    assert users.names(theirs) == []
    assert [seen["user"] for seen in ps.collect(host)] == [None]


def lent(config: str, gpu: int) -> dict[str, int]:
    """What root's containers on that GPU see of neighbours: name of a share file -> its links beside the one here."""
    folder = Path(in_force(config).state_dir, "gpus", inventory.scan(in_force(config)).gpus[gpu].uuid)
    found = {path.name: path.stat() for path in folder.iterdir()} if folder.exists() else {}
    assert all(status.st_size == 0 for status in found.values())  # cut: it lends nothing
    return {name.rpartition(".")[0]: status.st_nlink - 1 for name, status in found.items()}


def test_granted_time_is_kept_and_never_lent_to_roots_containers(config: str) -> None:
    """By a neighbour that never lends: test_wrapper_soft.py shows what a share file that was cut does."""
    give(config, memory="1GiB")  # no time of its own
    assert lent(config, 0) == {}
    give(config, memory="1GiB", cores="30", count="2")
    assert (lent(config, 0), lent(config, 1)) == ({"30.0.2.0": 2}, {"30.1.2.0": 2})
    grant.revoke(config, str(UID), force=False, as_json=False)
    assert all(links < 2 for gpu in (0, 1) for links in lent(config, gpu).values())  # as those of ended containers


def test_after_a_boot_the_inventory_makes_the_folders_anew(config: str) -> None:
    give(config)
    shutil.rmtree(in_force(config).state_dir)
    inventory.scan(in_force(config))
    assert os.stat(user(config).policy.state_dir).st_uid == UID


def test_a_grant_is_no_reservation_that_anybody_could_claim_or_end(config: str) -> None:
    from oci_hook import request
    from vgpu import standing as commands

    give(config)
    with pytest.raises(VgpuError):
        request.parse({"vgpu.memory": "1GiB", "vgpu.reservation": f"user:{UID}"}, {}, (), ("annotation",))
    with pytest.raises(VgpuError) as caught:
        commands.unreserve(config, f"user:{UID}", as_json=False)
    assert f"grant {UID} --revoke" in caught.value.remedy
    assert rootless.granted(standing.load(in_force(config)))
