"""Manual pages and shell completions, out of the command line itself: what it has is in them, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from typer.main import get_command

from vgpu import __version__
from vgpu.cli import app
from vgpu.cli_help import EXAMPLES


@dataclass(frozen=True, slots=True)
class Command:
    """path: ("vgpu", "configure", "docker"). options, arguments: (names, value or "", help). examples: calls of it."""

    path: tuple[str, ...]
    help: str
    options: tuple[tuple[str, str, str], ...]
    arguments: tuple[tuple[str, str, str], ...]
    children: tuple[Command, ...]
    examples: tuple[str, ...]


def tree() -> Command:
    """The whole command."""
    return _command(get_command(app), ("vgpu",))


def _command(found: Any, path: tuple[str, ...]) -> Command:
    options, arguments = [], []
    for param in found.params:
        text = (getattr(param, "help", None) or "").strip()
        if param.param_type_name == "argument":
            arguments.append((param.name.upper(), "" if param.required else "optional", text))
        elif not getattr(param, "hidden", False):
            value = "" if param.is_flag else param.name.upper().replace("_", "-")
            options.append((", ".join((*param.opts, *param.secondary_opts)), value, text))
    children = getattr(found, "commands", {})
    return Command(
        path,
        " ".join((found.help or "").split()),
        (*options, ("-h, --help", "", "Show the help, and end.")),
        tuple(arguments),
        tuple(_command(child, (*path, name)) for name, child in sorted(children.items()) if not child.hidden),
        EXAMPLES.get(" ".join(path[1:]), ()),
    )


def each(command: Command) -> Iterator[Command]:
    """The command and all below it."""
    yield command
    for child in command.children:
        yield from each(child)


def manual(root: Command) -> dict[str, str]:
    """File name -> page, in man's own language, one for each command."""
    return {f"{'-'.join(command.path)}.1": _page(command) for command in each(root)}


def _page(command: Command) -> str:
    name, words = "-".join(command.path), " ".join(command.path)
    lines = [f'.TH "{name.upper()}" "1" "" "vgpu {__version__}" "vGPU container runtime"', ".SH NAME"]
    lines += [f"{_roff(name)} \\- {_roff(command.help)}", ".SH SYNOPSIS", f".B {_roff(words)}"]
    if command.children:
        lines.append(".I COMMAND")
    lines.append("[\\fIOPTIONS\\fR]")
    lines += [f"[\\fI{name}\\fR]" if optional else f"\\fI{name}\\fR" for name, optional, _ in command.arguments]
    for title, rows in (("ARGUMENTS", command.arguments), ("OPTIONS", command.options)):
        lines += [f".SH {title}"] if rows else []
        for names, value, text in rows:
            shown = f" \\fI{_roff(value)}\\fR" if title == "OPTIONS" and value else ""
            lines += [".TP", f"\\fB{_roff(names)}\\fR{shown}", _roff(text) or "\\&"]
    if command.children:
        lines.append(".SH COMMANDS")
        for child in command.children:
            lines += [".TP", f"\\fB{_roff(' '.join(child.path[1:]))}\\fR", _roff(child.help)]
    lines += [".SH EXAMPLES"] if command.examples else []
    for call in command.examples:
        lines += [".PP", f"\\fB{_roff(call)}\\fR"]
    lines += [
        ".SH EXIT STATUS",
        "0 done; 1 a bug or a closed pipe; 2 wrong usage, or with \\-\\-dry\\-run that something",
    ]
    lines += ["would change; 3 to 6 a refusal, told with its code and its remedy on standard error."]
    if len(command.path) > 1:
        lines += [".SH SEE ALSO", f".BR {_roff('-'.join(command.path[:-1]))} (1)"]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("\n", " ")


def completions(root: Command) -> dict[str, str]:
    """Shell -> script. All words are in it: no interpreter is started at a press of the tabulator."""
    rows = {" ".join(command.path[1:]): _words(command) for command in each(root)}
    return {"bash": _bash(rows), "zsh": _zsh(rows), "fish": _fish(root)}


def _words(command: Command) -> str:
    options = [name for names, _, _ in command.options for name in names.split(", ")]
    return " ".join([*(child.path[-1] for child in command.children), *options])


def _table(rows: dict[str, str], reply: str) -> str:
    return "\n".join(f'        "{path}") {reply.format(words=words)} ;;' for path, words in rows.items())


def _bash(rows: dict[str, str]) -> str:
    paths = "|".join(f'"{path}"' for path in rows if path)
    return f"""\
# vgpu's completion for bash
_vgpu() {{
    local word path=""
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "${{path:+$path }}$word" in
            {paths}) path="${{path:+$path }}$word" ;;
        esac
    done
    local words=""
    case "$path" in
{_table(rows, 'words="{words}"')}
    esac
    # shellcheck disable=SC2207  # words without blanks
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _vgpu vgpu
"""


def _zsh(rows: dict[str, str]) -> str:
    paths = "|".join(f'"{path}"' for path in rows if path)
    return f"""\
#compdef vgpu
# vgpu's completion for zsh
local word path_=""
for word in "${{(@)words[2,CURRENT-1]}}"; do
    case "${{path_:+$path_ }}$word" in
        {paths}) path_="${{path_:+$path_ }}$word" ;;
    esac
done
local -a offered
case "$path_" in
{_table(rows, "offered=({words})")}
esac
compadd -a offered || _files
"""


def _fish(root: Command) -> str:
    paths = " ".join(f"'{' '.join(command.path[1:])}'" for command in each(root) if command.path[1:])
    lines = [
        f"""\
# vgpu's completion for fish
function __vgpu_at --argument-names command --description 'Whether the words before the cursor name that command'
    set -l path ''
    for word in (commandline -opc)[2..-1]
        set -l longer (string trim -- "$path $word")
        contains -- "$longer" {paths}; and set path "$longer"
    end
    test "$path" = "$command"
end"""
    ]
    for command in each(root):
        here = f"complete -c vgpu -n \"__vgpu_at '{' '.join(command.path[1:])}'\""
        for child in command.children:
            lines.append(f'{here} -f -a {child.path[-1]} -d "{_quoted(child.help)}"')
        for names, value, text in command.options:
            for name in names.split(", "):
                kind = "-l" if name.startswith("--") else "-s"
                takes = " -r" if value else ""
                lines.append(f'{here} {kind} {name.lstrip("-")}{takes} -d "{_quoted(text)}"')
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
