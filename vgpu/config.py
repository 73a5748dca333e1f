"""vgpu config: show, check and apply the admin's policy."""

from __future__ import annotations

import os
from typing import Any

from oci_hook import fastjson
from oci_hook.errors import HostError
from oci_hook.records import Policy
from oci_hook.values import as_json as to_json
from runtime_config import files, launcher_conf, policy_file, policy_groups
from vgpu import output


def prefix_of(config: str) -> str:
    """Where vgpu is installed: <prefix>/etc/config.yaml, whatever links lead there."""
    return os.path.dirname(os.path.dirname(os.path.realpath(config)))


def installed(prefix: str | None) -> str:
    """`prefix`, or that of the policy which VGPU_CONFIG names: for commands whose --config is something else."""
    return prefix or prefix_of(os.environ.get("VGPU_CONFIG", policy_file.DEFAULT_PATH))


def home_of(config: str) -> str:
    """The folder of the version whose policy.json follows from `config`; the prefix, where there are no versions."""
    return os.path.dirname(os.path.dirname(policy_file.compiled_path(config)))


def _in_force(config: str) -> dict[str, Any] | None:
    """The compiled policy as it is, None if there is none or it cannot be read."""
    data = files.read(policy_file.compiled_path(config)).data
    try:
        found = fastjson.loads(data or b"")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _read(config: str) -> tuple[Policy, bool]:
    """The policy that config.yaml says, and whether it is in force."""
    policy = policy_file.read_policy(config, home_of(config))
    return policy, to_json(policy) == _in_force(config)


def show(config: str, *, as_json: bool) -> None:
    """Prints what is in force; a config.yaml that says something else is mentioned."""
    said, applied = _read(config)
    found = _in_force(config)
    policy = {**to_json(said), **(found or {})}
    if as_json:
        output.emit_json({"config": config, "applied": applied, "policy": policy})
        return
    rows = []
    for name, setting in policy_file.SETTINGS.items():
        rows.append((name, _text(setting.field, policy[setting.field])))
    rows += [(name, _text(field, policy[field])) for name, (field, _) in policy_groups.GROUPS.items()]
    output.table(("SETTING", "VALUE"), rows)
    if not applied:
        output.message(f"vgpu: {config} has changes that are not in force yet: vgpu config apply")


def _text(field: str, value: Any) -> str:
    if value is None:
        return "no cap"
    if isinstance(value, dict):
        return ", ".join(f"{name} {weight:g}" for name, weight in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(_quota(item) if isinstance(item, dict) else str(item) for item in value) or "none"
    return output.size(value) if field.endswith("_bytes") else str(value) or "none"


def _quota(item: dict[str, Any]) -> str:
    words = {"memory_bytes": "memory", "cores_percent": "cores", "containers": "containers"}
    limits = [f"{word} {_text(name, item[name])}" for name, word in words.items() if item.get(name) is not None]
    return f"{item['label']} ({', '.join(limits)})"


def check(config: str, *, as_json: bool) -> None:
    policy, applied = _read(config)
    launcher_conf.check_runtime(policy.runtime, prefix_of(config))
    if as_json:
        output.emit_json({"config": config, "ok": True, "applied": applied})
    else:
        print(f"{config}: good, {'in force' if applied else 'not in force yet: vgpu config apply'}")


def apply(config: str, *, as_json: bool) -> None:
    """Writes policy.json and the launcher's runtime. What cannot work is refused before anything is written."""
    policy, _ = _read(config)
    home = home_of(config)
    launcher_conf.check_runtime(policy.runtime, prefix_of(config))
    changed = policy_file.write_compiled(policy, policy_file.compiled_path(config))
    changed = launcher_conf.agree(home, policy.runtime, policy.state_dir) or changed
    if as_json:
        output.emit_json({"config": config, "changed": changed})
    else:
        print(f"{config}: {'now in force' if changed else 'already in force'} for containers that start from now on")


def load(config: str) -> Policy:
    """The policy in force, as the start path reads it."""
    if _in_force(config) is None:
        raise HostError(
            "VGPU-HOST-001",
            f"there is no policy in force beside {config}",
            remedy="run vgpu config apply, or name the policy file with --config",
        )
    from oci_hook import policy

    return policy.load(policy_file.compiled_path(config))


def load_for_failures(config: str) -> tuple[Policy, str]:
    """The policy in force, and the folder in which the launcher keeps refused starts, which is its state folder unless
    launcher.conf is damaged. Where there is no policy that can be used, one that only names that folder."""
    from oci_hook import no_policy

    launchers = no_policy.state_dir(policy_file.compiled_path(config))
    try:
        return load(config), launchers
    except HostError as error:
        output.message(f"vgpu: {error}: only {launchers} was looked at")
        return Policy(runtime="", prefix="", state_dir=launchers), launchers
