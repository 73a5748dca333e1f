"""containerd's config.toml: what is added works, what was there stays byte for byte, and undo gives it back."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

from oci_hook.errors import HostError
from runtime_config.engines import containerd
from tests.harness import engines, suites

LAUNCHER = "/opt/vgpu/bin/vgpu-runtime"
V2 = '''# an admin's file
version = 2
root = "/var/lib/containerd"   # keep this remark

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.9"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true
[debug]
  level = "info"'''
V3 = V2.replace("version = 2", "version = 3").replace("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")
V1 = V2.replace("version = 2\n", "").replace('"io.containerd.grpc.v1.cri"', "cri")
PLAIN = 'version = 2\ndisabled_plugins = ["io.containerd.internal.v1.opt"]\n'
FILES = {"empty": "", "v1": V1, "v2": V2, "v3": V3, "plain": PLAIN, "crlf": V2.replace("\n", "\r\n") + "\r\n"}
every = pytest.mark.parametrize("text", FILES.values(), ids=FILES)


def handler(text: str) -> dict[str, object]:
    """Our handler's table in the file."""
    plugins = tomllib.loads(text)["plugins"]
    (cri,) = (plugin for plugin in plugins.values() if "vgpu" in plugin.get("containerd", {}).get("runtimes", {}))
    table: dict[str, object] = cri["containerd"]["runtimes"]["vgpu"]
    return table


@every
def test_the_handler_is_added_and_every_other_byte_stays(text: str) -> None:
    new = containerd.add(text, LAUNCHER)
    assert new.startswith(text)
    wanted = {
        "runtime_type": "io.containerd.runc.v2",
        "pod_annotations": ["vgpu.*", "vgpu.*/*"],
        "container_annotations": ["vgpu.*", "vgpu.*/*"],
        "options": {"BinaryName": LAUNCHER, **({"SystemdCgroup": True} if "SystemdCgroup" in text else {})},
    }
    assert handler(new) == wanted
    assert containerd.find(new).launcher == LAUNCHER
    assert not containerd.find(new).is_default


@every
@pytest.mark.parametrize("set_default", [False, True])
def test_twice_changes_nothing_and_undo_gives_back_the_same_bytes(text: str, set_default: bool) -> None:
    new = containerd.add(text, LAUNCHER, set_default=set_default)
    assert containerd.add(new, LAUNCHER, set_default=set_default) == new
    assert containerd.remove(new, text or None) == (text or None)
    assert containerd.remove(text, None) == text


@every
def test_the_default_is_set_in_a_second_step_and_goes_with_the_first(text: str) -> None:
    new = containerd.add(containerd.add(text, LAUNCHER), LAUNCHER, set_default=True)
    assert containerd.find(new).is_default
    assert containerd.remove(new, text) == text


@every
def test_undo_leaves_what_others_have_written_meanwhile(text: str) -> None:
    theirs = '\n[timeouts]\n  "io.containerd.timeout.shim.load" = "5s"\n'
    new = containerd.add(text, LAUNCHER, set_default=True) + theirs
    undone = containerd.remove(new, text)
    assert undone is not None and undone.endswith(theirs)
    before, after = tomllib.loads(text), tomllib.loads(undone)
    assert after.pop("timeouts") == {"io.containerd.timeout.shim.load": "5s"}
    assert "vgpu" not in undone
    if text:
        assert containerd.find(undone).default == containerd.find(text).default
        assert {**before, "plugins": {}} == {**after, "plugins": {}}


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("version = \n", "VGPU-CFG-001", "not TOML"),
        ("version = 9\n", "VGPU-CFG-003", "version=9"),
        ('version = 2\nplugins = "x"\n', "VGPU-CFG-003", "plugins='x'"),
        ("version = 2\nplugins = {}\n", "VGPU-CFG-003", "cannot be added to"),
        (
            'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.vgpu]\nruntime_type = "x"\n',
            "VGPU-CFG-003",
            "not ours",
        ),
        (
            'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\ndefault_runtime_name = 3\n',
            "VGPU-CFG-003",
            "default_runtime_name=3",
        ),
    ],
)
def test_what_cannot_be_edited_is_refused_and_named(text: str, code: str, said: str) -> None:
    with pytest.raises(HostError) as caught:
        containerd.add(text, LAUNCHER)
    assert caught.value.code == code
    assert said in str(caught.value)


def test_another_installation_is_not_replaced_silently() -> None:
    with pytest.raises(HostError, match="/opt/vgpu/bin/vgpu-runtime"):
        containerd.add(containerd.add("", LAUNCHER), "/other/bin/vgpu-runtime")


# Debian 12's containerd 1.6 always; 1.7 and 2.1 by `make matrix`. 2.1 no longer reads version 1
READERS = [("debian12", name) for name in ("empty", "v1", "v2", "plain")]
OTHERS = [("trixie", name) for name in ("empty", "v1", "v2", "crlf")] + [
    ("forky", name) for name in ("empty", "v2", "v3")
]


@pytest.mark.parametrize(
    ("suite", "name"), [*READERS, *(pytest.param(*other, marks=pytest.mark.matrix) for other in OTHERS)]
)
@pytest.mark.parametrize("set_default", [False, True])
def test_containerd_itself_reads_the_handler(tmp_path: Path, suite: str, name: str, set_default: bool) -> None:
    """It prints the file as it has understood it."""
    path = tmp_path / "config.toml"
    path.write_text(containerd.add(FILES[name], LAUNCHER, set_default=set_default))
    engine = engines.docker() if suite == "debian12" else suites.engine(suite)
    done = subprocess.run(
        [engine.program("containerd"), "--config", path, "config", "dump"],
        env=engine.environment(), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    found = containerd.find(done.stdout)
    assert (found.launcher, found.is_default) == (LAUNCHER, set_default)
    assert handler(done.stdout)["pod_annotations"] == ["vgpu.*", "vgpu.*/*"]
    if "SystemdCgroup" in FILES[name]:
        options = handler(done.stdout)["options"]
        assert isinstance(options, dict) and options["SystemdCgroup"] is True


@pytest.mark.parametrize("name", ["empty", "plain", "v2"])
def test_the_built_in_handler_stays_where_a_file_names_none(name: str) -> None:
    """containerd before 2.1 has no runc any more when a file names another handler, and CRI does not start."""
    added = containerd.add(FILES[name], LAUNCHER)
    assert set(containerd.handlers(added)) == {"runc", "vgpu"}
    assert added.count("runtimes.runc]") == 1
    assert containerd.remove(added, FILES[name]) == FILES[name]
    edited = added.replace("version = 2", "version = 2\noom_score = 5")
    undone = containerd.remove(edited, FILES[name])
    assert undone is not None and "vgpu" not in undone
    assert set(containerd.handlers(undone)) == set(containerd.handlers(FILES[name]))
