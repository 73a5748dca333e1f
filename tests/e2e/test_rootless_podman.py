"""Podman as an ordinary user runs it gives slices out of what root has granted, and no others. Podman 4.3 of Debian 12
in every run; 5.4 and 5.8, of later releases, where the matrix is tested.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import bundle, debian, installed, leftovers, matrix, podman, suites
from tests.harness.installed import Vgpu
from tests.harness.podman import Rootless

pytestmark = pytest.mark.e2e

GIB = 1 << 30
UID = 4711
IMAGE = "vgpu-test:c"
BY_RUNTIME = ("--runtime=vgpu",)
BY_DEVICE = ("--device=vgpu.dev/gpu=all",)
# the GPUs' nodes are real ones, of harmless devices: what a runtime does with a node is seen, the driver is simulated
NODES = {"nvidia0": (5, 0), "nvidia1": (7, 1), "nvidiactl": (3, None)}  # name -> minor, GPU


@pytest.fixture(
    scope="module",
    params=["bookworm", *(pytest.param(name, marks=pytest.mark.matrix) for name in ("trixie", "forky"))],
)
def release(request: pytest.FixtureRequest, needs_root: None, needs_build: None) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def vgpu(release: str, e2e_folder: Path) -> Vgpu:
    """Installed by root, with device nodes beside the files that stand for simulated ones."""
    low_level = bundle.low_level("runc", e2e_folder) if release == "bookworm" else Path("/usr/bin/crun")
    made = installed.install(e2e_folder / f"rootless-{release}", low_level)
    add_nodes(made)
    return made


def add_nodes(made: Vgpu) -> None:
    path = made.state / "inventory.json"
    have = json.loads(path.read_text())
    for name, (_, gpu) in NODES.items():
        have["devices"].append({"source": f"/dev/{name}", "target": f"/dev/{name}", "gpu": gpu, "kind": "node"})
    path.write_text(json.dumps(have))


@pytest.fixture(scope="module")
def engine(release: str, vgpu: Vgpu, c_tree: Path, e2e_folder: Path) -> Iterator[Rootless]:
    """A user's Podman, configured by that user; root has written the CDI spec, and granted nothing yet."""
    folder = e2e_folder / f"podman-rootless-{release}"
    try:
        with podman.running(folder, release) as made:
            podman.device_nodes(made, **{name: minor for name, (minor, _) in NODES.items()})
            with podman.user(made, "tenant", UID, c_tree, IMAGE) as who:
                assert made.inside(*vgpu.command("cdi", "generate")).returncode == 0
                done = who.run(*vgpu.command("configure", "podman", "--hooks", "--verify"))
                assert done.returncode == 0, done
                yield who
    except debian.NotOffered as why:
        pytest.skip(str(why))
    assert leftovers.processes(folder) == []


@pytest.fixture
def granted(engine: Rootless, vgpu: Vgpu) -> Iterator[Rootless]:
    """16 GiB and 50 % of GPU 0 are the user's; after the test nothing of it may be in use."""
    vgpu("grant", str(UID), "--memory=16GiB", "--cores=50", "--devices=0")
    yield engine
    engine("rm", "--all", "--force", "--time=0", check=True)
    assert json.loads(vgpu("ps", "--json").stdout)["containers"] == []
    assert vgpu.containers() == []  # root's ledger has never had one
    vgpu("grant", str(UID), "--revoke")


def asked(memory: str = "8GiB", cores: int = 20) -> tuple[str, ...]:
    return f"--annotation=vgpu.memory={memory}", f"--annotation=vgpu.cores={cores}"


def reasons(vgpu: Vgpu) -> list[str]:
    """Why the user's starts were refused: crun does not pass on what a hook says."""
    paths = sorted((vgpu.state / f"users/{UID}/failures").glob("*.json"))
    return [json.loads(path.read_text())["message"] for path in paths]


def full(output: str, gib: int = 8) -> bool:
    return "1 GPU:" in output and f"took {gib * GIB} bytes" in output and "CUDA_ERROR_OUT_OF_MEMORY" in output


@pytest.mark.seeds("VGPU-HOST-012")
def test_without_a_grant_a_slice_is_refused_and_the_remedy_is_the_grant(engine: Rootless, vgpu: Vgpu) -> None:
    for how in ((), BY_RUNTIME):  # what asks for nothing runs
        plain = engine("run", "--rm", *how, IMAGE, "id")
        assert plain.returncode == 0 and "uid=0(root)" in plain.stdout, plain
    refused = engine("run", "--rm", *BY_RUNTIME, *asked(), IMAGE, "true")
    assert refused.returncode == 126, refused
    assert f"VGPU-HOST-012: this engine is user {UID}'s, who has no grant" in refused.stderr
    by_device = engine("run", "--rm", *BY_DEVICE, *asked(), IMAGE, "true")
    assert by_device.returncode == 126, by_device
    assert "VGPU-HOST-012" in by_device.stderr or "crun" in by_device.stderr  # who hides what a hook says
    remedy = refused.stderr.partition(": sudo ")[2].split()
    assert remedy[1] == "grant"
    vgpu(*remedy[1:])  # the user's number is in it
    assert engine("run", "--rm", *BY_RUNTIME, *asked(), IMAGE, "true").returncode == 0
    vgpu("grant", str(UID), "--revoke")


@pytest.mark.parametrize("how", [BY_RUNTIME, BY_DEVICE], ids=["runtime", "cdi"])
def test_a_user_gives_slices_out_of_the_grant(
    granted: Rootless, release: str, how: tuple[str, ...], record_property: matrix.Record
) -> None:
    """Held to the byte; only the granted GPU's device files are there, real nodes and files that stand for one; and not
    even the container's root can change its quota."""
    look = "cat /dev/nvidia0 | head -c 3 | od -An -c; ls /dev/vgpu-sim /dev/nvidia*; cuda_client fill"
    done = granted("run", "--rm", *how, *asked(), IMAGE, "sh", "-c", look)
    assert done.returncode == 0 and full(done.stdout), done
    words = done.stdout.partition("1 GPU:")[0].split()
    assert words[:3] == ["\\0"] * 3
    assert {"gpu0", "ctl", "/dev/nvidia0", "/dev/nvidiactl"} <= set(words)
    assert not {"gpu1", "/dev/nvidia1"} & set(words)
    spoil = "id -u; (echo x >/usr/lib/vgpu/quota; mount -o remount,rw /usr/lib/vgpu; umount /usr/lib/vgpu) 2>&1"
    tried = granted("run", "--rm", *how, *asked(), IMAGE, "sh", "-c", f"{spoil}; cuda_client fill")
    assert tried.stdout.startswith("0\n") and full(tried.stdout), tried
    assert "Read-only file system" in tried.stdout
    version = granted("--version").stdout.split()[-1]
    runtime = Path("/usr/sbin/runc") if release == "bookworm" else suites.runtime(release, "crun")
    matrix.row(record_property, engine=f"podman {version}, rootless", runtime=runtime, suite=release)


def test_a_user_inside_who_is_not_its_root_has_the_slice_too(granted: Rootless, vgpu: Vgpu) -> None:
    """In a user namespace within the engine's."""
    done = granted(
        "run", "--rm", "--userns=keep-id", *BY_RUNTIME, *asked(), IMAGE, "sh", "-c", "id -u; cuda_client fill"
    )
    assert done.returncode == 0, (done, reasons(vgpu))
    assert done.stdout.startswith(f"{UID}\n") and full(done.stdout), done


def test_all_containers_together_stay_within_the_grant_and_root_sees_them(granted: Rootless, vgpu: Vgpu) -> None:
    first = granted("run", "--detach", *BY_RUNTIME, *asked("9GiB"), IMAGE, "sleep", "600", check=True).stdout.strip()
    granted("run", "--detach", *BY_DEVICE, *asked("7GiB"), IMAGE, "sleep", "600", check=True)
    refused = granted("run", "--rm", *BY_RUNTIME, *asked("1GiB", 10), IMAGE, "true")
    assert refused.returncode == 126 and "VGPU-PLC-001: no room: 1/1 CardInsufficientMemory" in refused.stderr, refused
    assert "VGPU-PLC-001" in granted.run(*vgpu.command("doctor", "--last-failure")).stdout
    told = json.loads(vgpu("ps", "--json").stdout)
    assert [(one["user"], one["state"]) for one in told["containers"]] == [(str(UID), "armed")] * 2
    assert (told["gpus"][0]["given_bytes"], told["gpus"][0]["given_cores_percent"]) == (16 * GIB, 50)
    assert told["grants"][0]["gpus"][0]["given_bytes"] == 16 * GIB
    own = json.loads(granted.run(*vgpu.command("ps", "--json")).stdout)
    assert [one["id"] for one in own["containers"]] == [one["id"] for one in told["containers"]]
    granted("exec", first, "cuda_client", "fill", check=True)
    for verdict in (vgpu("doctor", "container", first), granted.run(*vgpu.command("doctor", "container", first))):
        assert verdict.returncode == 0 and "in force: yes" in verdict.stdout, verdict
    top = vgpu("top", "--once", "--interval=0.2").stdout
    assert f"{UID}: {first[:12]}" in top
    resized = granted.run(*vgpu.command("set", first, "--memory=8GiB"))
    assert resized.returncode == 0, resized
    assert full(granted("exec", first, "cuda_client", "fill").stdout)
    kept = vgpu("grant", str(UID), "--revoke", check=False)
    assert kept.returncode == 4 and "VGPU-PLC-007" in kept.stderr


def test_roots_engine_has_what_is_left(granted: Rootless, vgpu: Vgpu, c_tree: Path) -> None:
    too_much = ("--annotation=vgpu.memory=65GiB", "--annotation=vgpu.devices=0", "--rootfs", c_tree)
    refused = granted.made("run", "--rm", "--runtime", vgpu.runtime, *too_much, "true")
    assert refused.returncode == 126, refused
    assert "free 65536 of 81920 MiB (16384 MiB and 50 percent are reserved)" in refused.stderr


def test_killed_at_once_its_slice_is_free_for_the_next(granted: Rootless) -> None:
    run = ("run", "--detach", *BY_RUNTIME, *asked("16GiB"), IMAGE)
    first = granted(*run, "sleep", "600", check=True).stdout.strip()
    granted("kill", "--signal=KILL", first, check=True)
    granted("wait", first, check=True)
    granted(*run, "sleep", "600", check=True)


def test_after_a_boot_root_makes_the_folder_anew(granted: Rootless, vgpu: Vgpu) -> None:
    """/run is empty then; the grant is on the disk."""
    shutil.rmtree(vgpu.state / "users")
    refused = granted("run", "--rm", *BY_RUNTIME, *asked(), IMAGE, "true")
    assert "VGPU-HOST-012" in refused.stderr and "inventory --refresh" in refused.stderr, refused
    vgpu("inventory", "--refresh")
    add_nodes(vgpu)
    assert granted("run", "--rm", *BY_RUNTIME, *asked(), IMAGE, "true").returncode == 0


def test_only_root_gives_grants_and_the_user_sees_their_own(granted: Rootless, vgpu: Vgpu) -> None:
    for words in (("grant", str(UID), "--memory=80GiB"), ("cordon", "0"), ("inventory", "--refresh")):
        done = granted.run(*vgpu.command(*words))
        assert done.returncode == 5 and "root" in done.stderr and "Traceback" not in done.stderr, done
    [mine] = json.loads(granted.run(*vgpu.command("grant", "--list", "--json")).stdout)["grants"]
    assert (mine["uid"], mine["gpus"][0]["memory_bytes"]) == (UID, 16 * GIB)


def test_what_the_user_configured_is_taken_out_to_the_last_file(engine: Rootless, vgpu: Vgpu) -> None:
    files = engine.run("find", f"{engine.home}/.config/containers", "-type", "f").stdout.split()
    names = ["vgpu-createRuntime.json", "vgpu-hooks.conf", "vgpu-poststop.json", "vgpu.conf"]
    assert sorted(path.rpartition("/")[2] for path in files) == names
    again = engine.run(*vgpu.command("configure", "podman", "--hooks", "--json"))
    assert json.loads(again.stdout)["changed"] == []
    alone = engine("run", "--rm", *asked(), IMAGE, "true")  # the user's hooks.d: a request, and neither way to it
    assert alone.returncode == 126, alone
    undone = engine.run(*vgpu.command("configure", "podman", "--undo"))
    assert undone.returncode == 0, undone
    assert engine.run("find", f"{engine.home}/.config/containers", "-type", "f").stdout == ""
