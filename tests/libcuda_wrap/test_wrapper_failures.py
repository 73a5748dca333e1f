"""When a file of the slice is unusable, or becomes so: nothing is let through, and nothing but the guilty ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from libcuda_wrap import bindings
from libcuda_wrap.sim import create
from oci_hook.errors import HostError
from tests.libcuda_wrap.wrapped import GIB, MIB, NOT_READY, OK, OUT_OF_MEMORY, Box, Client, part


def reads_as(box: Box, offset: int, value: int) -> None:
    """Writes a 32-bit word of the usage file in place, as it is mapped."""
    with (box.folder / "usage").open("r+b") as file:
        file.seek(offset)
        file.write(value.to_bytes(4, "little"))


@pytest.mark.parametrize("newer", [-1, 1, 1000])
@pytest.mark.parametrize("name", ["quota", "usage"])
def test_an_older_or_newer_layout_is_refused_and_left_as_it_is(plain_box: Box, name: str, newer: int) -> None:
    plain_box.fresh(part(0, GIB))
    data = bytearray((plain_box.folder / name).read_bytes())
    data[4:8] = (bindings.constants()[f"VGW_{name.upper()}_VERSION"] + newer).to_bytes(4, "little")
    plain_box.write(name, bytes(data))
    client = plain_box.client()
    assert client.ask("init")[0] == NOT_READY
    assert client.ask("alloc linear 0 1")[0] != OK
    assert client.end() == ""
    assert (plain_box.folder / name).read_bytes() == bytes(data)


@pytest.mark.parametrize(("at", "value"), [(12, 0), (12, 17), (12, 0xFFFFFFFF), (8, 1)])
def test_a_quota_that_makes_no_sense_is_refused(plain_box: Box, at: int, value: int) -> None:
    plain_box.fresh(part(0, GIB))
    data = bytearray((plain_box.folder / "quota").read_bytes())
    data[at : at + 4] = value.to_bytes(4, "little")
    plain_box.write("quota", bytes(data))
    assert plain_box.client().ask("init")[0] == NOT_READY


def test_a_uuid_without_an_end_is_refused(plain_box: Box) -> None:
    plain_box.fresh(part(0, GIB))
    data = bytearray((plain_box.folder / "quota").read_bytes())
    data[128 : 128 + 48] = b"G" * 48
    plain_box.write("quota", bytes(data))
    assert plain_box.client().ask("init")[0] == NOT_READY


@pytest.mark.parametrize("name", ["quota", "usage"])
@pytest.mark.parametrize("kind", ["folder", "dangling link", "fifo"])
def test_what_is_no_file_is_refused_without_waiting_for_it(plain_box: Box, name: str, kind: str) -> None:
    plain_box.fresh(part(0, GIB))
    path = plain_box.folder / name
    path.unlink()
    {"folder": path.mkdir, "dangling link": lambda: path.symlink_to("nowhere"), "fifo": lambda: os.mkfifo(path)}[kind]()
    try:
        done = plain_box.run(
            ["timeout", "20", sys.executable, "-c", "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))"]
        )
        assert done.stdout == f"{NOT_READY}\n"
    finally:
        path.rmdir() if kind == "folder" else path.unlink()


def test_a_usage_file_that_cannot_be_written_is_refused(plain_box: Box, needs_root: None) -> None:
    plain_box.fresh(part(0, GIB))
    usage = plain_box.folder / "usage"
    code = "import ctypes; c = ctypes.CDLL('libcuda.so.1'); print(c.cuInit(0), c.cuMemAlloc_v2(b'12345678', 8))"
    script = f'mount --bind {usage} {usage} && mount -o remount,ro,bind {usage} && exec {sys.executable} -c "$CODE"'
    done = plain_box.run(["unshare", "-m", "sh", "-c", script], CODE=code)
    assert done.stdout.split()[0] == str(NOT_READY) and done.stdout.split()[1] != str(OK), done
    assert plain_box.usage().armed_ns == 0


def test_a_quota_that_goes_while_it_is_mapped_stays_in_force(plain_box: Box) -> None:
    plain_box.fresh(part(0, MIB))
    client = plain_box.client().ready()
    (plain_box.folder / "quota").unlink()
    assert client.ask(f"alloc linear 0 {MIB + 1}")[0] == OUT_OF_MEMORY
    assert client.ask(f"alloc linear 0 {MIB}")[0] == OK


def ended_by(client: Client) -> int:
    client.process.communicate(timeout=20)
    return -client.process.returncode


def test_who_cuts_its_own_usage_file_ends_its_own_programs_and_gets_nothing(plain_box: Box, driver: Path) -> None:
    """Mapped pages are gone then, and touching them is SIGBUS. To go on without a ledger would be to let everything
    through, and a handler for the signal is the program's own affair: so the program ends. The host reads by pread."""
    plain_box.fresh(part(0, MIB))
    client = plain_box.client().ready()
    assert client.ask("alloc linear 0 4096")[0] == OK
    os.truncate(plain_box.folder / "usage", 0)
    client.tell(f"alloc linear 1 {GIB}")
    assert ended_by(client) == signal.SIGBUS
    assert create.read_state(plain_box.folder / "sim").gpus[0].used_bytes == 0
    with pytest.raises(HostError) as caught:
        plain_box.usage()
    assert caught.value.code == "VGPU-HOST-009"
    assert plain_box.client().ask("init")[0] == NOT_READY
    os.truncate(plain_box.folder / "usage", os.path.getsize(plain_box.folder / "quota"))
    assert plain_box.client().ask("init")[0] == NOT_READY


def test_a_program_that_overwrites_the_ledger_cannot_make_another_hang_or_end(plain_box: Box) -> None:
    """It can lie about its own container, which is cooperative; counters that lead nowhere are not followed."""
    plain_box.fresh(part(0, GIB))
    client = plain_box.client().ready()
    assert client.ask("alloc linear 0 4096")[0] == OK
    reads_as(plain_box, bindings.ffi().offsetof("struct vgw_usage", "slot_high"), 0xFFFFFFFF)
    assert client.ask("alloc linear 1 4096")[0] == OK
    other = plain_box.client().ready()
    assert other.ask("info")[0] == OK and other.ask("alloc linear 0 1")[0] == OK
    assert len(plain_box.usage().processes) == 2


def test_a_full_disk_refuses_the_start_and_not_the_program(tmp_path: Path, needs_root: None) -> None:
    """The usage file is there in full before a container starts: later there is nothing left to be refused."""
    code = """
import os, sys
from oci_hook import ledger, quota_file
from oci_hook.errors import HostError
from oci_hook.records import Allocation, Ask, Placement, Plan, Process, Request
allocation = Allocation(
    id="c1", name="", image="", state="creating", created_ns=1, creator=Process(os.getpid(), 1), init=None,
    request=Request(asks=(Ask(memory_bytes=1),)), placement=Placement("binpack", (), ()), clamped=(), simulated=True,
    driver_version="1")
with ledger.Ledger(sys.argv[1]) as book:
    try:
        book.add(allocation, Plan((), ()), b"q", quota_file.usage_header(), quota_file.USAGE_BYTES)
    except HostError as error:
        print(error.code, book.names())
"""
    script = f'mount -t tmpfs -o size=128k tmpfs {tmp_path} && exec {sys.executable} -c "$CODE" {tmp_path}/state'
    environment = {**os.environ, "CODE": code, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = ["unshare", "-m", "sh", "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "VGPU-HOST-003 []\n", done
