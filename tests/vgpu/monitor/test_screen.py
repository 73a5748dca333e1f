"""What top shows: within the terminal's width, in the order that was asked for, without a terminal as plain lines."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from dataclasses import replace

import pytest

from tests.vgpu.monitor.host import GIB, ROOT, SECOND, Host, refused
from tests.vgpu.monitor.samples import container, process, sample, use
from vgpu.monitor import screen
from vgpu.monitor.sample import ContainerSample, Sample, SliceSample
from vgpu.monitor.status import Status

RUNNING = Status(True, {})


def at_work(name: str, seconds: float, *, memory: int = 0, throttled: float = 0.0, refused: int = 0) -> ContainerSample:
    figures = use(
        used_bytes=memory, throttled_ns=int(throttled * seconds * SECOND),
        denied={"quota": int(refused * seconds), "slot": 0, "refused": 0, "driver": 0},
    )  # fmt: skip
    return container(name, slices=(SliceSample(0, "GPU-0", 8 * GIB, 30, figures),))


def moment(seconds: float) -> Sample:
    return sample(
        at_work("small", seconds, memory=GIB, throttled=0.5),
        at_work("large", seconds, memory=6 * GIB),
        at_work("denied", seconds, memory=2 * GIB, refused=3),
        processes=(process("small", sm_percent=10.0), process("large", sm_percent=25.0), process("denied")),
        seconds=seconds,
    )


def shown(view: screen.Snapshot, width: int = 80, height: int | None = None) -> list[str]:
    return [line for _, line in screen.text(view, width, height)]


@pytest.mark.parametrize(
    ("sort", "first"),
    [("memory", "large"), ("cores", "large"), ("throttled", "small"), ("denied", "denied"), ("name", "denied")],
)
def test_each_order_puts_the_right_one_first(sort: str, first: str) -> None:
    view = screen.snapshot(moment(10), moment(12), RUNNING, sort)
    assert view.lines[0].row.name == first
    assert set(screen.SORTS) == {"memory", "cores", "throttled", "denied", "name"}


def test_the_figures_of_the_interval_are_shown() -> None:
    lines = shown(screen.snapshot(moment(10), moment(12), RUNNING, "memory", "12:34:56"))
    assert lines[0] == "vgpu top   12:34:56   3 containers   simulated"
    assert lines[1] == "GPU 0   busy  50 %   memory 10.0 / 80.0 GiB   given out 24.0 GiB, 90 % cores"
    words = [line.split() for line in lines[3:]]
    assert words[0] == ["CONTAINER", "GPU", "MEMORY", "CORES", "WAITED", "DENIED", "PROC"]
    assert " ".join(words[1]) == "large 0 6.0 / 8.0 GiB 25 / 30 % 0 % 0 1"
    assert " ".join(words[2]) == "denied 0 2.0 / 8.0 GiB 0 / 30 % 0 % 36 (+6) 1"
    assert " ".join(words[3]) == "small 0 1.0 / 8.0 GiB 10 / 30 % 50 % 0 1"
    assert len(words) == 4  # and no remark


def test_the_first_look_has_no_rates() -> None:
    lines = shown(screen.snapshot(None, moment(10), RUNNING, "name"))
    assert " ".join(lines[4].split()) == "denied 0 2.0 / 8.0 GiB ? / 30 % ? 30 1"


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    big = use(used_bytes=1023 * GIB, denied={"quota": 10**12, "slot": 0, "refused": 0, "driver": 0})
    wide = container("n" * 300, slices=(SliceSample(0, "GPU-0", 1024 * GIB, 100, big),))
    status = Status(True, {("n" * 300, 0, "bypass-suspected"): "pid 1, " * 40})
    lines = shown(screen.snapshot(sample(wide), sample(wide, seconds=1), status, "name"), width)
    assert max(map(len, lines)) <= width
    assert any(line.startswith("bypass-suspected: nnn") for line in lines)


def test_what_does_not_fit_the_height_is_counted() -> None:
    many = sample(*(at_work(f"c{number:03}", 1) for number in range(100)))
    lines = shown(screen.snapshot(None, many, Status(False, {}), "name"), 80, 24)
    assert len(lines) <= 24
    assert lines[-3] == "… 84 more"
    assert lines[-1].startswith("vgpu monitor is not running")


def test_a_hostile_name_does_not_reach_the_terminal() -> None:
    lines = shown(screen.snapshot(None, sample(container("a\x1b[31m\n")), RUNNING, "name"))
    assert "a\\x1b[31m\\n" in lines[4]


def test_nothing_to_show_is_said() -> None:
    assert "no container has a slice" in shown(screen.snapshot(None, sample(), RUNNING, "name"))
    empty = replace(sample(), gpus=(), troubles=(("nvml", "driver not loaded"),))
    assert "nvml: driver not loaded" in shown(screen.snapshot(None, empty, RUNNING, "name"))


def test_without_a_terminal_there_is_no_colour_and_no_control_character(host: Host) -> None:
    host.use(host.give_out("job"), used_bytes=GIB, denied=(2,))
    done = host.vgpu("top", "--once", "--interval", "0.1")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "1.0 / 8.0 GiB" in done.stdout
    assert "nvml: NVML says" not in done.stderr
    assert "nvml: " in done.stdout  # no simulated driver is installed here: said, and all else shown


def test_json_is_one_object(host: Host) -> None:
    host.use(host.give_out("job"), used_bytes=GIB, denied=(2, 0, 1), throttled_ns=5 * SECOND)
    told = json.loads(host.vgpu("top", "--json", "-i", "0.1").stdout)
    (one,) = told["slices"]
    assert (told["schema"], one["name"], one["used_bytes"], one["throttled_ratio"]) == (1, "job", GIB, 0.0)
    assert one["denied"] == {"quota": 2, "slot": 0, "refused": 1, "driver": 0}
    assert (one["driver_bytes"], told["gpus"]) == (None, [])


def test_what_cannot_be_is_refused(host: Host) -> None:
    refused(host.vgpu("top", "--sort", "size"), "VGPU-CFG-003", "--sort 'size'", "memory, cores, throttled")
    refused(host.vgpu("top", "--interval", "0"), "VGPU-CFG-003", "--interval '0'", "0.1 to 3600")
    refused(host.vgpu("top", "--interval", "nan"), "VGPU-CFG-003", "--interval 'nan'")


def test_on_a_terminal_it_is_live_and_ends_with_ctrl_c(host: Host) -> None:
    host.use(host.give_out("job"), used_bytes=GIB)
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, host.command("top", "-i", "0.2"), host.environment(TERM="xterm"))
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    seen, until = b"", time.monotonic() + 30
    while seen.count(b"CONTAINER") < 3 and time.monotonic() < until:
        if select.select([fd], [], [], 0.1)[0]:
            seen += os.read(fd, 65536)
    try:
        for _ in range(10):  # mostly once: Python loses a Ctrl-C that comes while it clears away an object
            os.kill(pid, signal.SIGINT)
            until = time.monotonic() + 3
            while time.monotonic() < until:
                seen += os.read(fd, 65536) if select.select([fd], [], [], 0.1)[0] else b""
    except OSError:  # the other end has gone
        pass
    os.close(fd)
    assert os.waitpid(pid, 0)[1] == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())
    assert seen.count(b"CONTAINER") >= 3
    assert "1.0 / 8.0 GiB" in plain
    assert "Traceback" not in plain
    assert b"\x1b[?1049l" in seen  # the terminal is given back as it was
