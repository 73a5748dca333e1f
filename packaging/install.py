"""Installs what `make build` built into a prefix, or takes it out again.

    python packaging/install.py --prefix /opt/vgpu [--simulate-gpus 2] [--runtime /usr/bin/runc]
    python packaging/install.py --prefix /opt/vgpu --uninstall

Each file is replaced by renaming a new one over it, so containers that run keep the files they have. What was installed
is listed in <prefix>/lib/vgpu/manifest.json: only that is taken out again, and a config.yaml that was changed stays.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from oci_hook.errors import HostError, VgpuError  # noqa: E402  # the checkout's own, installed or not
from runtime_config import files, launcher_conf, policy_file  # noqa: E402

SYSTEM_PREFIX = "/opt/vgpu"
SYSTEM_LINK = Path(policy_file.DEFAULT_PATH)
HOT_PYTHON = "/usr/bin/python3"  # of Debian: there before any virtual environment, and not to be replaced by a user
MANIFEST = "lib/vgpu/manifest.json"
CONFIG = "etc/config.yaml"
CLI_PACKAGES = ("vgpu", "runtime_config", "libcuda_wrap")
BUILD_ONLY = {"build.py", "toolchain.py", "sys_build.py", "gen", "generated", "src", "launcher", "entry", "__pycache__"}

CLI_ENTRY = '''\
"""The operator's command of the installation that this file is part of."""

import os
import sys

here = os.path.dirname(os.path.realpath(__file__))
sys.path[:0] = [here, os.path.join(os.path.dirname(here), "python")]
sys.dont_write_bytecode = True
os.environ.setdefault("VGPU_CONFIG", os.path.normpath(os.path.join(here, "../../../etc/config.yaml")))

from vgpu.cli import main

main()
'''


@dataclass(frozen=True, slots=True)
class Item:
    """One file to install: its content and, below the prefix, its place."""

    target: str
    data: bytes
    mode: int = 0o644


def _refuse(message: str, remedy: str) -> VgpuError:
    return HostError("VGPU-HOST-008", message, remedy=remedy)


def _built(folder: Path, target: str, pattern: str, mode: int = 0o644) -> Iterator[Item]:
    found = sorted(path for path in folder.glob(pattern) if path.is_file() and not path.is_symlink())
    if not found:
        raise _refuse(f"{folder}/{pattern} has not been built", "run make build first")
    for path in found:
        yield Item(f"{target}/{path.name}", path.read_bytes(), mode)


def _sources(package: Path) -> Iterator[tuple[str, bytes]]:
    """(path below the package's parent, content) of what the package needs at run time."""
    for path in sorted(package.rglob("*")):
        relative = path.relative_to(package.parent)
        if path.suffix in (".py", ".h", ".yaml", ".txt") and not BUILD_ONLY & set(relative.parts):
            yield str(relative), path.read_bytes()


def _with_bytecode(
    python: str, sources: dict[str, bytes], prefix: Path, target: str, built: Path | None = None
) -> Iterator[Item]:
    """The sources and their compiled form, which is never checked against them: at a container's start that costs.

    built: where the parts in C of what starts with every container are.
    """
    with tempfile.TemporaryDirectory(prefix="vgpu-install-") as stage:
        for name, data in sources.items():
            path = Path(stage, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        # without the column tables of tracebacks, a third of what is read at each start
        command = [python, "-I", "-X", "no_debug_ranges"]
        compiler = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
        _compiled([*command, *compiler, "-s", stage, "-p", f"{prefix}/{target}", stage])
        if built is not None:
            pack = str(ROOT / "packaging/pack.py")
            packer = [*command, "-S", "-E", pack, stage, f"{prefix}/{target}", str(built)]
            for part in ("shim", "hook"):
                yield Item(f"{target}/{part}.pack", _compiled([*packer, part]))
        for path in sorted(Path(stage).rglob("*")):
            if path.is_file():
                yield Item(f"{target}/{path.relative_to(stage)}", path.read_bytes())


def _compiled(command: list[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace")
        raise _refuse(f"{command[0]} cannot compile our modules: {said}", "use an interpreter of version 3.11 or later")
    return done.stdout


def items(prefix: Path, build: Path, cli_python: str, hot_python: str) -> Iterator[Item]:
    """All that is installed and is the same for every configuration."""
    yield from _built(build / "launcher", "bin", "vgpu-*", 0o755)
    yield from _built(build / "wrapper", "lib/vgpu/wrapper", "lib*.so.1", 0o755)
    yield from _built(build / "sim", "lib/vgpu/sim", "lib*.so.*", 0o755)
    hot = dict(_sources(ROOT / "oci_hook"))
    hot |= {path.name: path.read_bytes() for path in sorted((ROOT / "oci_hook/entry").glob("*.py"))}
    yield from _with_bytecode(hot_python, hot, prefix, "lib/vgpu/python", build / "python")
    yield from _built(build / "python", "lib/vgpu/python", "_cffi_backend*.so", 0o755)
    yield from _built(build / "python/oci_hook", "lib/vgpu/python/oci_hook", "_vgsys*.so", 0o755)
    cli = {name: data for package in CLI_PACKAGES for name, data in _sources(ROOT / package)}
    cli["vgpu_cli.py"] = CLI_ENTRY.encode()
    yield from _with_bytecode(cli_python, cli, prefix, "lib/vgpu/cli")
    command = f'exec {shlex.quote(cli_python)} -I {shlex.quote(f"{prefix}/lib/vgpu/cli/vgpu_cli.py")} "$@"'
    yield Item("bin/vgpu", f"#!/bin/sh\n{command}\n".encode(), 0o755)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _manifest(prefix: Path) -> dict[str, str]:
    """target -> digest of what an earlier run installed."""
    try:
        found = json.loads((prefix / MANIFEST).read_bytes())["files"]
        return {str(name): str(digest) for name, digest in found.items()}
    except (FileNotFoundError, NotADirectoryError):  # the latter is told when the first file is to be written
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        why = f"{prefix / MANIFEST} cannot be read: {error}"
        raise _refuse(why, "remove that file and install again") from None


def _folder(prefix: Path, target: str) -> None:
    """The folders above `target`, readable by all and writable by us alone, whatever the umask."""
    missing = []
    for folder in (prefix / target).parents:
        if folder.exists():
            break
        missing.append(folder)
    for folder in reversed(missing):
        folder.mkdir()
        folder.chmod(0o755)


def _put(prefix: Path, item: Item) -> bool:
    """Installs one file; False if it is there already, as it should be."""
    path = prefix / item.target
    _folder(prefix, item.target)
    with contextlib.suppress(OSError):
        if path.read_bytes() == item.data and stat.S_IMODE(path.lstat().st_mode) == item.mode:
            return False
    fd, temporary = tempfile.mkstemp(prefix=".vgpu-", dir=path.parent)
    try:
        with open(fd, "wb") as stream:
            os.fchmod(fd, item.mode)
            stream.write(item.data)
            stream.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return True


def configuration(prefix: Path, options: argparse.Namespace, manifest: dict[str, str]) -> Iterator[Item]:
    """config.yaml, unless the admin has made it his own, and the two files that follow from it."""
    path = prefix / CONFIG
    text = policy_file.template(
        os.path.abspath(options.runtime or _find_runtime()),
        options.state_dir,
        options.log_dir,
        options.simulate_gpus,
        options.simulate_memory,
    )
    if path.exists() and _digest(path.read_bytes()) != manifest.get(CONFIG):
        print(f"{path} was changed and stays as it is")
        text = files.decode(files.read(str(path)))
    else:
        yield Item(CONFIG, text.encode())
    policy = policy_file.compile_policy(text, str(prefix), path=str(path))
    launcher_conf.check_runtime(policy.runtime, str(prefix))
    yield Item("etc/policy.json", policy_file.compiled_text(policy))
    yield Item("etc/launcher.conf", launcher_conf.text(str(prefix), policy.runtime, options.python).encode())


def _find_runtime() -> str:
    for name in ("runc", "crun"):
        if found := shutil.which(name):
            return found
    raise _refuse("neither runc nor crun is installed", "install one of them, or name it with --runtime")


def install(prefix: Path, options: argparse.Namespace) -> None:
    """Everything or, where something is missing, nothing: all is read and compiled before the first file is written."""
    options.python = os.path.realpath(options.python)
    _check_interpreter(options.build / "python", options.python)
    old = _manifest(prefix)
    wanted = [*items(prefix, options.build, options.cli_python, options.python), *configuration(prefix, options, old)]
    changed = [item.target for item in wanted if _put(prefix, item)]
    new = {item.target: _digest(item.data) for item in wanted}
    if CONFIG not in new and CONFIG in old:
        new[CONFIG] = old[CONFIG]  # ours once, changed since: an uninstall must not take it away
    for target in old.keys() - new.keys():
        (prefix / target).unlink(missing_ok=True)
    _put(prefix, Item(MANIFEST, json.dumps({"schema": 1, "files": new}, indent=1).encode()))
    if str(prefix) == SYSTEM_PREFIX and not os.path.lexists(SYSTEM_LINK):
        SYSTEM_LINK.parent.mkdir(mode=0o755, exist_ok=True)
        SYSTEM_LINK.symlink_to(prefix / CONFIG)
    print(f"{prefix}: {len(changed)} of {len(wanted)} files changed")


def _check_interpreter(built: Path, python: str) -> None:
    """The interpreter that containers start with must be able to load what was built for it."""
    list(_built(built / "oci_hook", "", "_vgsys*.so"))  # refuses where there is nothing to load
    code = f"import sys; sys.path.insert(0, {str(built)!r}); import oci_hook._vgsys; print('good')"
    try:
        done = subprocess.run([python, "-I", "-S", "-E", "-c", code], capture_output=True, text=True, check=False)
        reason = "" if done.stdout == "good\n" else done.stderr.strip().rpartition("\n")[2] or "it is no Python"
    except OSError as error:
        reason = error.strerror or "it cannot be started"
    if reason:
        raise _refuse(
            f"{python} cannot load {built}: {reason}", "run make build with that interpreter, or name it with --python"
        )


def uninstall(prefix: Path) -> None:
    """Takes out what the manifest lists, then the folders that are empty."""
    manifest = _manifest(prefix)
    if not manifest:
        print(f"{prefix}: nothing of vgpu is installed there")
        return
    config = prefix / CONFIG
    if config.exists() and _digest(config.read_bytes()) != manifest.get(CONFIG):
        print(f"{config} was changed and stays")
        manifest.pop(CONFIG, None)
    if SYSTEM_LINK.is_symlink() and os.readlink(SYSTEM_LINK) == str(config) and CONFIG in manifest:
        SYSTEM_LINK.unlink()
        _remove_empty(SYSTEM_LINK.parent)
    for target in (*manifest, MANIFEST):
        (prefix / target).unlink(missing_ok=True)
    folders = {
        folder
        for target in (*manifest, MANIFEST)
        for folder in (prefix / target).parents
        if prefix in (folder, *folder.parents)
    }
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        _remove_empty(folder)
    print(f"{prefix}: {len(manifest)} files removed")


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # something of somebody else is in it, or it is gone
        folder.rmdir()


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="install vgpu into a prefix, or take it out again")
    parser.add_argument("--prefix", default=SYSTEM_PREFIX)
    parser.add_argument("--uninstall", action="store_true")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="what `make build` made")
    parser.add_argument("--runtime", help="the real runtime, absolute; else runc or crun of PATH")
    parser.add_argument("--state-dir", default="/run/vgpu")
    parser.add_argument("--log-dir", default="/var/lib/vgpu")
    parser.add_argument("--simulate-gpus", type=int, default=0)
    parser.add_argument("--simulate-memory", default="80GiB")
    parser.add_argument("--python", default=HOT_PYTHON, help="the interpreter of shim and hook")
    parser.add_argument("--cli-python", default=sys.executable, help="the interpreter of the vgpu command")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    prefix = Path(os.path.abspath(options.prefix))
    try:
        if options.uninstall:
            uninstall(prefix)
        else:
            install(prefix, options)
    except VgpuError as error:
        print(error.line(), file=sys.stderr)
        return error.exit_code
    except OSError as error:
        refusal = HostError(
            "VGPU-CFG-002", f"{error.filename}: {error.strerror}", remedy="run it as root, or choose another --prefix"
        )
        print(refusal.line(), file=sys.stderr)
        return refusal.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
