"""A logged decision is enough to make it again; an end keeps what was used."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_placement import GIB, POLICY, asking, gpu, taken

from oci_hook import decision, fastjson, ledger, quota_file, usage_file
from oci_hook.placement import place
from oci_hook.records import Host, Plan, Quota, Reservation
from oci_hook.values import replace

PLACES = ("binpack", "spread", "topology", "exclusive", "least-contended", "weighted")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30), st.integers(0, 60)), max_size=6),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.sampled_from(PLACES),
    st.sampled_from([(), (Quota("team=a", memory_bytes=50 * GIB),)]),
    st.floats(0, 2),
)
def test_the_same_inputs_decide_the_same_after_json(
    before: list[tuple[int, int, int]], asks: list[int], how: str, quotas: tuple[Quota, ...], load: float
) -> None:
    gpus = [replace(gpu(index), links={"GPU-1": "NV4"}) for index in range(4)]
    entries = [replace(taken(*one), id=str(number)) for number, one in enumerate(before)]
    policy = replace(POLICY, placement=how, weights={"binpack": 0.7, "topology": 0.3}, quotas=quotas, max_slices=4)
    host = Host({"GPU-3": "x"}, {}, (Reservation("r", "GPU-2", GIB, 10, 99),), {"GPU-0": load}, 5)
    request = asking(*asks, labels={"team": "a"}, mutex="m")
    packed = fastjson.dumps(decision.pack(request, gpus, entries, policy, host))
    read = fastjson.loads(packed)
    assert decision.digest(read) == decision.digest(json.loads(packed))
    assert place(*decision.unpack(read)) == place(request, gpus, entries, policy, host)


def test_the_digest_tells_any_change() -> None:
    inputs = decision.pack(asking(8), [gpu(0)], [taken(0, 1)], POLICY, Host())
    changed = json.loads(fastjson.dumps(inputs))
    changed["given"][0]["slices"][0][2] += 1
    assert decision.digest(changed) != decision.digest(inputs)
    assert len(decision.digest(inputs)) == 64


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A container's usage file with figures on its only GPU, written through the header's own struct."""
    from libcuda_wrap import bindings

    me = ledger.process(os.getpid())
    assert me is not None
    allocation = replace(taken(0, 8), id="c1", creator=me, init=me)
    with ledger.Ledger(str(tmp_path)) as book:
        quota = quota_file.quota("c1", allocation.placement.slices, burst="hard", priority="normal")
        book.add(allocation, Plan((), ()), quota, quota_file.usage_header(), quota_file.USAGE_BYTES)
    path = tmp_path / "containers/c1/box/usage"
    usage = bindings.ffi().new("struct vgw_usage *")
    bindings.ffi().buffer(usage)[:] = path.read_bytes()
    usage.armed_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 10**10
    usage.gpus[0].peak_bytes, usage.gpus[0].busy_ns, usage.gpus[0].throttled_ns = 3 * GIB, 4 * 10**9, 10**9
    path.write_bytes(bindings.ffi().buffer(usage)[:])
    return path


def test_figures_are_read_where_the_header_has_them(used: Path) -> None:
    state, allocation = str(used.parents[3]), replace(taken(0, 8), id="c1")
    _, found = usage_file.read(state, allocation)
    assert found == (usage_file.Use("GPU-0", 3 * GIB, 4 * 10**9, 10**9),)
    load = usage_file.load(state, [allocation])
    assert load["GPU-0"] == pytest.approx(0.5, rel=0.3)  # 4 s busy and 1 s waiting of 10 s, and a slow test


def test_a_usage_file_that_says_anything_harms_nobody(used: Path) -> None:
    state, allocation = str(used.parents[3]), replace(taken(0, 8), id="c1")
    for data in (b"", b"\xff" * 200, used.read_bytes()[:300], used.read_bytes()[:128] + b"\xff" * 2000):
        used.write_bytes(data)
        _, found = usage_file.read(state, allocation)
        assert all(item.peak_bytes <= 8 * GIB for item in found)
        assert usage_file.load(state, [allocation]).get("GPU-0", 0.0) <= 1
    used.unlink()
    assert usage_file.read(state, allocation) == (0, ())


def test_numbers_rise_even_when_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ledger.Ledger(str(tmp_path)) as book:
        first = book.tick()
    monkeypatch.setattr(time, "time_ns", lambda: 5)
    with ledger.Ledger(str(tmp_path)) as book:
        assert (book.tick(), book.tick()) == (first + 1, first + 2)
