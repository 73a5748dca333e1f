"""vgpu doctor --fix: mends what is safe, says so before with --dry-run, and touches nothing that works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from prepared import Installation
from pytest import MonkeyPatch
from test_host_state import dead, slice_of

from runtime_config import cdi
from vgpu.doctor import fixes


def fix(here: Installation, *more: str) -> list[dict[str, object]]:
    done = here.vgpu("doctor", "--fix", "--json", "--offline", *more, check=False)
    assert done.returncode in (0, 1, 2), done  # what is left to mend decides
    found: list[dict[str, object]] = json.loads(done.stdout)["facts"]["fixes"]
    return found


def test_a_host_with_nothing_to_mend_stays_as_it_is(here: Installation) -> None:
    with slice_of(here, "living") as living:
        assert fix(here) == []
        assert living.exists()
        assert "nothing that --fix can mend" in here.vgpu("doctor", "--fix", "--offline", check=False).stdout


def test_without_a_policy_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vgpu", "doctor", "--fix", "--offline", "--config", str(tmp_path / "config.yaml")],
        capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 2 and "without a policy" in done.stderr and "Traceback" not in done.stderr
    assert "VGPU-HOST-001" in done.stdout


def test_dry_run_says_all_and_does_nothing(here: Installation) -> None:
    with slice_of(here, "living") as living, slice_of(here, "ended", owner=dead()) as ended:
        half = living.parent / ".old-half-1"
        half.mkdir()
        inventory = here.vgpu.state / "inventory.json"
        stale = inventory.read_bytes().replace(b'"key":"', b'"key":"an older ')
        inventory.write_bytes(stale)
        steps = fix(here, "--dry-run")
        assert [(step["code"], Path(str(step["subject"])).name, step["done"]) for step in steps] == [
            ("VGPU-STA-001", half.name, False),
            ("VGPU-STA-001", ended.name, False),
            ("VGPU-HOST-002", "inventory.json", False),
        ]
        assert half.exists() and ended.exists() and inventory.read_bytes() == stale
        told = here.vgpu("doctor", "--fix", "--dry-run", "--offline", check=False).stdout
        assert told.count("would: ") == 3

        assert [step["done"] for step in fix(here)] == [True, True, True]
        assert not half.exists() and not ended.exists() and living.exists()
        assert b"an older" not in inventory.read_bytes()
        assert fix(here) == []


def test_our_own_stale_cdi_spec_is_written_anew(here: Installation, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    ours, theirs = tmp_path / "vgpu.json", tmp_path / "nvidia.json"
    monkeypatch.setattr(cdi, "FOLDERS", (str(tmp_path),))
    here.follow(f"vgpu cdi generate --output {ours}")
    good = ours.read_text()
    ours.write_text(good.replace("poststop", "poststart"))
    theirs.write_text(good.replace(cdi.KIND, "nvidia.com/gpu").replace("poststop", "poststart"))
    before = theirs.read_text()
    (planned,) = fixes.apply(here.host, dry_run=True, quiet=True)
    assert (planned["code"], planned["subject"], planned["done"]) == ("VGPU-ENG-007", str(ours), False)
    assert ours.read_text() != good
    (done,) = fixes.apply(here.host, dry_run=False, quiet=True)
    assert done["done"] and ours.read_text() == good
    assert theirs.read_text() == before, "that is for the program that wrote it"
    assert fixes.apply(here.host, dry_run=False, quiet=True) == []


def test_a_fix_that_fails_is_told_and_stops_no_other(here: Installation) -> None:
    inventory = here.vgpu.state / "inventory.json"
    with slice_of(here, "broken") as broken, here.kept(inventory):
        (broken / "allocation.json").write_text("{")
        inventory.unlink()
        done = here.vgpu("doctor", "--fix", "--json", "--offline", check=False)
        assert "VGPU-HOST-003" in done.stderr
        steps = json.loads(done.stdout)["facts"]["fixes"]
        assert [(step["code"], step["done"]) for step in steps] == [("VGPU-HOST-002", True)]
        assert broken.exists(), "what cannot be read is not given back: what it holds is not known"


def test_what_a_slice_held_stays_in_the_bill(here: Installation) -> None:
    with slice_of(here, "ended", owner=dead()):
        fix(here)
    line = here.vgpu.audit()[-1]
    assert (line["event"], line["name"], os.path.basename(line["id"])[:5]) == ("reap", "ended", "ended")
