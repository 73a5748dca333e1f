"""`--help` of every command: examples that the command line takes, and units where there is a quantity."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from vgpu import cli_help
from vgpu.cli import app

WHOLE = cli_help.command(app)


def commands(found: Any = WHOLE, path: str = "") -> Iterator[tuple[str, Any]]:
    yield path, found
    for name, child in getattr(found, "commands", {}).items():
        yield from commands(child, f"{path} {name}".strip())


@pytest.mark.parametrize(
    ("path", "call"), [(path, call) for path, calls in cli_help.EXAMPLES.items() for call in calls]
)
def test_an_example_is_taken_by_the_command_line(path: str, call: str) -> None:
    program, *words = shlex.split(call)
    assert program == "vgpu" and call.startswith(f"vgpu {path}")
    found = WHOLE
    for name in path.split():
        found = found.commands[name]
        assert words.pop(0) == name
    assert not found.make_context(path, words).args  # nothing is left over


def test_groups_name_commands_once_and_everything_says_what_it_is_for() -> None:
    grouped = [name for names in cli_help.GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped)) and set(grouped) <= set(WHOLE.commands)
    for path, found in commands():
        assert found.help and found.help[0].isupper(), path
        for param in found.params:
            hidden = getattr(param, "hidden", False) or param.name == "help"
            assert hidden or param.help, (path, param.name)


def test_help_shows_groups_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for words, wanted in ([], "Installation"), (["set"], "vgpu set web --memory 12GiB --cores 50"):
        with pytest.raises(SystemExit) as ended:
            WHOLE([*words, "--help"], prog_name="vgpu")
        assert ended.value.code == 0
        assert wanted in capsys.readouterr().out
