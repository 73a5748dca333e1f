"""The admin's caps hold whoever asks, and what was reduced is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from oci_hook import fastjson
from oci_hook.errors import HostError
from oci_hook.policy import clamp, load, mib
from oci_hook.records import Ask, Policy, Request
from oci_hook.values import as_json, replace

GIB = 1 << 30
POLICY = Policy(runtime="/usr/bin/runc", prefix="/opt/vgpu")


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "policy.json"
    path.write_text(text)
    path.chmod(0o644)
    return str(path)


def test_the_compiled_policy_is_read_back(tmp_path: Path) -> None:
    policy = replace(POLICY, max_memory_bytes=GIB, sources=("label",))
    assert load(written(tmp_path, fastjson.dumps(as_json(policy)))) == policy


def test_no_caps_leave_a_request_as_it_is() -> None:
    request = Request(asks=(Ask(memory_bytes=GIB),))
    assert clamp(request, POLICY) == (request, ())


def test_caps_reduce_and_say_so() -> None:
    policy = replace(POLICY, max_memory_bytes=16 * GIB, max_cores_percent=50, max_gpus=2)
    request = Request(asks=(Ask(64 * GIB, None, 80), Ask(GIB, None, 10), Ask(GIB)), devices=("0", "1", "2"))
    clamped, notes = clamp(request, policy)
    assert clamped.asks == (Ask(16 * GIB, None, 50), Ask(GIB, None, 10))
    assert clamped.devices == ("0", "1")
    assert notes == (
        "count: 3 GPUs asked, 2 allowed",
        "memory: 64 GiB asked, 16 GiB allowed",
        "cores: 80 % asked, 50 % allowed",
    )


def test_who_asks_for_no_limit_gets_the_cap_on_cores() -> None:
    clamped, notes = clamp(Request(asks=(Ask(GIB),)), replace(POLICY, max_cores_percent=50))
    assert clamped.asks[0].cores_percent == 50
    assert notes == ("cores: no limit asked, 50 % allowed",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "{",
        '{"runtime": "runc", "prefix": "/x"}',
        '{"runtime": "/runc", "prefix": "/x", "placement": "best"}',
        '{"runtime": "/runc", "prefix": "/x", "overcommit_memory": "2"}',
        '{"runtime": "/runc", "prefix": "/x", "overcommit_cores": 0}',
        '{"runtime": "/runc", "prefix": "/x", "max_gpus": 0}',
        '{"runtime": "/runc", "prefix": "/x", "sources": ["image"]}',
        '{"runtime": "/runc", "prefix": "/x", "sources": 3}',
        '{"runtime": "/runc", "prefix": "/x", "state_dir": "run"}',
        '{"runtime": "/runc", "prefix": "/x", "state_dir": null}',
    ],
)
def test_a_policy_that_cannot_be_used_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(HostError) as caught:
        load(written(tmp_path, text))
    assert caught.value.code == "VGPU-HOST-001"
    assert "vgpu config apply" in caught.value.remedy


def test_a_missing_policy_is_refused_in_words_that_dockerd_leaves_alone(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(HostError) as caught:
            load(str(path))
        assert caught.value.code == "VGPU-HOST-001"
        assert "no such file or directory" not in caught.value.line().lower()


def test_a_policy_that_others_can_write_is_refused(tmp_path: Path) -> None:
    path = Path(written(tmp_path, fastjson.dumps(as_json(POLICY))))
    path.chmod(0o664)
    with pytest.raises(HostError) as caught:
        load(str(path))
    assert caught.value.code == "VGPU-HOST-006"


def test_sizes_for_people() -> None:
    assert [mib(size) for size in (GIB, 1 << 20, 3 * GIB // 2)] == ["1 GiB", "1 MiB", "1536 MiB"]
