"""The ring of what was seen: fixed in size, whole after any crash, one writer."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from oci_hook.errors import HostError
from tests.vgpu.monitor.host import ROOT
from tests.vgpu.monitor.samples import row
from vgpu.monitor import history, truth
from vgpu.monitor.rows import REST, Row

PLACES = 8
SIZE = (PLACES + 1) * history.PLACE_BYTES


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "monitor/history")


def written(file: str, rows: list[Row]) -> None:
    with history.Writer(file, SIZE) as ring:
        ring.append(rows)


def test_rows_come_back_as_they_were(file: str) -> None:
    rows = [
        row(
            "job",
            1,
            denied=(1, 2, 3, 4),
            busy_ns=2**63,
            throttled_ns=5,
            used_bytes=2**43,
            sm_percent=12.34,
            known=False,
        ),
        row("x" * 200, 2, nvml_bytes=None, sm_percent=None, gpu_percent=None, findings=frozenset(truth.KINDS)),
        row(REST, 2, gpu=15, cores_percent=7, processes=1000),
    ]
    written(file, rows)
    read = history.read(file)
    assert read[0] == rows[0]
    assert read[1].id == "x" * 200
    assert read[1].name == "x" * 64  # a name may be cut, an id never
    assert (read[1].nvml_bytes, read[1].sm_percent, read[1].findings) == (None, None, frozenset(truth.KINDS))
    assert read[2] == rows[2]
    assert history.read(file, since_ns=rows[1].time_ns) == read[1:]


def test_a_name_is_cut_at_a_character(file: str) -> None:
    written(file, [row("a", 1, name="ü" * 40 + "€" * 20)])
    assert history.read(file)[0].name in ("ü" * 32, "ü" * 31)


def test_the_file_never_grows_and_keeps_the_newest(file: str) -> None:
    written(file, [row("job", number) for number in range(3 * PLACES + 3)])
    assert os.stat(file).st_size == SIZE
    assert [one.time_ns for one in history.read(file)] == [
        row("", n).time_ns for n in range(2 * PLACES + 3, 3 * PLACES + 3)
    ]
    written(file, [row("job", 100)])  # a new writer goes on after the last
    read = history.read(file)
    assert (len(read), read[-1].time_ns) == (PLACES, row("", 100).time_ns)


@pytest.mark.parametrize("at", [0, 4, 100, 443])
def test_a_record_that_was_torn_is_passed_over(file: str, at: int) -> None:
    written(file, [row("job", number) for number in range(5)])
    with open(file, "r+b") as stream:
        stream.seek(4 * history.PLACE_BYTES + at)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 0xFF]))
    assert [one.time_ns // 10**9 for one in history.read(file)] == [0, 1, 3, 4]
    written(file, [row("job", 5)])
    assert [one.time_ns // 10**9 for one in history.read(file)] == [0, 1, 3, 4, 5]


def newest(file: str) -> int:
    """The highest sequence number in it."""
    data = Path(file).read_bytes()
    places = range(history.PLACE_BYTES, len(data), history.PLACE_BYTES)
    return max((int(struct.unpack_from("<Q", data, at + 4)[0]) for at in places), default=0)


def test_a_writer_killed_at_any_moment_leaves_a_history_that_reads(file: str) -> None:
    code = (
        "import sys; from vgpu.monitor import history; from tests.vgpu.monitor.samples import row\n"
        f"with history.Writer({file!r}, {SIZE}) as ring:\n"
        "    print('ready', flush=True); number = 0\n"
        "    while True: number += 1; ring.append([row('job', number)])\n"
    )
    last = 0
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
        until = time.monotonic() + 20
        while newest(file) < last + PLACES and time.monotonic() < until:
            time.sleep(0.001)
        writer.kill()
        writer.communicate()
        assert newest(file) >= last + PLACES  # each goes on where the last one ended
        last = newest(file)
        assert len(history.read(file)) >= PLACES - 1


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"VGPUHIST" + bytes(10_000), bytes(SIZE)])
def test_a_file_that_is_no_history_is_refused_by_readers_and_made_anew_by_the_writer(file: str, content: bytes) -> None:
    Path(file).parent.mkdir()
    Path(file).write_bytes(content)
    with pytest.raises(HostError, match="is not a history of version 1") as caught:
        history.read(file)
    assert caught.value.code == "VGPU-MON-001"
    written(file, [row("job", 1)])
    assert len(history.read(file)) == 1


def test_no_history_says_how_to_get_one(file: str) -> None:
    with pytest.raises(HostError, match="there is none yet") as caught:
        history.read(file)
    assert "systemctl start vgpu-monitor" in caught.value.remedy


def test_a_second_monitor_is_refused(file: str) -> None:
    with history.Writer(file, SIZE):
        with pytest.raises(HostError) as caught:
            history.Writer(file, SIZE)
        assert caught.value.code == "VGPU-MON-002"
    history.Writer(file, SIZE).__exit__(None, None, None)  # free again


def test_a_link_in_its_place_is_not_followed(file: str, tmp_path: Path) -> None:
    Path(file).parent.mkdir()
    (tmp_path / "victim").write_bytes(b"keep")
    Path(file).symlink_to(tmp_path / "victim")
    with pytest.raises(HostError):
        history.Writer(file, SIZE)
    assert (tmp_path / "victim").read_bytes() == b"keep"
