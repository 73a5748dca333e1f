"""The admin's policy and what the launcher goes by: there, in force, trusted, and leading to programs that exist."""

from __future__ import annotations

import os
from collections.abc import Iterator

from oci_hook import policy as policy_module
from oci_hook.values import as_json
from runtime_config import launcher_conf, policy_file
from vgpu.doctor.finding import CannotSee, Result, Seen, found
from vgpu.doctor.host.machine import Host, Run, why

_KEYS = ("runtime", "python", "shim", "policy")


def policy_is_in_force(host: Host) -> Iterator[Result]:
    policy = policy_module.load(policy_file.compiled_path(host.config))  # raises: this check tells what others skip
    said = policy_file.read_policy(host.config, policy.prefix)
    if as_json(said) != as_json(policy):
        differ = sorted(key for key, value in as_json(said).items() if as_json(policy).get(key) != value)
        yield found("VGPU-CFG-005", host.config, f"not in force: {', '.join(differ)}")
    else:
        yield Seen(f"{host.config} is in force")


def launcher(host: Host) -> Iterator[Result]:
    policy = host.policy
    path = launcher_conf.path_in(policy.prefix)
    values = _launcher_values(path)
    missing = [key for key in _KEYS if not values.get(key, "").startswith("/")]
    if missing:
        remedy = "packaging/install.py --prefix " + policy.prefix
        yield found("VGPU-HOST-001", path, f"{', '.join(missing)} not named by an absolute path", remedy=remedy)
        return
    if values["runtime"] != policy.runtime:
        evidence = f"runtime={values['runtime']}, and the policy says {policy.runtime}"
        yield found("VGPU-CFG-005", path, evidence)
    if values.get("state") != policy.state_dir:
        evidence = f"state={values.get('state', '')}, and the policy says state_dir: {policy.state_dir}"
        yield found("VGPU-CFG-005", path, evidence)
    programs = {
        "runtime": values["runtime"],
        "python": values["python"],
        "launcher": f"{policy.prefix}/bin/vgpu-runtime",
    }
    for what, program in programs.items():
        if not os.access(program, os.X_OK):
            remedy = "install it, or name another in config.yaml, then: vgpu config apply"
            yield found("VGPU-HOST-004", program, f"the {what} is not there, or is no program",
                        remedy=remedy if what == "runtime" else "install vgpu again")  # fmt: skip
    if not os.path.exists(values["shim"]):
        yield found("VGPU-HOST-004", values["shim"], "the shim is not there", remedy="install vgpu again")
    yield from _trusted(path, policy.prefix)
    yield Seen(f"{policy.prefix} before {values['runtime']}")


def _launcher_values(path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            pairs = (line.rstrip("\n").partition("=") for line in file)
            return {key: value for key, _, value in pairs}
    except OSError as error:
        raise CannotSee(path, why(error)) from None


def _trusted(path: str, prefix: str) -> Iterator[Result]:
    """Whatever of these others could write would run, or decide what runs, as root."""
    folders = (prefix, f"{prefix}/bin", f"{prefix}/etc", f"{prefix}/lib/vgpu", f"{prefix}/lib/vgpu/python")
    for name in (path, f"{prefix}/bin/vgpu-runtime", f"{prefix}/bin/vgpu-hook", *folders):
        try:
            status = os.stat(name)
        except OSError:
            continue
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            evidence = f"owner {status.st_uid}, mode {status.st_mode & 0o7777:04o}: others than root can change it"
            yield found("VGPU-HOST-006", name, evidence, remedy=f"chown root {name} && chmod go-w {name}")


CHECKS: tuple[tuple[str, str, Run], ...] = (
    ("vgpu", "policy", policy_is_in_force),
    ("vgpu", "launcher", launcher),
)
