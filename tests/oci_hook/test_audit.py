"""Lines of processes that run at once do not mix, refusals are kept, and neither ever fails a start."""

from __future__ import annotations

import json
import os
from multiprocessing import get_context
from pathlib import Path

from oci_hook import audit
from oci_hook.errors import RequestError
from oci_hook.records import Slice

ERROR = RequestError("VGPU-REQ-001", "vgpu.memory='4': not a size", remedy="write vgpu.memory=4GiB")


def test_one_object_a_line_with_the_records_in_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    audit.append(str(log), "allocate", "abc", slices=(Slice(0, "GPU-0", 1, 2),), text='"\n\ud800')
    audit.append(str(log), "release", "abc")
    first, second = [json.loads(line) for line in (log / "audit.jsonl").read_text().splitlines()]
    assert first["slices"] == [{"index": 0, "uuid": "GPU-0", "memory_bytes": 1, "cores_percent": 2}]
    assert (first["schema"], first["event"], first["id"]) == (1, "allocate", "abc")
    assert second["time_ns"] >= first["time_ns"]
    assert (log / "audit.jsonl").stat().st_mode & 0o027 == 0


def _write(log: str, number: int) -> None:
    for _ in range(50):
        audit.append(log, "deny", str(number), message="x" * 3000)


def test_lines_of_processes_at_once_do_not_mix(tmp_path: Path) -> None:
    workers = [get_context("fork").Process(target=_write, args=(str(tmp_path), number)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert len(lines) == 300
    assert {json.loads(line)["id"] for line in lines} == set("012345")


def test_a_log_that_cannot_be_written_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    audit.append(str(tmp_path / "file"), "deny", "x")
    audit.failure(str(tmp_path / "file"), "x", ERROR)
    os.mkfifo(tmp_path / "audit.jsonl")
    audit.append(str(tmp_path), "deny", "x")  # nobody reads it, and nobody waits
    (tmp_path / "audit.jsonl").unlink()
    (tmp_path / "audit.jsonl").symlink_to("/dev/full")
    audit.append(str(tmp_path), "deny", "x")


def test_a_refusal_is_kept_by_container(tmp_path: Path) -> None:
    audit.failure(str(tmp_path), "abc", ERROR)
    found = json.loads((tmp_path / "failures/abc.json").read_text())
    assert (found["code"], found["message"], found["remedy"]) == (ERROR.code, str(ERROR), ERROR.remedy)


def test_the_newest_hundred_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "failures"
    for number in range(audit.KEPT_FAILURES + 5):
        audit.failure(str(tmp_path), f"c{number}", ERROR)
        os.utime(folder / f"c{number}.json", ns=(number, number))
    audit.failure(str(tmp_path), "last", ERROR)
    names = {path.stem for path in folder.iterdir()}
    assert len(names) == audit.KEPT_FAILURES
    assert {"last", "c104", "c6"} <= names
    assert "c0" not in names
