"""The main job on a real Docker: labels give a slice, or a clear refusal, and nothing is left afterwards."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import images, leftovers
from tests.harness.dockerd import Docker
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e
GIB = 1 << 30
ASK = ("--label=vgpu.memory=8GiB", "--label=vgpu.cores=30")
RUN = ("run", "--rm", "--runtime=vgpu")


@pytest.fixture(autouse=True)
def nothing_is_left(docker: Docker, docker_vgpu: Vgpu) -> Iterator[None]:
    yield
    if ids := docker("ps", "--all", "--quiet").stdout.split():
        docker("rm", "--force", *ids, check=True)
    assert docker_vgpu.containers() == []
    assert leftovers.mounts(docker_vgpu.prefix, docker_vgpu.state) == []
    assert leftovers.cgroups(docker.cgroup) == []


def detached(docker: Docker, image: str, *options: str) -> str:
    """The id of a new container that sleeps."""
    return docker("run", "--detach", "--runtime=vgpu", *options, image, "sleep", "120", check=True).stdout.strip()


def ours(text: str) -> str:
    lines = [line for line in text.splitlines() if "vgpu: " in line]
    assert len(lines) == 1, text
    return lines[0]


@pytest.mark.parametrize("options", [(), ("--read-only",), ("--user=1000",), ("--read-only", "--user=1000")], ids=str)
def test_a_c_program_sees_its_slice_and_nothing_above(docker: Docker, c_image: str, options: tuple[str, ...]) -> None:
    done = docker(*RUN, *ASK, *options, c_image, "cuda_client", "fill")
    assert done.returncode == 0, done
    assert str(8 * GIB) in done.stdout
    assert "CUDA_ERROR_OUT_OF_MEMORY" in done.stdout
    assert str(80 * GIB) not in done.stdout


def test_cuda_bindings_and_pynvml_see_the_slice_to_the_byte(docker: Docker, python_image: str) -> None:
    done = docker(*RUN, *ASK, python_image, "python3", "/cuda_python.py", str(8 * GIB))
    assert done.returncode == 0, done
    seen = {what: json.loads(value) for what, value in (line.split(" = ") for line in done.stdout.splitlines())}
    assert seen["devices"] == seen["nvml devices"] == 1
    assert seen["total"] == 8 * GIB
    assert seen["one byte above"] == "CUDA_ERROR_OUT_OF_MEMORY"
    assert seen["all of it"] == "CUDA_SUCCESS"
    assert seen["one byte more"] == "CUDA_ERROR_OUT_OF_MEMORY"
    assert seen["free, total while all is taken"] == [0, 8 * GIB]
    assert seen["nvml total, used"] == [8 * GIB, 8 * GIB]
    assert seen["free at the end"] == 8 * GIB


@pytest.mark.parametrize(("tool", "shown"), [(("nvitop", "--once"), "8192MiB"), (("gpustat",), "8192")], ids=str)
def test_monitors_show_the_slice(docker: Docker, python_image: str, tool: tuple[str, ...], shown: str) -> None:
    done = docker(*RUN, *ASK, python_image, "python3", "-m", *tool)
    assert done.returncode == 0, done
    assert shown in done.stdout.replace(" ", "") or "8.00GiB" in done.stdout.replace(" ", ""), done.stdout
    assert "81920" not in done.stdout


def test_exec_and_restart_keep_the_slice(docker: Docker, docker_vgpu: Vgpu, c_image: str) -> None:
    name = detached(docker, c_image, *ASK)
    for _ in range(2):
        done = docker("exec", name, "cuda_client", "info")
        assert done.returncode == 0, done
        assert str(8 * GIB) in done.stdout
        assert docker_vgpu.given_out() == {0: 8 * GIB}
        docker("restart", "--time=0", name, check=True)
    docker("stop", "--time=0", name, check=True)
    assert docker_vgpu.containers() == []


def test_ps_lists_slices_with_quota_and_use(docker: Docker, docker_vgpu: Vgpu, c_image: str) -> None:
    name = docker("run", "--detach", "--runtime=vgpu", "--name=lister", *ASK, c_image, "cuda_client", "hold", "60",
                  check=True).stdout.strip()  # fmt: skip
    rows = json.loads(docker_vgpu("ps", "--json").stdout)["containers"]
    assert [row["id"] for row in rows] == [name]
    assert rows[0]["name"] == "lister"
    text = docker_vgpu("ps").stdout
    assert "lister" in text
    assert "8192" in text or "8.0 GiB" in text or "8 GiB" in text


def test_the_next_goes_where_there_is_room_and_what_does_not_fit_is_refused(
    docker: Docker, docker_vgpu: Vgpu, c_image: str
) -> None:
    first = detached(docker, c_image, "--label=vgpu.memory=60GiB")
    second = detached(docker, c_image, "--label=vgpu.memory=10GiB")
    third = detached(docker, c_image, "--label=vgpu.memory=60GiB")
    placed = [docker_vgpu.allocation(name)["placement"]["slices"][0]["index"] for name in (first, second, third)]
    assert placed == [0, 0, 1]  # binpack: the fullest GPU with room
    done = docker(*RUN, "--label=vgpu.memory=30GiB", c_image, "true")
    assert done.returncode == 125, done
    line = ours(done.stderr)
    assert "VGPU-PLC-001" in line
    assert "GPU 0" in line and "GPU 1" in line
    assert line.count("CardInsufficientMemory") >= 2


def test_spread_takes_the_emptier_gpu(docker: Docker, docker_vgpu: Vgpu, c_image: str) -> None:
    names = [detached(docker, c_image, *ASK, "--label=vgpu.policy=spread") for _ in range(2)]
    placed = [docker_vgpu.allocation(name)["placement"]["slices"][0]["index"] for name in names]
    assert placed == [0, 1]


@pytest.mark.parametrize(
    ("tree", "code", "named"),
    [
        ("no-libpthread", "VGPU-DEP-001", "libpthread.so.0"),
        ("old-glibc", "VGPU-DEP-002", "GLIBC_2.4"),
        ("musl", "VGPU-DEP-003", "musl"),
        ("no-glibc", "VGPU-DEP-004", "libc.so.6"),
    ],
)
def test_an_image_in_which_the_driver_cannot_load_is_refused_in_words(
    docker: Docker, images_folder: Path, tree: str, code: str, named: str
) -> None:
    image = images.load(docker, images.tree(images_folder, tree), f"vgpu-test:{tree}")
    done = docker(*RUN, *ASK, image, "busybox", "true")
    assert done.returncode == 125, done
    line = ours(done.stderr)
    assert code in line
    assert named in line
    assert "to mend it:" in line
    if code in ("VGPU-DEP-001", "VGPU-DEP-002"):
        assert "libcuda" in line or "libnvidia-ml" in line or "libvgpu" in line  # who needs it
    plain = docker("run", "--rm", "--runtime=vgpu", image, "busybox", "true")
    assert plain.returncode == 0, plain  # without a slice, the same image is none of our business


def test_a_container_that_asks_for_nothing_is_byte_for_byte_dockers(
    docker: Docker, docker_vgpu: Vgpu, c_image: str, seen: Path
) -> None:
    audit = len(docker_vgpu.audit())
    done = docker("run", "--rm", "--runtime=vgpu-recorded", "--label=team=a", c_image, "sh", "-c", "ls / /usr/lib; env")
    assert done.returncode == 0, done
    assert "vgpu" not in done.stdout
    pairs = [(path.read_bytes(), path.with_suffix(".by-runc").read_bytes()) for path in seen.glob("*.by-docker")]
    assert len(pairs) == 1
    assert pairs[0][0] == pairs[0][1]
    assert len(docker_vgpu.audit()) == audit


def test_a_program_that_does_not_exist_is_dockers_own_error(docker: Docker, c_image: str) -> None:
    """127, as without us: our texts and codes must not get in the way of the engine's."""
    assert docker(*RUN, *ASK, c_image, "no-such-program").returncode == 127


@pytest.mark.slow
def test_twelve_at_once_get_what_there_is_and_no_more(docker: Docker, docker_vgpu: Vgpu, c_image: str) -> None:
    """20 GiB each on 2 x 80 GiB: eight fit."""
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        runs = [
            pool.submit(
                docker, "run", "--detach", "--runtime=vgpu", "--label=vgpu.memory=20GiB", c_image, "sleep", "60"
            )
            for _ in range(12)
        ]
        done = [run.result() for run in runs]
    assert sorted(run.returncode for run in done) == [0] * 8 + [125] * 4, [run.stderr for run in done]
    assert docker_vgpu.given_out() == {0: 80 * GIB, 1: 80 * GIB}
    assert all("VGPU-PLC-001" in run.stderr for run in done if run.returncode)
