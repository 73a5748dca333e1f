"""vgpu doctor container on containers of runc and crun: processes that keep to the wrapper, and such that do not."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.harness import bundle, installed
from tests.harness.bundle import Container
from tests.harness.installed import Vgpu

pytestmark = pytest.mark.e2e
GIB = 1 << 30
SCHEMA = json.loads((Path(__file__).parents[2] / "docs/doctor.schema.json").read_text())
SLICE = {"vgpu.memory": "8GiB"}
# crun differs in how a process is found (no control group) and what a hook's output is worth: three tests show that
RUNC = pytest.mark.parametrize("low_level", ["runc"], indirect=True)
HOLD = ["cuda_client", "hold", "300"]
PRIVATE = "mkdir /tmp/past && ln -s /usr/lib/vgpu/libvgpu-driver.so /tmp/past/libcuda.so.1"
PAST = f"{PRIVATE} && LD_LIBRARY_PATH=/tmp/past exec cuda_client hold 300"


@contextmanager
def running(
    vgpu: Vgpu, tree: Path, folder: Path, *args: str, until: Callable[[Container], bool]
) -> Iterator[Container]:
    """A started container, once `until` says that its program has come that far."""
    with bundle.container(vgpu.runtime, folder, tree, args, annotations=SLICE) as box:
        assert box.create().code == 0
        box.start()
        end = time.monotonic() + 60
        while not until(box):
            assert time.monotonic() < end, box.output()
            time.sleep(0.02)
        yield box
        bundle.kill(box.pid)


def holds(box: Container) -> bool:
    return "CUDA_SUCCESS" in box.output()


def runs(box: Container) -> bool:
    return True


def examined(vgpu: Vgpu, box: Container, *, code: int) -> dict[str, Any]:
    done = vgpu("doctor", "container", box.id, "--json", check=False)
    assert done.returncode == code, done
    found: dict[str, Any] = json.loads(done.stdout)
    jsonschema.validate(found, SCHEMA)
    return found


def findings(found: dict[str, Any]) -> list[dict[str, str]]:
    return [one for check in found["checks"] for one in check["findings"]]


def test_a_container_that_keeps_to_its_wrapper(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    with running(vgpu, c_tree, tmp_path / "b", *HOLD, until=holds) as box:
        found = examined(vgpu, box, code=0)
        assert (found["facts"]["in_force"], found["facts"]["backend"], findings(found)) == ("yes", "wrapper", [])
        (process,) = found["facts"]["processes"]
        assert (process["command"], process["wrapped"], process["gpus"]) == ("cuda_client", True, [0])
        assert process["libraries"] and all(len(one["build_id"]) == 40 for one in process["libraries"])
        assert box.exec(["sleep", "0"]).returncode == 0
        text = vgpu("doctor", "container", box.id[:8]).stdout
        assert "in force: yes, by the wrapper" in text
        assert all(len(line) < 80 for line in text.splitlines())


@RUNC
def test_one_that_never_touched_the_gpu_is_fine(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    with running(vgpu, c_tree, tmp_path / "b", "sleep", "300", until=runs) as box:
        found = examined(vgpu, box, code=0)
    assert (found["facts"]["in_force"], findings(found)) == ("not used yet", [])


@pytest.mark.seeds("VGPU-CTR-001")
def test_a_process_that_opens_the_driver_by_its_private_path(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    with running(vgpu, c_tree, tmp_path / "b", "sleep", "300", until=runs) as box:
        past = box.exec_detached(["sh", "-c", PAST])
        try:
            wait_for_memory(vgpu, box)
            found = examined(vgpu, box, code=2)
        finally:
            bundle.end(past)
        first, *_ = findings(found)
        assert (found["facts"]["in_force"], first["code"], first["severity"]) == ("no", "VGPU-CTR-001", "failure")
        assert f"process {past} ('cuda_client')" in first["subject"]
        assert "/usr/lib/vgpu/libvgpu-driver.so" in first["evidence"] and "not the wrapper" in first["evidence"]
        assert examined(vgpu, box, code=0)["facts"]["in_force"] == "not used yet"  # the process is ended: the remedy


@RUNC
def test_a_driver_that_the_image_brought_along(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(c_tree, tree, symlinks=True)
    (tree / "own").mkdir()
    (sim,) = [path for path in (vgpu.prefix / "lib/vgpu/sim").glob("libcuda.so.*") if path.name != "libcuda.so.1"]
    shutil.copy(sim, tree / "own/driver.so")
    script = (
        "mkdir /tmp/x && ln -s /own/driver.so /tmp/x/libcuda.so.1 && LD_LIBRARY_PATH=/tmp/x exec cuda_client hold 300"
    )
    with running(vgpu, tree, tmp_path / "b", "sh", "-c", script, until=holds) as box:
        found = examined(vgpu, box, code=2)
    (first, *_) = findings(found)
    assert first["code"] == "VGPU-CTR-001"
    assert "/own/driver.so" in first["evidence"] and "did not mount" in first["evidence"]


def wait_for_memory(vgpu: Vgpu, box: Container) -> None:
    """Until the driver knows of memory of the container's processes."""
    end = time.monotonic() + 60
    while not json.loads(vgpu("top", "--json", "--interval", "0.1").stdout)["slices"][0]["driver_bytes"]:
        assert time.monotonic() < end
        time.sleep(0.05)


@RUNC
def test_an_older_build_is_told_apart_and_no_alarm(low_level: Path, c_tree: Path, tmp_path: Path) -> None:
    vgpu = installed.install(tmp_path, low_level)
    with running(vgpu, c_tree, tmp_path / "b", *HOLD, until=holds) as box:
        upgrade(vgpu)
        found = examined(vgpu, box, code=0)
    assert (found["facts"]["in_force"], findings(found)) == ("yes", [])
    assert "keeps its own until it is started anew" in json.dumps(found["checks"])


def upgrade(vgpu: Vgpu) -> None:
    """Another build of the wrapper takes the place of the installed one, as an installation does it."""
    path = vgpu.prefix / "lib/vgpu/wrapper/libcuda.so.1"
    data = bytearray(path.read_bytes())
    at = data.index(b"GNU\0", data.index(b"\x14\0\0\0\3\0\0\0")) + 4
    data[at : at + 4] = b"\xde\xad\xbe\xef"  # of its build id
    other = path.with_name(".other")
    other.write_bytes(data)
    other.chmod(0o755)
    other.rename(path)


@RUNC
@pytest.mark.seeds("VGPU-CTR-003")
def test_an_account_that_was_cut_from_inside(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    """Restarted, as the remedy says, the container has a whole one."""
    with running(vgpu, c_tree, tmp_path / "b", "sleep", "300", until=runs) as box:
        assert box.exec(["sh", "-c", ": > /usr/lib/vgpu/usage"]).returncode == 0
        found = examined(vgpu, box, code=2)
        assert [one["code"] for one in findings(found)] == ["VGPU-CTR-003"]
        assert "0 bytes instead of 606336" in findings(found)[0]["evidence"]
        assert found["facts"]["in_force"] == "no"
    with running(vgpu, c_tree, tmp_path / "b", "sleep", "300", until=runs) as box:
        assert findings(examined(vgpu, box, code=0)) == []


@RUNC
@pytest.mark.seeds("VGPU-CTR-002")
def test_an_account_that_was_replaced_on_the_host(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    """The program goes on with the old one, and nobody reads it."""
    with running(vgpu, c_tree, tmp_path / "b", *HOLD, until=holds) as box:
        usage = vgpu.state / f"containers/{box.id}/box/usage"
        shutil.copy2(usage, usage.with_name("other"))
        usage.with_name("other").rename(usage)
        found = examined(vgpu, box, code=2)
        assert "VGPU-CTR-002" in [one["code"] for one in findings(found)]
        assert "usage file" in findings(found)[0]["evidence"]
    with running(vgpu, c_tree, tmp_path / "b", *HOLD, until=holds) as box:
        assert findings(examined(vgpu, box, code=0)) == []


@RUNC
def test_a_quota_that_the_ledger_does_not_have(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    with running(vgpu, c_tree, tmp_path / "b", "sleep", "300", until=runs) as box:
        quota = vgpu.state / f"containers/{box.id}/box/quota"
        with quota.open("r+b") as file:
            file.seek(128 + 48)
            file.write((80 << 30).to_bytes(8, "little"))
        found = examined(vgpu, box, code=2)
        assert [one["code"] for one in findings(found)] == ["VGPU-CTR-003"]
        assert "the ledger has 8589934592" in findings(found)[0]["evidence"]


@RUNC
@pytest.mark.seeds("VGPU-CTR-004")
def test_nvml_by_its_private_path_is_a_warning(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    """Who only looks past the wrapper takes nothing."""
    script = "ln -s /usr/lib/vgpu/libvgpu-nvml.so /tmp/n.so && LD_PRELOAD=/tmp/n.so exec cuda_client hold 300"
    with running(vgpu, c_tree, tmp_path / "b", "sh", "-c", script, until=holds) as box:
        found = examined(vgpu, box, code=1)
        assert [one["code"] for one in findings(found)] == ["VGPU-CTR-004"]
        assert found["facts"]["in_force"] == "yes"
    with running(vgpu, c_tree, tmp_path / "b", *HOLD, until=holds) as box:
        assert findings(examined(vgpu, box, code=0)) == []


@pytest.mark.seeds("VGPU-CTR-006")
def test_a_slice_whose_process_is_gone(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    with running(vgpu, c_tree, tmp_path / "b", "sleep", "300", until=runs) as box:
        bundle.end(box.pid)
        found = examined(vgpu, box, code=2)
        assert [one["code"] for one in findings(found)] == ["VGPU-CTR-006"]
        vgpu("doctor", "--fix", "--offline", check=False)
        assert vgpu.containers() == []


@RUNC
@pytest.mark.seeds("VGPU-CTR-005")
def test_an_account_that_says_less_than_the_driver(vgpu: Vgpu, c_tree: Path, tmp_path: Path) -> None:
    with running(vgpu, c_tree, tmp_path / "b", *HOLD, until=holds) as box:
        zero = "busybox dd if=/dev/zero of=/usr/lib/vgpu/usage bs=8 count=1 seek=16 conv=notrunc"  # gpus[0].word
        assert box.exec(["sh", "-c", zero]).returncode == 0
        found = examined(vgpu, box, code=1)
        assert [one["code"] for one in findings(found)] == ["VGPU-CTR-005"]
        assert f"{4 * GIB} bytes on GPU 0" in findings(found)[0]["evidence"]
    with running(vgpu, c_tree, tmp_path / "b", *HOLD, until=holds) as box:
        assert findings(examined(vgpu, box, code=0)) == []


@RUNC
def test_who_is_not_there_is_refused(vgpu: Vgpu) -> None:
    done = vgpu("doctor", "container", "nobody", check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("vgpu: VGPU-SET-001: ")
