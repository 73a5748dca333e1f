"""config.yaml: every setting arrives, and nothing that is wrong is guessed or passed over."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci_hook import fastjson
from oci_hook.errors import HostError, VgpuError
from oci_hook.records import Policy, Quota
from oci_hook.values import from_json
from runtime_config import policy_file, policy_groups
from runtime_config.policy_file import compile_policy

RUNC = "runtime: /usr/bin/runc\n"

FULL = """\
runtime: /usr/bin/crun
state_dir: /srv/run
log_dir: /srv/log
driver_root: /run/nvidia/driver
placement: spread
burst: soft
sources: [env, annotation]
max: {memory: 16GiB, cores: 50, gpus: 2, slices: 3}
record_labels: [team]
weighted: {binpack: 0.7, topology: 0.3}
quotas:
  - {label: team=a, memory: 40GiB, cores: 100, containers: 4}
  - {label: team=, containers: 0}
overcommit:
  memory: 1.5
  cores: 2
simulate:
  gpus: 4
  memory: 512MiB
"""


def test_every_setting_arrives() -> None:
    assert compile_policy(FULL, "/opt/vgpu") == Policy(
        runtime="/usr/bin/crun",
        prefix="/opt/vgpu",
        state_dir="/srv/run",
        log_dir="/srv/log",
        vgpu_command="/opt/vgpu/bin/vgpu",
        driver_root="/run/nvidia/driver",
        placement="spread",
        burst="soft",
        max_memory_bytes=16 << 30,
        max_cores_percent=50,
        max_gpus=2,
        max_slices=3,
        record_labels=("team",),
        weights={"binpack": 0.7, "topology": 0.3},
        quotas=(Quota("team=a", 40 << 30, 100, 4), Quota("team=", containers=0)),
        overcommit_memory=1.5,
        overcommit_cores=2.0,
        sources=("annotation", "env"),
        simulate_gpus=4,
        simulate_memory_bytes=512 << 20,
    )


def test_every_field_of_the_policy_can_be_set_or_is_the_installations() -> None:
    fields = {setting.field for setting in policy_file.SETTINGS.values()}
    fields |= {field for field, _ in policy_groups.GROUPS.values()}
    fields |= {"prefix", "vgpu_command", "schema"} | {"grant"}  # a grant is never in the file
    assert fields == set(inspect.get_annotations(Policy)) - {"NESTED"}


def test_what_is_not_there_has_the_policys_default() -> None:
    assert compile_policy(RUNC, "/p") == Policy(runtime="/usr/bin/runc", prefix="/p", vgpu_command="/p/bin/vgpu")
    assert compile_policy(RUNC + "max:\n  # nothing\n", "/p") == compile_policy(RUNC, "/p")
    assert compile_policy(RUNC + "max: {memory: null, gpus: ~}\n", "/p") == compile_policy(RUNC, "/p")


def test_the_template_says_what_the_policy_does_anyway() -> None:
    assert compile_policy(policy_file.template("/usr/bin/runc"), "/p") == compile_policy(RUNC, "/p")
    commented = policy_file.template("/usr/bin/runc").splitlines()
    uncommented = "\n".join(line.removeprefix("#") if not line.startswith("# ") else line for line in commented)
    assert compile_policy(uncommented, "/p") == compile_policy(RUNC, "/p")  # the defaults it names are the real ones
    for name in policy_file.SETTINGS:
        assert f"{name.rpartition('.')[2]}:" in policy_file.template("/usr/bin/runc")


@pytest.mark.parametrize("path", ["/srv/a b", "/srv/a: b", "/srv/a #b", "/srv/größe", "/srv/'\"", "/srv/[x]"])
def test_the_template_takes_any_path(path: str) -> None:
    assert compile_policy(policy_file.template(path, state_dir=path), "/p").state_dir == path


def test_the_template_with_simulated_gpus() -> None:
    policy = compile_policy(policy_file.template("/usr/bin/runc", simulate_gpus=2, simulate_memory="1GiB"), "/p")
    assert (policy.simulate_gpus, policy.simulate_memory_bytes) == (2, 1 << 30)


@pytest.mark.parametrize(
    ("text", "message", "remedy"),
    [
        (RUNC + "placment: spread", r"line 2: there is no setting 'placment'", "did you mean placement?"),
        (RUNC + "max:\n  memroy: 1GiB", r"line 3: there is no setting 'max.memroy'", "did you mean max.memory?"),
        (RUNC + "max.memory: 1GiB", r"there is no setting 'max.memory'", "did you mean"),
        (RUNC + "xyzzy: 1", "there is no setting 'xyzzy'", "the settings are"),
        (RUNC + "max: 1GiB", "line 2: max is not a group of settings", "memory: …"),
        ("- a", "line 1: the file is not a group of settings", "runtime: …"),
        ("text", "line 1: the file is not a group of settings", "runtime: …"),
        (RUNC + RUNC, "line 2: 'runtime' is there twice", "remove"),
        (RUNC + "max:\n  gpus: 1\n  gpus: 2", "line 4: 'max.gpus' is there twice", "remove"),
        ("? [a]\n: 1", "line 1: a name is expected here", "name: value"),
        ("", "the setting runtime is missing", "runtime: and the absolute path"),
        ("runtime: runc", "line 1: runtime='runc' cannot be", "/usr/bin/runc"),
        ("runtime: /usr/bin/../bin/runc", "runtime=.* cannot be", "/usr/bin/runc"),
        ("runtime:", "runtime='' cannot be", "/usr/bin/runc"),
        ("runtime: {a: b}", "runtime='{a: b}' cannot be", "/usr/bin/runc"),
        ('runtime: "/usr/bin/r\\nunc"', "runtime=.* cannot be", "/usr/bin/runc"),
        (RUNC + "placement: best", "placement='best' cannot be", "binpack, spread"),
        (RUNC + "placement: null", "placement='null' cannot be", "binpack, spread"),
        (RUNC + "placement: weighted", "placement=weighted mixes nothing", "binpack: 0.7"),
        (RUNC + "weighted: {bestfit: 1}", "line 2: weighted: there is no 'bestfit'", "binpack, spread"),
        (RUNC + "weighted: {binpack: 0}", "line 2: weighted: binpack='0' is no weight", "above 0"),
        (RUNC + "weighted: {binpack: [1]}", "binpack must be one value", "binpack: 0.7"),
        (RUNC + "weighted: 3", "it is no group", "binpack: 0.7"),
        (RUNC + "quotas: {label: team}", "quotas: it is no list", "[{label: team=a"),
        (RUNC + "quotas:\n- {label: team}", "line 3: quotas: a quota needs a label and a limit", "label: team=a"),
        (RUNC + "quotas: [{memory: 1GiB}]", "a quota needs a label", "label: team=a"),
        (RUNC + "quotas: [{label: team, memory: 4}]", "memory='4' is no size", "40GiB"),
        (RUNC + "quotas: [{label: =a, cores: 1}]", "label='=a' is none", "team=a"),
        (RUNC + "quotas: [{label: a, cores: 010}]", "cores='010' is no whole number", "cores: 100"),
        (RUNC + "quotas: [{label: a, cores: 1, cores: 2}]", "cores is there twice", "remove"),
        (RUNC + "quotas: [{label: a, gpus: 1}]", "there is no 'gpus' in it", "label, memory"),
        (RUNC + "max: {slices: 0}", "max.slices='0' cannot be", "1 to 1000"),
        (RUNC + "burst: yes", "burst='yes' cannot be", "hard or soft"),
        (RUNC + "sources: label", "sources='label' cannot be", "a list of"),
        (RUNC + "sources: [label, labels]", "sources=.* cannot be", "a list of"),
        (RUNC + "sources: [label, label]", "sources=.* cannot be", "a list of"),
        (RUNC + "sources: [[label]]", "sources=.* cannot be", "a list of"),
    ],
)
def test_what_cannot_be_is_refused_with_line_name_and_remedy(text: str, message: str, remedy: str) -> None:
    with pytest.raises(HostError, match=message) as caught:
        compile_policy(text, "/p", path="/x/config.yaml")
    assert str(caught.value).startswith("/x/config.yaml: ")
    assert caught.value.code == "VGPU-CFG-003"
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    "value", ["4", "4GB", "-1GiB", "4 GiB", "0GiB", '""', "８GiB", "1e3GiB", "50%", "null", "9" * 99]
)
def test_a_size_without_a_clear_unit_is_refused(value: str) -> None:
    with pytest.raises(HostError, match=r"line 3: simulate\.memory=") as caught:
        compile_policy(f"{RUNC}simulate:\n  memory: {value}", "/p")
    assert "80GiB" in caught.value.remedy


@pytest.mark.parametrize(
    "value", ["0", "101", "-1", "010", "0x10", "1_0", "1.0", "'50'", "yes", "null", "1:30", "1e1", "[5]"]
)
def test_a_number_is_read_as_it_is_written_or_not_at_all(value: str) -> None:
    with pytest.raises(HostError, match=r"line 3: max\.cores=") as caught:
        compile_policy(f"{RUNC}max:\n  cores: {value}", "/p")
    assert "from 1 to 100" in caught.value.remedy


@pytest.mark.parametrize("value", [".inf", ".nan", "0.5", "101", "1e1", "-1", "'2'"])
def test_an_overcommit_that_makes_no_sense_is_refused(value: str) -> None:
    with pytest.raises(HostError, match=r"overcommit\.memory="):
        compile_policy(f"{RUNC}overcommit:\n  memory: {value}", "/p")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: [", "line 1"),
        ("runtime: a\n\tb: c", "line 2, column 1"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("a: *nothing", "line 1, column 4"),
        ("a: \x01", "x.yaml"),
        ("[" * 5000, "nested too deep"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_place(text: str, place: str) -> None:
    with pytest.raises(HostError, match=place) as caught:
        compile_policy(text, "/p", path="x.yaml")
    assert caught.value.code == "VGPU-CFG-001"


def test_a_tag_runs_no_code() -> None:
    with pytest.raises(HostError, match="cannot be"):
        compile_policy("runtime: !!python/object/apply:os.system ['true']", "/p")


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="runtime:maxoyGiB \n-[]{}#&*!|>'\"%@`,?0129\t", max_size=60))
def test_no_text_escapes_as_something_else_than_a_refusal(text: str) -> None:
    try:
        compile_policy(text, "/p")
    except VgpuError as error:
        assert error.remedy


def test_the_compiled_form_is_read_back_as_it_was(tmp_path: Path) -> None:
    policy = compile_policy(FULL, "/opt/vgpu")
    path = tmp_path / "policy.json"
    assert policy_file.write_compiled(policy, str(path))
    assert not policy_file.write_compiled(policy, str(path))
    assert from_json(Policy, fastjson.loads(path.read_bytes())) == policy
    assert json.loads(path.read_text())["schema"] == 1


def test_the_compiled_form_lies_beside_the_file_behind_the_link(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/config.yaml").write_text(RUNC)
    (tmp_path / "link.yaml").symlink_to(tmp_path / "etc/config.yaml")
    assert policy_file.compiled_path(str(tmp_path / "link.yaml")) == str(tmp_path / "etc/policy.json")
    assert policy_file.read_policy(str(tmp_path / "link.yaml"), "/p").runtime == "/usr/bin/runc"
    with pytest.raises(HostError, match=r"no\.yaml does not exist"):
        policy_file.read_policy(str(tmp_path / "no.yaml"), "/p")
