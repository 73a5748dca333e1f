"""Podman gives slices: by the runtime, and by CDI with our hook and no runtime of ours. Podman 4.3 of Debian 12 in
every run; 5.4 and 5.8, of later releases, where the matrix is tested.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import bundle, debian, installed, leftovers, matrix, podman, suites
from tests.harness.installed import Vgpu
from tests.harness.podman import Podman

pytestmark = pytest.mark.e2e

GIB = 1 << 30
ASKED = ("--annotation", "vgpu.memory=8GiB")
IMAGE = "vgpu-test:c"
DROP_IN = "etc/containers/containers.conf.d/vgpu.conf"
HOOKS = "usr/share/containers/oci/hooks.d"


@pytest.fixture(
    scope="module",
    params=["bookworm", *(pytest.param(name, marks=pytest.mark.matrix) for name in ("trixie", "forky"))],
)
def release(request: pytest.FixtureRequest, needs_root: None, needs_build: None) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def vgpu(release: str, e2e_folder: Path) -> Vgpu:
    """Installed behind this Podman."""
    low_level = bundle.low_level("runc", e2e_folder) if release == "bookworm" else Path("/usr/bin/crun")
    return installed.install(e2e_folder / f"behind-podman-{release}", low_level)


@pytest.fixture(scope="module")
def engine(release: str, vgpu: Vgpu, c_tree: Path, e2e_folder: Path) -> Iterator[Podman]:
    folder = e2e_folder / f"podman-{release}"
    try:
        with podman.running(folder, release) as made:
            podman.load(made, c_tree, IMAGE)
            for words in (("cdi", "generate"), ("configure", "podman", "--hooks", "--verify")):
                done = made.inside(*vgpu.command(*words))
                assert done.returncode == 0, done
            yield made
    except debian.NotOffered as why:
        pytest.skip(str(why))
    assert leftovers.processes(folder) == []


@pytest.fixture
def combination(release: str, engine: Podman, record_property: matrix.Record) -> None:
    """For the matrix: what this was tried with."""
    runtime = Path("/usr/sbin/runc") if release == "bookworm" else suites.runtime(release, "crun")
    version = engine("--version").stdout.split()[-1]
    matrix.row(record_property, engine=f"podman {version}", runtime=runtime, suite=release)


@pytest.fixture
def made(engine: Podman, vgpu: Vgpu) -> Iterator[Podman]:
    """Podman, with nothing given out; nor after the test."""
    yield engine
    engine("rm", "--all", "--force", "--time=0", check=True)
    assert vgpu.containers() == []


def full(output: str, gib: int = 8) -> bool:
    """Whether the client had exactly that much of one GPU."""
    return output.startswith("1 GPU:") and f"took {gib * GIB} bytes" in output and "CUDA_ERROR_OUT_OF_MEMORY" in output


def test_the_runtime_gives_a_slice(made: Podman, combination: None) -> None:
    done = made("run", "--rm", "--runtime=vgpu", *ASKED, IMAGE, "cuda_client", "fill")
    assert done.returncode == 0 and full(done.stdout), done
    too_much = made("run", "--rm", "--runtime=vgpu", "--annotation", "vgpu.memory=800GiB", IMAGE, "true")
    assert too_much.returncode == 126
    assert "VGPU-PLC-001" in too_much.stderr and "to mend it" in too_much.stderr
    nothing = made("run", "--rm", "--runtime=vgpu", IMAGE, "ls", "/usr/lib/vgpu")
    assert nothing.returncode != 0 and "No such file" in nothing.stderr


@pytest.mark.parametrize(("device", "gpus"), [("0", ["gpu0"]), ("1", ["gpu1"]), ("all", ["gpu0"])])
def test_a_device_by_cdi_brings_the_hook_and_the_slice(
    made: Podman, device: str, gpus: list[str], combination: None
) -> None:
    look = "ls /dev/vgpu-sim; cuda_client fill"
    done = made("run", "--rm", "--device", f"vgpu.dev/gpu={device}", *ASKED, IMAGE, "sh", "-c", look)
    seen, _, filled = done.stdout.partition("1 GPU:")
    assert done.returncode == 0 and full("1 GPU:" + filled), done
    assert seen.split() == ["ctl", *gpus]  # of two GPUs only the one that was given is there


def test_a_device_without_a_request_does_not_start(made: Podman, vgpu: Vgpu) -> None:
    done = made("run", "--name", "greedy", "--device", "vgpu.dev/gpu=all", IMAGE, "true")
    assert done.returncode == 126, done
    assert vgpu.failures()[-1]["code"] == "VGPU-REQ-007"  # crun does not pass on what a hook says


def test_a_request_without_a_device_does_not_start(made: Podman, vgpu: Vgpu) -> None:
    done = made("run", *ASKED, IMAGE, "true")
    assert done.returncode == 126, done
    assert vgpu.failures()[-1]["code"] == "VGPU-PLC-006"
    assert "--device vgpu.dev/gpu=all" in vgpu.failures()[-1]["remedy"]


def test_only_a_gpu_whose_device_is_there_is_given(made: Podman, vgpu: Vgpu) -> None:
    done = made("run", *ASKED, "--annotation=vgpu.devices=1", "--device=vgpu.dev/gpu=0", IMAGE, "true")
    assert done.returncode == 126, done
    assert "GPU 1: CardCordoned (the container was not given its device)" in vgpu.failures()[-1]["message"]
    assert "0 differ" in vgpu("audit", "replay").stdout


def test_runtime_device_and_hook_together_are_one_slice(made: Podman, vgpu: Vgpu) -> None:
    before = len(vgpu.audit())
    done = made("run", "--rm", "--runtime=vgpu", "--device=vgpu.dev/gpu=all", *ASKED, IMAGE, "cuda_client", "fill")
    assert done.returncode == 0, done
    assert f"took {8 * GIB} bytes" in done.stdout
    assert [entry["event"] for entry in vgpu.audit()[before:]] == ["allocate", "arm", "release"]


@pytest.mark.parametrize("how", [("--runtime=vgpu",), ("--device=vgpu.dev/gpu=all",)])
def test_it_is_counted_while_it_lives_and_given_anew_at_each_start(
    made: Podman, vgpu: Vgpu, how: tuple[str, ...]
) -> None:
    created = made("run", "--detach", "--name=lives", *how, *ASKED, IMAGE, "sleep", "600", check=True)
    container = created.stdout.strip()
    assert vgpu.given_out() == {0: 8 * GIB} and vgpu.allocation(container)["state"] == "armed"
    inside = made("exec", "lives", "cuda_client", "fill")
    assert full(inside.stdout), inside
    made("stop", "--time=0", "lives", check=True)
    assert vgpu.containers() == []
    made("start", "lives", check=True)
    assert vgpu.given_out() == {0: 8 * GIB}


def test_killed_at_once_its_slice_is_free_for_the_next(made: Podman, vgpu: Vgpu) -> None:
    asked = ("--device=vgpu.dev/gpu=0", "--annotation=vgpu.memory=70GiB", IMAGE)
    made("run", "--detach", "--name=first", *asked, "sleep", "600", check=True)
    made("kill", "--signal=KILL", "first", check=True)
    made("wait", "first", check=True)
    done = made("run", "--rm", *asked, "cuda_client", "fill")
    assert done.returncode == 0 and full(done.stdout, 70), done


def test_taken_out_again_nothing_of_ours_is_left(release: str, vgpu: Vgpu, e2e_folder: Path) -> None:
    def files(made: Podman) -> dict[str, bytes]:
        found = [path for path in (made.folder / "over").rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in found if path.suffix != ".lock"}  # Podman's own, empty

    with podman.running(e2e_folder / f"podman-undo-{release}", release) as made:
        before = files(made)
        shown = made.inside(*vgpu.command("configure", "podman", "--hooks", "--dry-run"))
        assert shown.returncode == 2 and shown.stdout.count("+++ ") == 3
        assert files(made) == before
        for words in (("--hooks", "--set-default", "--verify"), ("--hooks",), ("--json",)):
            done = made.inside(*vgpu.command("configure", "podman", *words))
            assert done.returncode == 0, done
        assert json.loads(done.stdout)["changed"] == []
        assert json.loads(made("info", "--format=json", check=True).stdout)["host"]["ociRuntime"]["name"] == "vgpu"
        undone = made.inside(*vgpu.command("configure", "podman", "--undo"))
        assert undone.returncode == 0, undone
        order = [line.partition(":")[0] for line in undone.stdout.splitlines()]
        assert order == [f"/{HOOKS}/vgpu-createRuntime.json", f"/{HOOKS}/vgpu-poststop.json", f"/{DROP_IN}"]
        assert files(made) == before
