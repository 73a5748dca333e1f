"""The audit log as operators read it: replayed, told, and turned into a bill."""

from __future__ import annotations

import csv
import io
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from oci_hook import audit, decision
from oci_hook.errors import RequestError
from oci_hook.placement import place
from oci_hook.records import Allocation, Ask, Gpu, Host, Placement, Policy, Process, Request
from oci_hook.values import replace
from vgpu import audit_log, bill, billing, replay, standing, why

GIB = 1 << 30
HOUR = 3600 * 10**9
POLICY = Policy(runtime="/r", prefix="/p")
GPUS = tuple(Gpu(index, f"GPU-{index}", "Simulated A100", 80 * GIB, "", index) for index in range(2))


class Host1:
    """One host's life in a log, with the clocks in our hand. `boot` begins at Unix time 0."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.given, self.seq, self.hour = folder, list[Allocation](), 0, 0.0
        self.ahead = 0  # what somebody set the wall clock ahead by, hours
        self.boot = "boot1"

    def _stamp(self) -> None:
        """The last line gets our clocks."""
        path = self.folder / "audit.jsonl"
        lines = path.read_text().splitlines()
        entry = json.loads(lines[-1])
        entry |= {"time_ns": int((self.hour + self.ahead) * HOUR), "boot_ns": int(self.hour * HOUR), "boot": self.boot}
        path.write_text("\n".join([*lines[:-1], json.dumps(entry)]) + "\n")

    def start(self, name: str, gib: int, at: float, team: str = "a", **asked: Any) -> Placement:
        self.hour, self.seq = at, self.seq + 1
        request = Request(asks=(Ask(gib * GIB),), labels={"team": team}, **asked)
        placed = place(request, GPUS, self.given, POLICY)
        inputs = decision.pack(request, GPUS, self.given, POLICY, Host())
        decision.tell(str(self.folder), name, self.seq, inputs, placed, name=f"n-{name}", image=f"i-{team}")
        self._stamp()
        if placed.slices:
            created = int((at + self.ahead) * HOUR)
            none = Process(0, 0)
            self.given.append(
                Allocation(name, f"n-{name}", f"i-{team}", "armed", created, none, none, request, placed, (), True, "")
            )
        return placed

    def end(self, name: str, at: float, busy_h: float = 0.0, event: str = "release") -> None:
        self.hour, self.seq = at, self.seq + 1
        [entry] = [item for item in self.given if item.id == name]
        self.given.remove(entry)
        audit.append(
            str(self.folder), event, name, seq=self.seq, name=entry.name, image=entry.image,
            created_ns=entry.created_ns,
            labels=entry.request.labels, exclusive=entry.placement.policy == "exclusive", slices=entry.placement.slices,
            use=[{"uuid": part.uuid, "peak_bytes": 0, "busy_ns": int(busy_h * HOUR), "throttled_ns": HOUR}
                 for part in entry.placement.slices],
        )  # fmt: skip
        self._stamp()

    def entries(self) -> list[dict[str, Any]]:
        return audit_log.ordered(audit_log.Log(audit_log.paths(str(self.folder))))

    def stays(self, now: float, running: dict[str, Any] | None = None) -> list[bill.Stay]:
        return bill.stays(self.entries(), running or {}, int(now * HOUR))


@pytest.fixture
def host(tmp_path: Path) -> Host1:
    return Host1(tmp_path)


def hours(found: list[bill.Stay]) -> dict[str, float]:
    return {stay.container: float(Fraction(stay.end_ns - stay.start_ns, HOUR)) for stay in found}


def test_every_decision_is_recomputed_and_in_order(host: Host1) -> None:
    host.start("x", 40, 0)
    host.start("y", 40, 1)
    host.start("z", 90, 2)
    host.end("x", 3)
    host.start("w", 40, 4)
    result = replay.replay(host.entries())
    assert (result["decisions"], result["differences"], result["not_logged"]) == (4, [], 0)
    assert set(result["ledger"]) == {"y", "w"}


def test_a_changed_line_and_a_changed_order_are_found(host: Host1) -> None:
    host.start("x", 40, 0)
    host.start("y", 40, 1)
    good = host.entries()
    forged = json.loads(json.dumps(good))
    forged[0]["placement"]["slices"][0].update(index=1, uuid="GPU-1")
    words = [item["what"] for item in replay.replay(forged)["differences"]]
    assert "then GPU 1: 40 GiB, today GPU 0: 40 GiB" in words
    assert "it saw another slice of x than the log has" in words
    forged = json.loads(json.dumps(good))
    forged[1]["inputs"]["given"] = []
    words = [item["what"] for item in replay.replay(forged)["differences"]]
    assert words[0] == "its inputs do not have its digest"
    assert "it did not see x, which the log has as given out" in words
    forged = json.loads(json.dumps(good))
    forged[0]["inputs"] = {"request": 5}
    assert "its line cannot be understood" in replay.replay(forged)["differences"][0]["what"]


def test_code_that_decides_otherwise_is_a_difference(host: Host1, monkeypatch: pytest.MonkeyPatch) -> None:
    host.start("x", 40, 0)
    assert not replay.replay(host.entries())["differences"]
    monkeypatch.setattr("oci_hook.placement._filled", lambda case: case.room.gpu.index)
    assert "then GPU 0: 40 GiB, today GPU 1: 40 GiB" in replay.replay(host.entries())["differences"][0]["what"]


def test_a_boot_empties_the_ledger_and_a_lost_start_is_counted(host: Host1) -> None:
    host.start("x", 40, 0)
    host.start("unlogged", 8, 1)
    path = host.folder / "audit.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")  # killed before its line
    host.start("y", 40, 2)
    assert replay.replay(host.entries())["not_logged"] == 1
    host.given.clear()
    host.boot = "boot2"
    host.start("z", 40, 3)
    assert replay.replay(host.entries())["differences"] == []


def test_why_tells_the_winner_and_the_reasons(host: Host1) -> None:
    host.start("x" * 64, 70, 0)
    host.start("y" * 64, 20, 1)
    host.start("z" * 64, 100, 2)
    told = "\n".join(why.tell(why.find(host.entries(), "n-" + "y" * 64)))
    assert "asked at 1970-01-01 01:00:00 UTC for 20 GiB." in told
    assert "It got GPU 1 (20 GiB)." in told
    assert "GPU 0: out, CardInsufficientMemory: asked 20480 MiB, free 10240 of 81920 MiB" in told
    assert "GPU 1: score 0.125, chosen" in told
    assert "It was refused" in "\n".join(why.tell(why.find(host.entries(), "zzz")))
    with pytest.raises(RequestError, match="no decision about 'nobody'"):
        why.find(host.entries(), "nobody")


def test_hours_shares_and_cost_add_up(host: Host1) -> None:
    host.start("x", 40, 0, team="a")
    host.start("y", 20, 1, team="b")
    host.end("x", 3, busy_h=0.5)
    host.end("y", 4)
    made = bill.rows(host.stays(9), "label:team", {"a100": Fraction("2.10"), "h100": Fraction(9)})
    by = {row["key"]: row for row in made}
    assert by["a"]["allocated_gpu_hours"] == Fraction(3, 2)  # half a GPU for 3 h
    assert by["b"]["allocated_gpu_hours"] == Fraction(3, 4)
    assert (by["a"]["used_gpu_hours"], by["a"]["idle_gpu_hours"]) == (Fraction(1, 2), 1)
    assert by["a"]["throttled_hours"] == 1
    assert by["a"]["cost"] == Fraction("3.15")
    assert by["b"]["cost"] == Fraction("1.58")  # 1.575: half to even
    assert by["total"]["allocated_gpu_hours"] == Fraction(9, 4)
    assert by["total"]["cost"] == Fraction("4.73")


def test_the_total_is_the_sum_of_the_rows_as_they_are_printed(host: Host1) -> None:
    for number, gib in enumerate((7, 11, 13, 17)):
        host.start(f"c{number}", gib, number / 7, team=f"t{number}")
    found = bill.clipped(host.stays(3, {f"c{number}": () for number in range(4)}), 0, 3 * HOUR)
    read = list(csv.DictReader(io.StringIO(bill.as_csv(bill.rows(found, "team", {"A100": Fraction("1.37")})))))
    for column in ("allocated_gpu_hours", "cost"):
        values = [Fraction(row[column]) for row in read]
        assert sum(values[:-1]) == values[-1]
    exact = sum(Fraction(stay.end_ns - stay.start_ns, HOUR) * stay.share for stay in found)
    assert abs(exact - Fraction(read[-1]["allocated_gpu_hours"])) <= 4 * Fraction(1, 2_000_000)
    assert exact <= 2 * 3  # no more than two GPUs have in three hours


def test_who_runs_is_billed_until_now_and_the_period_cuts(host: Host1) -> None:
    host.start("x", 80, 1)
    found = host.stays(5, {"x": [{"uuid": "GPU-0", "busy_ns": 2 * HOUR, "throttled_ns": 0}]})
    assert [(stay.ended, hours([stay])["x"], stay.busy_ns) for stay in found] == [("running", 4, 2 * HOUR)]
    cut = bill.clipped(found, 2 * HOUR, 4 * HOUR)
    assert (hours(cut), cut[0].busy_ns) == ({"x": 2}, HOUR)
    assert bill.clipped(found, 6 * HOUR, 7 * HOUR) == []


def test_a_clock_that_is_set_makes_no_hours(host: Host1) -> None:
    host.start("x", 80, 1)
    host.ahead = 100
    host.end("x", 3)
    host.start("y", 80, 4)
    host.ahead = -2
    host.end("y", 5)
    assert hours(host.stays(9)) == {"x": 2, "y": 1}


def test_an_end_without_its_start_and_a_start_without_its_end(host: Host1) -> None:
    host.start("x", 80, 1)
    host.start("y", 80, 2)
    host.end("x", 3)
    host.start("z", 8, 4)  # sees y
    lines = (host.folder / "audit.jsonl").read_text().splitlines()
    (host.folder / "audit.jsonl").write_text("\n".join(lines[1:]) + "\n")  # x's start was rotated away
    found = host.stays(9)
    assert hours(found) == {"x": 2, "y": 2, "z": 0}  # y until it was last seen, z at its own line
    assert {stay.container: stay.ended for stay in found} == {"x": "release", "y": "not logged", "z": "not logged"}


def test_an_end_that_is_told_twice_is_billed_once(host: Host1) -> None:
    host.start("x", 80, 1)
    again = host.given[0]
    host.end("x", 3)
    host.given.append(again)
    host.end("x", 4, event="reap")  # killed between the line and the folder
    assert hours(host.stays(9)) == {"x": 2}


def test_exclusive_is_billed_as_the_whole_gpu(host: Host1) -> None:
    host.start("x", 8, 0, policy="exclusive")
    host.end("x", 1)
    assert host.stays(2)[0].share == 1


def test_a_resize_is_billed_by_its_sizes(host: Host1) -> None:
    placed = host.start("x", 40, 0)
    after = (replace(placed.slices[0], memory_bytes=80 * GIB),)
    host.hour, host.seq = 1.0, 2
    audit.append(str(host.folder), "resize", "x", seq=2, before=placed.slices, after=after)
    host._stamp()
    host.end("x", 3)
    assert [(float(stay.share), hours([stay])["x"]) for stay in host.stays(4)] == [(0.5, 1), (1, 2)]


def test_the_log_is_rotated_and_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_BYTES", 2000)
    for number in range(100):
        audit.append(str(tmp_path), "arm", f"c{number}", text="x" * 200)
    log = audit_log.Log(audit_log.paths(str(tmp_path)))
    names = [entry["id"] for entry in log]
    assert names == [f"c{number}" for number in range(100 - len(names), 100)]
    assert 50 <= len(names) < 100  # the oldest file has gone
    assert len(list(tmp_path.glob("audit.jsonl*"))) <= audit.KEPT_LOGS + 1
    assert all(path.stat().st_size < 2500 for path in tmp_path.glob("audit.jsonl*"))
    assert log.broken == 0


def test_lines_that_cannot_be_written_are_counted_and_a_torn_one_is_survived(tmp_path: Path) -> None:
    audit.append(str(tmp_path), "arm", "first")
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"schema":1,"time_ns":5,"ev')  # the disk was full here
    audit.append(str(tmp_path), "arm", "second")
    log = audit_log.Log(audit_log.paths(str(tmp_path)))
    assert [entry["id"] for entry in log] == ["first", "second"]
    assert log.broken == 1
    (tmp_path / "audit.jsonl").unlink()
    (tmp_path / "audit.jsonl").mkdir()
    for _ in range(3):
        audit.append(str(tmp_path), "arm", "lost")
    assert audit.lost(str(tmp_path)) == 3


@pytest.mark.parametrize(
    "read", [lambda: billing.moment("--from", "yesterday", 0), lambda: billing._price("a100"),
             lambda: billing._price("a100=-1"), lambda: standing.duration("2"), lambda: standing.duration("0h")],
)  # fmt: skip
def test_an_option_that_cannot_be_read_is_refused_with_a_remedy(read: Any) -> None:
    with pytest.raises(RequestError, match="^--") as caught:
        read()
    assert caught.value.code == "VGPU-REQ-002"
    assert "write --" in caught.value.remedy


def test_dates_are_utc() -> None:
    assert billing.moment("--from", "1970-01-02", 0) == 24 * HOUR
    assert billing.moment("--from", "1970-01-01T02:00:00+01:00", 0) == HOUR
