"""Docker's daemon.json: our keys go in, every other byte stays, and an undo gives back the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oci_hook.errors import HostError
from runtime_config.engines import docker

LAUNCHER = "/opt/vgpu/bin/vgpu-runtime"
ENTRY = {"vgpu": {"path": LAUNCHER}}

TYPICAL = """{
  "log-driver": "json-file",
  "runtimes": {
    "nvidia": {
      "args": [],
      "path": "nvidia-container-runtime"
    }
  },
  "insecure-registries" : [ "10.0.0.0/8" ]
}
"""

DOCUMENTS = {
    "missing": "",
    "spaces": " \n",
    "object": "{}",
    "object and line": "{}\n",
    "open object": "{\n}\n",
    "typical": TYPICAL,
    "no last line end": TYPICAL.rstrip(),
    "CRLF": TYPICAL.replace("\n", "\r\n"),
    "tabs": TYPICAL.replace("  ", "\t"),
    "BOM": "\ufeff" + TYPICAL,
    "one line": '{"debug": true, "runtimes": {"a": {"path": "/a"}}}',
    "dense": '{"debug":true}',
    "no runtimes": '{\n    "debug": true\n}',
    "empty runtimes": '{\n    "runtimes": {},\n    "debug": true\n}',
    "empty runtimes, one line": '{"runtimes": { }}',
    "unicode": '{\n "labels": ["größe=\\u00e4", "\\ud83d\\ude00", "\\ud800"],\n "a\\u0062": "😀"\n}\n',
    "default set": '{\n\t"default-runtime": "crun",\n\t"runtimes": {"crun": {"path": "/usr/bin/crun"}}\n}\n',
    "first on the brace's line": '{"debug": true,\n "hosts": []}\n',
    "long numbers": '{\n  "max-concurrent-downloads": 1e400, "shutdown-timeout": 12345678901234567890.10\n}',
}


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("text", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_edit_again_and_undo(text: str, default: bool) -> None:
    edited = docker.add(text, LAUNCHER, set_default=default)
    before = json.loads(text.removeprefix("\ufeff").strip() or "{}")
    after = json.loads(edited.removeprefix("\ufeff"))
    expected = {**before, "runtimes": {**before.get("runtimes", {}), **ENTRY}}
    assert after == ({**expected, "default-runtime": "vgpu"} if default else expected)
    assert docker.add(edited, LAUNCHER, set_default=default) == edited
    assert docker.find(edited) == docker.Found(LAUNCHER, default, after.get("default-runtime"))
    assert docker.remove(edited, text) == text


def test_the_lines_of_others_are_not_touched() -> None:
    assert docker.add(TYPICAL, LAUNCHER) == TYPICAL.replace(
        '      "path": "nvidia-container-runtime"\n    }\n',
        '      "path": "nvidia-container-runtime"\n    },\n'
        '    "vgpu": {\n      "path": "/opt/vgpu/bin/vgpu-runtime"\n    }\n',
    )


def test_line_ends_and_tabs_are_taken_over() -> None:
    edited = docker.add(DOCUMENTS["CRLF"], LAUNCHER, set_default=True)
    assert edited.count("\n") == edited.count("\r\n")
    assert '\t\t"vgpu": {\n\t\t\t"path"' in docker.add(DOCUMENTS["tabs"], LAUNCHER)
    assert "\n" not in docker.add(DOCUMENTS["one line"], LAUNCHER, set_default=True)


def test_a_missing_file_becomes_a_readable_one_and_goes_again() -> None:
    edited = docker.add("", LAUNCHER)
    assert (
        edited
        == '{\n    "runtimes": {\n        "vgpu": {\n            "path": "' + LAUNCHER + '"\n        }\n    }\n}\n'
    )
    assert docker.remove(edited, None) is None
    assert docker.remove(docker.add(edited, LAUNCHER, set_default=True), None) is None


def test_undo_after_others_changed_the_file_takes_only_ours_out() -> None:
    edited = docker.add(TYPICAL, LAUNCHER, set_default=True).replace("json-file", "journald")
    undone = docker.remove(edited, TYPICAL)
    assert undone is not None
    assert json.loads(undone) == {
        **json.loads(TYPICAL.replace("json-file", "journald")),
        "default-runtime": "runc",  # dockerd keeps the old default when the key goes
    }


def test_undo_gives_the_default_runtime_back_that_was_there() -> None:
    original = DOCUMENTS["default set"]
    edited = docker.add(original, LAUNCHER, set_default=True).replace("/usr/bin/crun", "/usr/local/bin/crun")
    undone = docker.remove(edited, original)
    assert undone == original.replace("/usr/bin/crun", "/usr/local/bin/crun")


def test_undo_without_a_backup_restores_what_it_can_tell() -> None:
    assert docker.remove(docker.add(TYPICAL, LAUNCHER), None) == TYPICAL
    assert docker.remove(docker.add(DOCUMENTS["no runtimes"], LAUNCHER), None) == DOCUMENTS["no runtimes"]


def test_undo_of_nothing_changes_nothing() -> None:
    assert docker.remove(TYPICAL, None) == TYPICAL
    assert docker.remove("", None) == ""


def test_another_prefix_only_changes_the_path() -> None:
    first = docker.add(TYPICAL, LAUNCHER)
    second = docker.add(first, "/srv/vgpu/bin/vgpu-runtime")
    assert second == first.replace(LAUNCHER, "/srv/vgpu/bin/vgpu-runtime")
    assert docker.remove(second, TYPICAL) == TYPICAL


WRONG = [
    ("{", "line 1, column 2: the file ends where a key in double quotes should be"),
    ('{"a": 1,}', "line 1, column 9: '}' where a key in double quotes should be"),
    ('{"a": 1\n "b": 2}', "line 2, column 2: .* where ',' or '}' should be"),
    ('{\n  // ours\n "a": 1}', "line 2, column 3: a comment"),
    ('{"a": 1} # end', "line 1, column 10: a comment"),
    ('{"a": 1}{}', "line 1, column 9: '{}' where the end of the file should be"),
    ('{"a": 1,\n "a": 2}', "line 2, column 2: the key 'a' is there twice"),
    ('{"x": {"a": 1, "\\u0061": 2}}', "column 16: the key 'a' is there twice"),
    ("[]", "line 1, column 1: not an object"),
    ("nothing", "line 1, column 1: 'nothing' where a value should be"),
    ('{"a": 01}', "column 8"),
    ('{"a": NaN}', "column 7: 'NaN}' where a value should be"),
    ('{"a": "tab\there"}', "column 7"),
    ('{"a": "\\x"}', "column 7"),
    ("{'a': 1}", "column 2"),
    ('{"a": ' + "[" * 5000, "nested deeper than 100"),
    ('{"a": ["b" "c"]}', "where ',' or ']' should be"),
    ('{"a" 1}', "where ':' should be"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_what_is_not_json_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(HostError, match=message) as caught:
        docker.add(text, LAUNCHER, path="/x/daemon.json")
    assert caught.value.code == "VGPU-CFG-001"
    assert str(caught.value).startswith("/x/daemon.json: line ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"runtimes": []}', r"runtimes='\[\]' is not an object"),
        ('{\n"runtimes": null}', "line 2, column 13: runtimes='null' is not an object"),
        ('{"runtimes": {"vgpu": {"path": "/usr/bin/other"}}}', "that is not ours: .*/usr/bin/other"),
        ('{"runtimes": {"vgpu": {"runtimeType": "io.containerd.x.v1"}}}', "that is not ours"),
        ('{"runtimes": {"vgpu": 1}}', "that is not ours: '1'"),
        ('{"default-runtime": 7}', "default-runtime is not a string"),
    ],
)
def test_what_we_must_not_overwrite_is_refused(text: str, message: str) -> None:
    edits: list[Callable[[], str | None]] = [
        lambda: docker.add(text, LAUNCHER, set_default=True),
        lambda: docker.remove(text, None),
    ]
    for edit in edits:
        with pytest.raises(HostError, match=message) as caught:
            edit()
        assert caught.value.code == "VGPU-CFG-003"


KEYS = st.sampled_from(["runtimes", "default-runtime", "debug", "nvidia", "größe", "", 'q"\\', "\x00", "\U0001f600"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


@st.composite
def daemon_json(draw: st.DrawFn) -> str:
    """Any object that dockerd could accept as far as our two keys go, in any layout that json.dumps can write."""
    document: dict[str, Any] = draw(st.dictionaries(KEYS, VALUES, max_size=5))
    if "runtimes" in document:
        document["runtimes"] = draw(st.dictionaries(KEYS, VALUES, max_size=2))
    if "default-runtime" in document:
        document["default-runtime"] = draw(st.sampled_from(["runc", "crun", "größe"]))
    text = json.dumps(
        document,
        indent=draw(st.sampled_from([None, 0, 1, 2, 4, "\t"])),
        separators=draw(st.sampled_from([(", ", ": "), (",", ":"), (" ,", " : ")])),
        ensure_ascii=draw(st.booleans()),
    )
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    before, after = draw(st.sampled_from(["", "\ufeff", "\n", "  "])), draw(st.sampled_from(["", "\n", "\n\n", " "]))
    return before + (text + after).replace("\n", newline)


@settings(max_examples=400, deadline=None)
@given(daemon_json(), st.booleans())
def test_any_document_survives_edit_and_undo(text: str, default: bool) -> None:
    edited = docker.add(text, LAUNCHER, set_default=default)
    before = json.loads(text.removeprefix("\ufeff"))
    expected = {**before, "runtimes": {**before.get("runtimes", {}), **ENTRY}}
    if default:
        expected["default-runtime"] = "vgpu"
    assert json.loads(edited.removeprefix("\ufeff")) == expected
    assert docker.add(edited, LAUNCHER, set_default=default) == edited
    assert docker.remove(edited, text) == text
    if "runtimes" in before and before["runtimes"] and not default:
        assert docker.remove(edited, None) == text  # nothing has to be guessed


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='{}[]",:\\/u0123.eE+-truefalsn \n\t\x01é', max_size=40) | st.text(max_size=40))
def test_our_reader_accepts_what_json_accepts(text: str) -> None:
    def duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("duplicate key")
        return dict(pairs)

    def constant(name: str) -> float:
        raise ValueError(name)

    try:
        value = json.loads(text, object_pairs_hook=duplicates, parse_constant=constant)
        good = isinstance(value, dict)
    except ValueError:
        good = not text.strip(" \t\r\n")
    try:
        docker.find(text)
        accepted = True
    except HostError as error:
        accepted = error.code == "VGPU-CFG-003"
    assert accepted == good
