"""What a person, and a program, gets from the doctor: worst first, narrow, plain in a pipe, honest about its limits."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from prepared import Installation, Tree

from vgpu.doctor import host as checks
from vgpu.doctor import report
from vgpu.doctor.finding import FAILURE, OK, UNSEEN, WARNING, CannotSee, Check, Seen, Unseen, found, run

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs/doctor.schema.json").read_text())


def doctor(here: Installation, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*options.pop("before", []), *here.vgpu.command("doctor", *arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def check(name: str, *results: Any, group: str = "host") -> Check:
    return run(group, name, results)


@pytest.fixture
def mixed() -> report.Report:
    """One check of each kind, in another order than they are to be shown in."""
    return report.Report("host", "", (
        check("fine", Seen("as it should be")),
        check("blind", Unseen("/root/x", "may not be read"), group="state"),
        check("bad", found("VGPU-DRV-004", "nvidia-uvm", "not there"), group="driver"),
        check("odd", found("VGPU-KRN-006", "clock", "nothing synchronises it")),
    ))  # fmt: skip


def test_worst_first_and_grouped(mixed: report.Report) -> None:
    text = "\n".join(report.lines(mixed))
    order = [text.index(word) for word in ("driver", "FAIL", "host", "warning", "fine", "state", "not seen")]
    assert order == sorted(order), text
    assert text.splitlines()[-1].startswith("1 failure, 1 warning, 1 not seen")
    assert mixed.state == FAILURE


def test_each_finding_has_one_line_that_mends_it(mixed: report.Report) -> None:
    text = "\n".join(report.lines(mixed))
    assert text.count("to mend it: ") == 2
    assert "modprobe nvidia-uvm && nvidia-modprobe -u -c 0" in text


@pytest.mark.parametrize(
    ("states", "code"), [([], 0), ([OK], 0), ([UNSEEN], 0), ([OK, WARNING], 1), ([FAILURE, WARNING], 2)]
)
def test_exit_codes(states: list[str], code: int) -> None:
    results = {
        OK: Seen("x"), UNSEEN: Unseen("x", "y"), WARNING: found("VGPU-KRN-006", "x", "y"),
        FAILURE: found("VGPU-DRV-004", "x", "y"),
    }  # fmt: skip
    assert report.Report("host", "", tuple(check(state, results[state]) for state in states)).exit_code == code


def test_lines_are_shorter_than_80_whatever_they_say() -> None:
    long = found("VGPU-DRV-004", "s" * 300, "word " * 100, remedy="x" * 200)
    hostile = Unseen("\x1b[2J\nname[bold]", "größe")
    lines = report.lines(report.Report("host", "", (check("c" * 40, long, hostile),)))
    assert max(map(len, lines)) < 80
    assert "\x1b" not in "".join(lines) and "[bold]" in "".join(lines)


def test_a_check_that_can_go_no_further_keeps_what_it_has() -> None:
    def half() -> Any:
        yield Seen("the first half")
        raise CannotSee("/proc/x", "may not be read")

    one = run("host", "half", half())
    assert (one.state, one.seen, one.unseen[0].subject) == (UNSEEN, ("the first half",), "/proc/x")


def test_a_file_that_goes_while_it_is_looked_at_is_not_seen() -> None:
    def looking() -> Any:
        yield Seen("the first half")
        Path("/proc/self/no-such-file").read_text()

    one = run("host", "half", looking())
    assert (one.state, one.unseen[0].subject) == (UNSEEN, "/proc/self/no-such-file")


def test_json_is_as_the_schema_says(mixed: report.Report, here: Installation) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate({"schema": 1, **report.as_dict(mixed)}, SCHEMA)
    for arguments in ((), ("--fix", "--dry-run"), ("--offline",)):
        done = doctor(here, "--json", *arguments)
        assert done.stderr == ""
        told = json.loads(done.stdout)
        jsonschema.validate(told, SCHEMA)
        assert done.returncode == report.EXIT[told["state"]]
        assert ("fixes" in told["facts"]) == ("--fix" in arguments)


def test_the_schema_refuses_what_is_not_a_report(mixed: report.Report) -> None:
    told = {"schema": 1, **report.as_dict(mixed)}
    for damage in ({"state": "good"}, {"checks": [{}]}, {"kind": "ship"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**told, **damage}, SCHEMA)


def test_names_of_checks_tell_them_apart() -> None:
    names = [name for _, name, _ in checks.CHECKS]
    assert len(set(names)) == len(names)


def test_a_pipe_gets_no_colour_and_a_terminal_does(here: Installation) -> None:
    plain = doctor(here, "--offline")
    assert "\x1b" not in plain.stdout and max(map(len, plain.stdout.splitlines())) < 80
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        here.vgpu.command("doctor", "--offline"),
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            more = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        text += more
    os.close(ours)
    assert process.wait(30) == plain.returncode
    assert b"\x1b[" in text


def test_without_an_engine_it_takes_less_than_a_second(tree: Tree) -> None:
    """The margin is for a busy machine: alone it takes a tenth of this."""
    begin = time.process_time()
    checks.examine(tree.host)
    assert time.process_time() - begin < 1.0


def test_nothing_is_changed_by_looking(here: Installation) -> None:
    def everything() -> dict[str, tuple[int, int]]:
        roots = (here.vgpu.prefix, here.vgpu.state, here.vgpu.log)
        return {
            str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for root in roots for path in root.rglob("*")
        }

    before = everything()
    doctor(here)
    assert everything() == before


def test_without_root_it_says_what_it_could_not_see(here: Installation, tmp_path: Path) -> None:
    secret = here.vgpu.state / "containers"
    secret.chmod(0o700)
    try:
        here.vgpu.prefix.parent.chmod(0o755)
        before = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
        reachable = [path for path in here.vgpu.prefix.parents if not path.stat().st_mode & 0o001]
        for path in reachable:  # pytest's own folders are for one user
            path.chmod(path.stat().st_mode | 0o011)
        done = doctor(here, "--json", "--config", here.config, before=before, cwd="/")
        told = json.loads(done.stdout)
        jsonschema.validate(told, SCHEMA)
        unseen = {one["subject"]: one["why"] for part in told["checks"] for one in part["unseen"]}
        assert any(str(secret) in subject for subject in unseen), unseen
        assert "Traceback" not in done.stderr
    finally:
        secret.chmod(0o755)


def test_vgpu_doctor_is_a_program_of_its_own(here: Installation) -> None:
    program = here.vgpu.prefix / "bin/vgpu-doctor"
    done = subprocess.run([program, "--code", "VGPU-DEP-003"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "VGPU-DEP-003: the image has musl" in done.stdout
    script = "from vgpu.cli import doctor; doctor()"
    command = [sys.executable, "-c", script, "--code", "VGPU-DEP-003"]
    assert (
        subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False).stdout == done.stdout
    )


def test_dry_run_alone_is_wrong_usage(here: Installation) -> None:
    done = doctor(here, "--dry-run")
    assert done.returncode == 2 and "--fix" in done.stderr
