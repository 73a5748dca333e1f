"""How dockerd is started: by the process that runs, and by the units that will start it next time.

dockerd refuses to start, and to reload, when a setting is both a flag and a key of its file, so flags must be known
before a key is added. It is asked itself too, where it can (`dockerd --validate`, since 23.0).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from oci_hook.errors import HostError, shown
from runtime_config.engines import docker

_FLAGS = {"runtimes": "--add-runtime", "default-runtime": "--default-runtime"}  # key of the file -> flag
_UNITS = ("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "lib/systemd/system",
          "usr/lib/systemd/system")  # fmt: skip  # the first that has a name counts: systemd.unit(5)
_ANSWER_S = 30


@dataclass(frozen=True, slots=True)
class Start:
    """One way in which dockerd is or will be started. where: for people. words: program and flags."""

    where: str
    words: tuple[str, ...]
    pid: int = 0  # 0: not running

    def value(self, flag: str) -> str | None:
        """Of `--flag VALUE` or `--flag=VALUE`; None: it is not there."""
        for index, word in enumerate(self.words):
            if word == flag:
                return self.words[index + 1] if index + 1 < len(self.words) else ""
            if word.startswith(flag + "="):
                return word[len(flag) + 1 :]
        return None

    def reads(self, path: str) -> bool:
        return os.path.realpath(self.value("--config-file") or docker.DEFAULT_PATH) == os.path.realpath(path)


def running() -> Iterator[Start]:
    """Every dockerd of this machine whose command line may be read."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "comm").read_text() == "dockerd\n":
                words = (entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
                yield Start(f"process {entry.name}", tuple(words), int(entry.name))
        except OSError:
            continue  # it has ended, or is another user's


def units(root: str = "/") -> Iterator[Start]:
    """What systemd's docker.service, with its drop-ins, and System V's /etc/default/docker start dockerd with."""
    folders = [Path(root, name) for name in _UNITS]
    main = next((path for folder in folders if (path := folder / "docker.service").is_file()), None)
    if main is not None:
        drop_ins: dict[str, Path] = {}
        for folder in folders:
            for path in folder.glob("docker.service.d/*.conf"):
                drop_ins.setdefault(path.name, path)
        start = _exec_start(root, [main, *(drop_ins[name] for name in sorted(drop_ins))])
        if start is not None:
            yield start
    elif (old := Path(root, "etc/default/docker")).is_file():
        options = _assignments(old).get("DOCKER_OPTS", "")
        if options:
            yield Start(str(old), ("dockerd", *_split(options)))


def _exec_start(root: str, files: Sequence[Path]) -> Start | None:
    """The last ExecStart= that counts, its variables filled in."""
    variables: dict[str, str] = {}
    found: Start | None = None
    for path in files:
        for line in re.sub(r"\\\n", " ", path.read_text(errors="replace")).splitlines():
            name, _, text = line.strip().partition("=")
            if name == "Environment":
                variables |= dict(pair.split("=", 1) for pair in _split(text) if "=" in pair)
            elif name == "EnvironmentFile":
                variables |= _assignments(Path(root, text.strip().lstrip("-").lstrip("/")))
            elif name == "ExecStart":
                found = Start(str(path), tuple(_split(text))) if text.strip() else None
    if found is None:
        return None
    words = (re.sub(r"\$\{?(\w+)\}?", lambda match: variables.get(match[1], ""), word) for word in found.words)
    # $OPTIONS becomes several words, as systemd has it
    return Start(found.where, tuple(part for word in words for part in _split(word)))


def _assignments(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.strip().removeprefix("export ").partition("=") for line in lines if not line.lstrip().startswith("#"))
    return {name: " ".join(_split(text)) for name, found, text in pairs if found}


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # an open quote: systemd would not start it either
        return text.split()


def default_is_a_flag(path: str) -> bool:
    """Does the dockerd that reads `path` have its default runtime from its command line?"""
    return any(start.reads(path) and start.value(_FLAGS["default-runtime"]) is not None for start in running())


def require_no_conflict(
    text: str, path: str, launcher: str, root: str = "/", starts: Iterable[Start] | None = None
) -> None:
    """Raises VGPU-CFG-006 if dockerd would refuse the file's text. starts: how it is started, None: look."""
    found = docker.find(text, path)
    keys = [*(["runtimes"] if found.launcher else []), *(["default-runtime"] if found.default else [])]
    for start in (*running(), *units(root)) if starts is None else starts:
        for key in keys if start.reads(path) else ():
            value = start.value(_FLAGS[key])
            if value is None:
                continue
            flag = f"{_FLAGS[key]} {value}".strip()
            own = f"--add-runtime vgpu={launcher}" if key == "runtimes" else "--default-runtime vgpu"
            raise HostError(
                "VGPU-CFG-006",
                f"dockerd is started with {shown(flag)} ({start.where}), and would no longer start with the key {key} "
                f"in {path} as well",
                remedy=f"move the flag into the file, as its key {key}, and restart dockerd; or add {own} to the flags",
            )


def require_valid(text: str, before: str, path: str) -> None:
    """Asks the dockerd that reads `path` what it thinks of the new text. Raises VGPU-CFG-007 if it would refuse it, but
    not the text that is there. One that cannot be asked (not running, or before 23.0) is not."""
    start = next((start for start in running() if start.reads(path)), None)
    if start is None:
        return
    said = _validate(start, text)
    if said and not _validate(start, before or "{}"):
        raise HostError(
            "VGPU-CFG-007", f"dockerd ({start.where}) would refuse {path}: {shown(said, 300)}", remedy="mend that first"
        )


def _validate(start: Start, text: str) -> str:
    """What dockerd has against `text`, "" if nothing, or if it cannot say."""
    flags = [word for word in start.words[1:] if not word.startswith("--config-file")]
    if "--config-file" in start.words:
        flags.remove(start.value("--config-file") or "")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as trial:
        trial.write(text)
        trial.flush()
        try:
            environment = Path(f"/proc/{start.pid}/environ").read_bytes().decode(errors="replace").split("\0")
            done = subprocess.run(
                [os.readlink(f"/proc/{start.pid}/exe"), *flags, "--validate", f"--config-file={trial.name}"],
                env=dict(pair.split("=", 1) for pair in environment if "=" in pair),
                capture_output=True, text=True, timeout=_ANSWER_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return ""
        said = done.stderr.strip().replace(trial.name, "the new text")
        return said if done.returncode and "unable to configure the Docker daemon" in said else ""
