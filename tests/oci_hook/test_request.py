"""Settings are read as docs/labels.md says, and everything else is one refusal with a stable code."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci_hook.errors import RequestError
from oci_hook.records import Ask, Request
from oci_hook.request import NUMBERED, SETTINGS, memory_size, mentioned, nearest, parse

ALL = ("annotation", "label", "env")
GIB = 1 << 30


def ask(labels: dict[str, str] | None = None, *env: str, annotations: dict[str, str] | None = None) -> Request | None:
    return parse(annotations or {}, labels or {}, env, ALL)


def refused(labels: dict[str, str] | None = None, *env: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        ask(labels, *env)
    line = caught.value.line()
    assert line.isprintable()
    assert len(line) < 600
    assert "to mend it: " in line
    return caught.value


def test_a_container_that_names_nothing_of_ours_asks_for_nothing() -> None:
    assert ask({"maintainer": "x", "vgpux": "1"}, "PATH=/bin", "VGPU_SIM_DIR=/x", "NOEQUALS") is None


def test_the_example_of_the_readme() -> None:
    request = ask({"vgpu.memory": "8GiB", "vgpu.cores": "30"})
    assert request == Request(
        asks=(Ask(memory_bytes=8 * GIB, cores_percent=30),), sources={"memory": "label", "cores": "label"}
    )


def test_all_settings_at_once() -> None:
    request = ask(
        {
            "vgpu.memory": "50%",
            "vgpu.memory.1": "512MiB",
            "vgpu.cores.0": "100",
            "vgpu.devices": "1,GPU-0123-abc",
            "vgpu.policy": "spread",
            "vgpu.burst": "soft",
            "vgpu.priority": "high",
            "vgpu.capabilities": "video,compute",
        }
    )
    assert request is not None
    assert request.asks == (Ask(memory_percent=50, cores_percent=100), Ask(memory_bytes=512 << 20))
    assert request.devices == ("1", "GPU-0123-abc")
    assert (request.policy, request.burst, request.priority) == ("spread", "soft", "high")
    assert request.capabilities == ("compute", "video")


def test_count_gives_each_gpu_the_same() -> None:
    request = ask({"vgpu.memory": "1GiB", "vgpu.count": "3"})
    assert request is not None
    assert request.asks == (Ask(memory_bytes=GIB),) * 3
    assert request.capabilities == ("compute", "utility")


BAD_MEMORY = {
    "VGPU-REQ-001": ["-1", "4", "4GB", "1e999", "0x10", "inf", "", " 8GiB", "8GiB ", "08GiB", "0GiB", "1.5GiB", "8gib",
                     "+1GiB", "1_0GiB", "0%", "101%", "%", "MiB", "9999999GiB", "$(id)", "nan"],
    "VGPU-REQ-005": ["８GiB", "8GiB\0", '4096\n"}],"x":{"', "9" * (1 << 20) + "GiB", "8GiB\x1b[2J", "\ud8008GiB",
                     "٨GiB"],
}  # fmt: skip


@pytest.mark.parametrize(("code", "text"), [(code, text) for code, texts in BAD_MEMORY.items() for text in texts])
def test_a_memory_size_that_would_have_to_be_guessed(code: str, text: str) -> None:
    for error in (refused({"vgpu.memory": text}), refused({}, f"VGPU_MEMORY={text}")):
        assert error.code == code
        assert "emory=" in str(error).lower()
        assert error.exit_code == 3


@pytest.mark.parametrize("name", ["vgpu.cores", "vgpu.count"])
@pytest.mark.parametrize("text", ["-1", "0", "101", "1e2", "3.5", "", "0x10", "30%", "007", "9" * 400, "²"])
def test_a_number_that_cannot_be_read(name: str, text: str) -> None:
    error = refused({"vgpu.memory": "1GiB", name: text})
    assert error.code == ("VGPU-REQ-005" if text == "²" else "VGPU-REQ-002")
    assert str(error).startswith(name)


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("vgpu.memroy", "vgpu.memory?"),
        ("vgpu.core", "vgpu.cores?"),
        ("vgpu.Memory", "vgpu.memory?"),
        ("vgpu.memory.16", "vgpu.memory.1?"),
        ("vgpu.memory.01", "vgpu.memory.0?"),
        ("vgpu.", "vgpu."),
        ("vgpu.devcies", "vgpu.devices?"),
        ("vgpu." + "x" * 1_000_000, "vgpu."),
    ],
)
def test_a_misspelt_name_is_refused_and_the_nearest_one_shown(name: str, guess: str) -> None:
    error = refused({name: "8GiB"})
    assert error.code == "VGPU-REQ-003"
    assert guess in error.remedy


def test_a_misspelt_variable_is_refused_but_not_somebody_elses() -> None:
    for name in ("VGPU_MEMROY", "VGPU_MEM", "VGPU_CORE", "VGPU_DEVICE"):
        assert refused({}, f"{name}=8GiB").code == "VGPU-REQ-003"
    assert ask({}, "VGPU_CONFIG=/x", "VGPU_SIM_FAULT=lost", "VGPU_LAUNCHER_DEPTH=1") is None


@pytest.mark.parametrize(
    "labels",
    [
        {"vgpu.cores": "30"},
        {"vgpu.count": "2"},
        {"vgpu.memory.1": "1GiB", "vgpu.count": "2"},
        {"vgpu.memory": "1GiB", "vgpu.memory.1": "1GiB"},
        {"vgpu.memory": "1GiB", "vgpu.cores.2": "10", "vgpu.count": "2"},
        {"vgpu.memory": "1GiB", "vgpu.devices": "0,1", "vgpu.count": "3"},
        {"vgpu.memory": "1GiB", "vgpu.devices": "0,1,0"},
    ],
)
def test_settings_that_contradict_each_other(labels: dict[str, str]) -> None:
    assert refused(labels).code == "VGPU-REQ-004"


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("vgpu.policy", "binpak", "VGPU-REQ-006"),
        ("vgpu.burst", "", "VGPU-REQ-006"),
        ("vgpu.priority", "HIGH", "VGPU-REQ-006"),
        ("vgpu.capabilities", "compute,", "VGPU-REQ-006"),
        ("vgpu.devices", "0,", "VGPU-REQ-002"),
        ("vgpu.devices", "GPU-../../etc", "VGPU-REQ-002"),
        ("vgpu.devices", "all", "VGPU-REQ-002"),
        ("vgpu.devices", ",".join(map(str, range(17))), "VGPU-REQ-002"),
    ],
)
def test_a_choice_or_device_that_does_not_exist(name: str, text: str, code: str) -> None:
    assert refused({"vgpu.memory": "1GiB", name: text}).code == code


def test_a_stronger_source_wins_setting_by_setting() -> None:
    request = parse(
        {"vgpu.memory": "1GiB"},
        {"vgpu.memory": "2GiB", "vgpu.cores": "20"},
        ["VGPU_CORES=30", "VGPU_PRIORITY=low"],
        ALL,
    )
    assert request is not None
    assert request.asks == (Ask(memory_bytes=GIB, cores_percent=20),)
    assert request.priority == "low"
    assert request.sources == {"memory": "annotation", "cores": "label", "priority": "env"}


def test_what_loses_is_not_read_and_cannot_widen_what_won() -> None:
    image = ["VGPU_MEMORY_0=64GiB", "VGPU_MEMORY_7=64GiB", "VGPU_CORES=nonsense", "CUDA_DEVICE_MEMORY_LIMIT_1=99g"]
    request = ask({"vgpu.memory": "1GiB", "vgpu.cores": "10"}, *image)
    assert request is not None
    assert request.asks == (Ask(memory_bytes=GIB, cores_percent=10),)


def test_a_source_that_the_policy_does_not_allow_is_not_there() -> None:
    assert parse({}, {}, ["VGPU_MEMORY=nonsense", "VGPU_MEMROY=1"], ("label",)) is None
    assert parse({"vgpu.x": "1"}, {"vgpu.memory": "1GiB"}, [], ("label",)) == ask({"vgpu.memory": "1GiB"})


def test_of_a_variable_given_twice_the_last_counts() -> None:
    request = ask({}, "VGPU_MEMORY=1GiB", "VGPU_MEMORY=2GiB")
    assert request is not None
    assert request.asks[0].memory_bytes == 2 * GIB


@pytest.mark.parametrize(
    ("env", "asks"),
    [
        (["NVIDIA_GPU_MEMORY_LIMIT=8192"], (Ask(memory_bytes=8 * GIB),)),
        (["CUDA_DEVICE_MEMORY_LIMIT=1024m"], (Ask(memory_bytes=GIB),)),
        (["CUDA_DEVICE_MEMORY_LIMIT=2G", "CUDA_DEVICE_SM_LIMIT=30"], (Ask(memory_bytes=2 * GIB, cores_percent=30),)),
        (["CUDA_DEVICE_MEMORY_LIMIT_0=1g", "CUDA_DEVICE_MEMORY_LIMIT_1=4096"], (Ask(GIB), Ask(4096))),
        (["NVIDIA_GPU_MEMORY_LIMIT=1", "CUDA_DEVICE_MEMORY_LIMIT=2g", "VGPU_COUNT=2"], (Ask(1 << 20), Ask(1 << 20))),
    ],
)
def test_what_other_stacks_call_a_slice(env: list[str], asks: tuple[Ask, ...]) -> None:
    request = ask({}, *env)
    assert request is not None
    assert request.asks == asks
    assert mentioned({}, {}, env)


def test_hami_writes_zero_where_there_is_no_limit() -> None:
    assert ask({}, "CUDA_DEVICE_MEMORY_LIMIT_0=0m", "CUDA_DEVICE_SM_LIMIT=0") is None


@pytest.mark.parametrize(
    "variable",
    [
        "NVIDIA_GPU_MEMORY_LIMIT=8GiB",
        "NVIDIA_GPU_MEMORY_LIMIT=",
        "NVIDIA_GPU_MEMORY_LIMIT=0",
        "CUDA_DEVICE_MEMORY_LIMIT=2gg",
        "CUDA_DEVICE_MEMORY_LIMIT=-1",
        "CUDA_DEVICE_MEMORY_LIMIT_0=m",
    ],
)
def test_a_bad_size_of_another_stack_is_refused_by_its_own_name(variable: str) -> None:
    error = refused({}, variable)
    assert error.code == "VGPU-REQ-001"
    assert str(error).startswith(variable.partition("=")[0])


def test_nearest_prefers_fewer_edits() -> None:
    assert nearest("memroy", ["cores", "memory"]) == ("memory", 2)
    assert nearest("", ["ab", "a"]) == ("a", 1)


@given(st.text() | st.from_regex(r"[0-9]{0,9}(MiB|GiB|%|)", fullmatch=True))
def test_a_size_is_read_or_refused_and_nothing_else(text: str) -> None:
    """Any text: either exactly what the documented form says, or a RequestError."""
    try:
        request = ask({"vgpu.memory": text})
    except RequestError as error:
        assert error.code in ("VGPU-REQ-001", "VGPU-REQ-005")
        assert error.line().isprintable()
        return
    assert request is not None
    number = int(text.rstrip("%GMiB"))
    assert str(number) == text.rstrip("%GMiB")
    if text.endswith("%"):
        assert request.asks == (Ask(memory_percent=number),)
    else:
        assert request.asks == (Ask(memory_bytes=number << (30 if text.endswith("GiB") else 20)),)


@given(
    st.dictionaries(st.sampled_from([f"vgpu.{s}" for s in SETTINGS + NUMBERED]) | st.text(), st.text(), max_size=6),
    st.lists(st.text() | st.from_regex(r"(VGPU|CUDA_DEVICE|NVIDIA_GPU)_[A-Z_]{1,20}=.{0,9}"), max_size=4),
)
def test_no_input_makes_anything_but_a_request_or_a_refusal(labels: dict[str, str], env: list[str]) -> None:
    try:
        request = ask(labels, *env)
    except RequestError as error:
        assert error.line().isprintable()
    else:
        assert request is None or 1 <= len(request.asks) <= 16
        if request is not None:
            assert mentioned({}, labels, env)


def test_memory_size_has_an_upper_end() -> None:
    assert memory_size("16383GiB") == 16383 * GIB
    assert memory_size("16384GiB") is None
