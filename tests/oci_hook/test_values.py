"""records are values: frozen, comparable, and the same after a trip through JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci_hook import fastjson
from oci_hook.errors import RequestError, shown
from oci_hook.records import Ask, Candidate, Placement, Request, Slice
from oci_hook.values import as_json, dataclass, from_json, replace

SLICE = Slice(index=1, uuid="GPU-1", memory_bytes=1 << 33, cores_percent=30)


def test_a_record_cannot_change() -> None:
    with pytest.raises(AttributeError, match="frozen"):
        SLICE.index = 2  # type: ignore[misc]


def test_a_record_behaves_as_the_standard_dataclass() -> None:
    fields = [("a", int), ("b", int, dataclasses.field(default=7))]
    standard = dataclasses.make_dataclass("Pair", fields, frozen=True)

    @dataclass(frozen=True)
    class Pair:
        a: int
        b: int = 7

    assert (Pair(1).a, Pair(1).b) == (standard(1).a, standard(1).b)  # type: ignore[attr-defined]
    assert Pair(1) == Pair(a=1, b=7) != Pair(2)
    assert hash(Pair(1)) == hash(Pair(1))
    assert replace(Pair(1), b=3) == Pair(1, 3)
    for wrong in ({"c": 1}, {}):
        with pytest.raises(TypeError):
            Pair(**wrong)
        with pytest.raises(TypeError):
            standard(**wrong)
    with pytest.raises(TypeError):
        Pair(1, 2, 3)  # type: ignore[call-arg]


def test_nested_records_survive_json() -> None:
    placement = Placement(
        policy="binpack",
        slices=(SLICE,),
        candidates=(Candidate(0, 0, "GPU-0", None, "CardInsufficientMemory", "asked 1, free 0"),),
    )
    assert from_json(Placement, fastjson.loads(fastjson.dumps(as_json(placement)))) == placement


def test_a_key_of_a_newer_version_is_dropped_and_a_missing_one_is_an_error() -> None:
    raw = {**as_json(SLICE), "added_later": 1}
    assert from_json(Slice, raw) == SLICE
    with pytest.raises(TypeError, match="uuid"):
        from_json(Slice, {"index": 1})


def test_a_request_keeps_its_defaults() -> None:
    request = Request(asks=(Ask(memory_bytes=1),))
    assert request.capabilities == ("compute", "utility")
    assert from_json(Request, as_json(request)) == request


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False), st.lists))
def test_fastjson_writes_what_the_standard_module_reads(value: object) -> None:
    if "inf" in repr(value):
        with pytest.raises(ValueError):
            fastjson.dumps(value)
    else:
        assert json.loads(fastjson.dumps(value)) == value == fastjson.loads(json.dumps(value))


@pytest.mark.parametrize("text", ["", "{", "1 2", "NaN", "[" * 100_000, '{"a" 1}', "'x'", '{"a":1,}', "\ufeff{}"])
def test_fastjson_refuses_what_is_not_json(text: str) -> None:
    with pytest.raises(ValueError):
        fastjson.loads(text)


def test_an_error_is_one_line_whatever_the_value_holds() -> None:
    error = RequestError("VGPU-REQ-001", f"vgpu.memory={shown(chr(10) + chr(27) + '[2J')}: not a size\n", remedy="x")
    assert error.line().isprintable()
    assert error.line().startswith("vgpu: VGPU-REQ-001: vgpu.memory=")


def test_shown_cuts_a_long_value() -> None:
    assert len(shown("9" * 1_000_000)) < 110
