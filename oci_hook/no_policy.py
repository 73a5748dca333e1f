"""A start without a policy that can be used is refused; here its reason is kept. Loaded only then.

The policy says where refused starts are kept. launcher.conf, which is written with it and lies beside it, says so too.
"""

from __future__ import annotations

import os

from oci_hook import audit, files, ledger
from oci_hook.errors import VgpuError
from oci_hook.records import Policy

_MAX_FILE = 1 << 20


def state_dir(policy_path: str) -> str:
    """The state folder as launcher.conf beside `policy_path` names it; the default one if it cannot be believed."""
    return _named(policy_path) or Policy.state_dir


def _named(policy_path: str) -> str:
    conf = os.path.join(os.path.dirname(os.path.realpath(policy_path)), "launcher.conf")
    try:
        data, found = files.read(conf, _MAX_FILE, follow=True)
    except (OSError, ValueError):
        return ""
    if found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022:
        for line in data.decode("utf-8", "surrogateescape").splitlines():
            if line.startswith("state=/"):
                return line.removeprefix("state=")
    return ""


def keep(policy_path: str, container: str, error: VgpuError, **facts: str) -> None:
    """As audit.failure, for `error` that says why there is no policy."""
    state = _named(policy_path)
    if not state and not os.path.isdir(Policy.state_dir):
        return  # nobody has named it: it may be another's
    named = container if ledger.is_id(container) else audit.UNNAMED
    audit.failure(state or Policy.state_dir, named, error, **facts)
