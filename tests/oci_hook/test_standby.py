"""vgpu-hook hands the call to the hook that waits, or starts one; the one that waits ends with its runtime."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from start_path import Installed, built_launcher, install

from tests.harness import leftovers

STATE = b'{"id":"x1"}'
# until it is dead, and its end of the socket closed: a pidfd can be read only after that
KILL = (
    "import os, select; launcher = int(sys.argv[sys.argv.index('--launcher') + 1]); dead = os.pidfd_open(launcher); "
    "os.kill(launcher, 9); select.select([dead], [], [])"
)
EARLY = f"{KILL}\n"
LATE = f"""\
def late(call, code, answer=shim._answer):
    {KILL}
    return answer(call, code)
shim._answer = late
"""
PROGRAM = '#!/bin/sh\nfor word; do echo "$word"; done >"$OUT/words"\npwd >"$OUT/cwd"\ncat >"$OUT/state"\nexit 9\n'


class Call:
    """One call of vgpu-hook in a folder; `program` is what it falls back to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "container"
        self.folder.mkdir()
        self.out = folder
        self.program = folder / "program"
        self.program.write_text(PROGRAM)
        self.program.chmod(0o755)

    def run(self, state: bytes = STATE) -> subprocess.CompletedProcess[bytes]:
        command = [built_launcher().with_name("vgpu-hook"), self.folder, self.program, "prestart", "--policy", "p"]
        env = {"OUT": str(self.out)}
        return subprocess.run(command, input=state, env=env, cwd="/usr", capture_output=True, timeout=20, check=False)

    def answered(self, answer: bytes) -> subprocess.CompletedProcess[bytes]:
        """As run, while somebody listens who reads the state and says `answer`."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.folder / "hook.sock"))
            listener.listen()
            heard: list[bytes] = []
            thread = threading.Thread(target=_answer, args=(listener, answer, heard.append))
            thread.start()
            done = self.run()
            thread.join(10)
        assert heard == [STATE]
        return done

    def program_ran(self) -> bool:
        return (self.out / "state").exists()


def wait_for_its_end(vgpu: Installed) -> None:
    until = time.monotonic() + 30
    while leftovers.processes(vgpu.base) and time.monotonic() < until:
        time.sleep(0.01)
    assert leftovers.processes(vgpu.base) == []


def _answer(listener: socket.socket, answer: bytes, heard: Callable[[bytes], None]) -> None:
    channel, _ = listener.accept()
    with channel:
        heard(channel.makefile("rb").read())
        channel.sendall(answer)


@pytest.fixture
def call(tmp_path: Path) -> Call:
    return Call(tmp_path)


@pytest.mark.parametrize("code", [0, 6])
def test_what_the_waiting_hook_answers_is_said(call: Call, code: int) -> None:
    done = call.answered(b"vgpu: a line\n" * code + bytes((0, code)))
    assert (done.returncode, done.stderr) == (code, b"vgpu: a line\n" * code)
    assert not call.program_ran()


def test_an_answer_that_breaks_off_is_a_failure(call: Call) -> None:
    done = call.answered(b"vgpu: a li")
    assert (done.returncode, done.stderr) == (1, b"vgpu: a li")
    assert not call.program_ran()


def test_if_nobody_listens_the_program_gets_the_same_call(call: Call) -> None:
    assert call.run().returncode == 9
    assert (call.out / "state").read_bytes() == STATE
    assert (call.out / "words").read_text().split() == ["prestart", "--policy", "p"]
    assert (call.out / "cwd").read_text() == "/usr\n"


def test_if_the_listener_dies_before_it_answers_the_program_is_started(call: Call) -> None:
    assert call.answered(b"").returncode == 9
    assert (call.out / "state").read_bytes() == STATE


def test_a_socket_that_nobody_has_any_more_is_nobody(call: Call) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(call.folder / "hook.sock"))
    assert call.run().returncode == 9


def test_a_state_that_is_too_long_is_passed_on_as_too_long(call: Call) -> None:
    assert call.run(b" " * (3 << 20)).returncode == 9
    assert (call.out / "state").stat().st_size == (1 << 20) + 1


def test_the_hook_that_waits_ends_with_a_runtime_that_never_calls_it(tmp_path: Path) -> None:
    vgpu: Installed = install(tmp_path)
    vgpu.write_config(labels={"vgpu.memory": "8GiB"})
    vgpu.create()  # its runc only writes down how it was called
    wait_for_its_end(vgpu)


@pytest.mark.parametrize(("moment", "events"), [(EARLY, ["deny"]), (LATE, ["allocate", "release"])])
def test_a_launcher_that_was_killed_keeps_no_slice(tmp_path: Path, moment: str, events: list[str]) -> None:
    """The shim is no child of it, and goes on; it notices before it places the container, or when it answers."""
    vgpu = install(tmp_path)
    vgpu.write_config(labels={"vgpu.memory": "8GiB"})
    entry = vgpu.base / "prefix/lib/vgpu/python/vgpu_shim.py"
    entry.write_text(entry.read_text().replace("sys.exit(shim.main", f"{moment}sys.exit(shim.main"))
    assert vgpu.create().returncode == -9
    wait_for_its_end(vgpu)
    assert [entry["event"] for entry in vgpu.audit()] == events
    assert vgpu.containers() == []
