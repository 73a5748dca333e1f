"""The admin's config.yaml of a prefix, and what follows from it for one version."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from oci_hook.records import Policy
from runtime_config import files, launcher_conf, policy_file
from vgpu.installer import layout
from vgpu.installer.layout import Prefix, refuse
from vgpu.installer.source import Item
from vgpu.output import message

SYSTEM_LINK = Path(policy_file.DEFAULT_PATH)
DIGEST = "etc/config.yaml.sha256"  # as sha256sum writes it, so that an admin can check too


@dataclass(frozen=True, slots=True)
class Settings:
    """What a new config.yaml is to say. None: as it is, or the default; runtime: else runc or crun of PATH."""

    runtime: str | None = None
    state_dir: str | None = None
    log_dir: str | None = None
    simulate_gpus: int | None = None
    simulate_memory: str | None = None

    @property
    def given(self) -> bool:
        return self != Settings()


def is_ours(prefix: Prefix) -> bool:
    """Whether config.yaml is as an installer wrote it. One that is missing is nobody's."""
    try:
        noted = (prefix.path / DIGEST).read_text().split()[0]
        return noted == _digest(prefix.config.read_bytes())
    except (OSError, IndexError, UnicodeDecodeError):
        return False


def wanted(prefix: Prefix, settings: Settings) -> str | None:
    """The text that config.yaml is to have, None if it stays: it is the admin's, or nothing was asked for."""
    if prefix.config.exists() and not settings.given:
        return None
    if prefix.config.exists() and not is_ours(prefix):
        message(f"vgpu: {prefix.config} is yours and stays as it is")
        return None
    return policy_file.template(
        os.path.abspath(settings.runtime or _find_runtime()),
        settings.state_dir or Policy.state_dir,
        settings.log_dir or Policy.log_dir,
        settings.simulate_gpus or 0,
        settings.simulate_memory or "80GiB",
    )


def _find_runtime() -> str:
    for name in ("runc", "crun"):
        if found := shutil.which(name):
            return found
    raise refuse("neither runc nor crun is installed", "install one of them, or name it with --runtime")


def derived(prefix: Prefix, home: Path, text: str | None, python: str) -> tuple[Policy, list[Item]]:
    """The policy and the files of the version in `home` that follow from config.yaml. text: its new text, None: as is.

    Raises VGPU-CFG-001 and -003: nothing was written.
    """
    path = str(prefix.config)
    said = files.decode(files.read(path)) if text is None else text
    policy = policy_file.compile_policy(said, str(home), path=path)
    launcher_conf.check_runtime(policy.runtime, str(prefix.path))
    return policy, [
        Item("etc/policy.json", policy_file.compiled_text(policy)),
        Item("etc/launcher.conf", launcher_conf.text(str(home), policy.runtime, python, policy.state_dir).encode()),
    ]


def write(prefix: Prefix, text: str | None) -> None:
    """config.yaml, if it does not stay, and /etc/vgpu/config.yaml, which leads to it, in a system-wide installation."""
    if text is not None:
        layout.put(prefix.path / DIGEST, f"{_digest(text.encode())}  config.yaml\n".encode())
        layout.put(prefix.config, text.encode())
    if str(prefix.path) == layout.SYSTEM_PREFIX and not os.path.lexists(SYSTEM_LINK):
        layout.folder(SYSTEM_LINK.parent)
        SYSTEM_LINK.symlink_to(prefix.config)


def remove(prefix: Prefix, *, purge: bool) -> bool:
    """Takes config.yaml away; False if it is the admin's and stays. purge: it never stays."""
    stays = prefix.config.exists() and not (purge or is_ours(prefix))
    (prefix.path / DIGEST).unlink(missing_ok=True)
    if stays:
        return False
    if SYSTEM_LINK.is_symlink() and os.readlink(SYSTEM_LINK) == str(prefix.config):
        SYSTEM_LINK.unlink()
        layout.remove_empty(SYSTEM_LINK.parent)
    prefix.config.unlink(missing_ok=True)
    return True


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
