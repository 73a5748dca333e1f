"""vgpu doctor bundle: enough to help, and none of the secrets that lie in what it reads."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci_hook import audit, decision, ledger
from oci_hook.errors import RequestError
from oci_hook.values import replace
from tests.vgpu.test_commands import give_out, in_force, prefix
from vgpu.doctor.bundle import archive, kernel_log, redact, sources
from vgpu.doctor.bundle.archive import Item
from vgpu.doctor.host.machine import Host

__all__ = ["prefix"]  # the fixture
ROOT = Path(__file__).parents[2]

# where it lies -> the file with SECRET in it
PLANTED = {
    "etc/docker/daemon.json": """{"runtimes": {"vgpu": {"path": "/opt/vgpu/bin/vgpu-runtime", "runtimeArgs":
        ["--debug", "--token=SECRET", "SECRET"]}}, "auths": {"SECRET.example.com": {"auth": "SECRET"}},
        "proxies": {"http-proxy": "http://user:SECRET@proxy:3128"}, "registry-mirrors": ["https://SECRET.example.com"],
        "log-opts": {"splunk-token": "SECRET"}, "labels": ["team=SECRET"], "hosts": ["tcp://SECRET:2375"],
        "data-root": "https://u:SECRET@host/docker", "unknown": {"deep": [{"er": "SECRET"}]}, "debug": true}""",
    "etc/containerd/config.toml": """
        version = 2
        [plugins."io.containerd.grpc.v1.cri".registry.configs."SECRET.example.com".auth]
        username = "u"
        password = "SECRET"
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.vgpu]
        runtime_type = "io.containerd.runc.v2"
        [proxy_plugins.x]
        address = "SECRET"
        [plugins.y]
        env = ["TOKEN=SECRET"]
        """,
    "etc/containers/containers.conf": '[engine]\nruntime = "runc"\nenv = ["HTTPS_PROXY=http://u:SECRET@p"]\n',
    "etc/containers/oci/hooks.d/other.json": """{"version": "1.0.0", "hook": {"path": "/bin/x", "args":
        ["x", "--password", "SECRET"], "env": ["A=SECRET"]}, "stages": ["prestart"]}""",
    "etc/cdi/nvidia.yaml": """
        cdiVersion: 0.6.0
        kind: nvidia.com/gpu
        containerEdits: {env: [LICENSE=SECRET], mounts: [{hostPath: /usr/lib/x, containerPath: /usr/lib/x}]}
        """,
}
SECRET = "zq7Wn-x/Y+4kP=="  # as base64 has them, and as no other word of the files


@pytest.fixture
def planted(prefix: Path, tmp_path: Path) -> Path:
    """A host whose files hold the secret wherever one can; the root of its engines' files."""
    root = tmp_path / "root"
    for name, text in PLANTED.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text.replace("SECRET", SECRET))
    config = prefix / "etc/config.yaml"
    config.write_text(
        config.read_text() + f"\n# the password is {SECRET}\nquotas: [{{label: team={SECRET}, containers: 4}}]\n"
    )
    assert (
        subprocess.run([sys.executable, "-m", "vgpu", "config", "apply", "--config", config], cwd=ROOT).returncode == 0
    )
    policy = in_force(prefix)
    given_out = give_out(prefix)
    labels = {"team": SECRET, "vgpu.memory": "8GiB"}
    with ledger.Ledger(policy.state_dir) as book:
        book.rewrite(
            replace(given_out, request=replace(given_out.request, labels=labels), image=f"u:{SECRET}@r.example.com/a")
        )
        entry = ledger.read(policy.state_dir, given_out.id)
        assert entry is not None
        decision.ended(policy, entry, book.tick(), "fail", message=f"https://u:{SECRET}@x", code="VGPU-DEP-001")
    audit.append(policy.log_dir, "deny", "c2", code="VGPU-REQ-001", message=f"VGPU_MEMORY='{SECRET}': no size")
    error = RequestError("VGPU-REQ-001", f"VGPU_MEMORY='{SECRET}': no size", remedy="write 4GiB")
    audit.failure(policy.state_dir, "c2", error, name="job", image="registry.example.com:5000/a/b:1")
    return root


def collected(prefix: Path, root: Path, names: redact.Names | None = None) -> dict[str, str]:
    """Name -> text of all files."""
    host = Host(root=str(root), config=f"{prefix}/etc/config.yaml", ask=False)
    items = sources.Collector(host, in_force(prefix), names).items()
    return {item.name: item.data.decode() for item in items}


def test_no_secret_of_any_source_is_in_it(prefix: Path, planted: Path) -> None:
    found = collected(prefix, planted)
    assert [name for name, text in found.items() if SECRET in text] == []
    assert "the password is" not in found["config.yaml.json"]
    for name in found:
        if name.endswith(".json") and found[name]:
            json.loads(found[name])


def test_what_helps_is_in_it(prefix: Path, planted: Path) -> None:
    found = collected(prefix, planted)
    container = json.loads(found[f"containers/{'c' * 64}.json"])
    assert container["allocation"]["request"]["labels"] == {"team": redact.GONE, "vgpu.memory": "8GiB"}
    assert container["quota"][0]["memory_bytes"] == 8 << 30 and container["usage"]["armed_ns"] == 0
    daemon = json.loads(found["engines/etc/docker/daemon.json"])
    assert daemon["runtimes"]["vgpu"]["path"] == "/opt/vgpu/bin/vgpu-runtime" and daemon["debug"] is True
    assert daemon["runtimes"]["vgpu"]["runtimeArgs"] == ["--debug", f"--token={redact.GONE}", redact.GONE]
    cdi = json.loads(found["engines/etc/cdi/nvidia.yaml.json"])["containerEdits"]
    assert cdi["env"] == [f"LICENSE={redact.GONE}"] and cdi["mounts"][0]["hostPath"] == "/usr/lib/x"
    toml = json.loads(found["engines/etc/containerd/config.toml.json"])["plugins"]["io.containerd.grpc.v1.cri"]
    assert toml["containerd"]["runtimes"]["vgpu"] == {"runtime_type": "io.containerd.runc.v2"}
    assert json.loads(found["failures.jsonl"])["code"] == "VGPU-REQ-001"
    assert [json.loads(line)["event"] for line in found["audit.jsonl"].splitlines()] == ["fail", "deny"]
    assert json.loads(found["doctor.json"])["kind"] == "host"
    assert json.loads(found["policy.json"])["prefix"] == str(prefix)
    assert json.loads(found["versions.json"])["vgpu"]


def test_names_of_hosts_go_by_choice(prefix: Path, planted: Path) -> None:
    kept = collected(prefix, planted)
    assert "registry.example.com:5000" in kept["failures.jsonl"]
    hidden = collected(prefix, planted, redact.Names(("web-17", "web-17.corp.example")))
    assert [name for name, text in hidden.items() if "registry.example.com" in text] == []
    assert "registry-3/a/b:1" in hidden["failures.jsonl"]
    assert redact.Names(("web-17",)).hide("on web-17: web-17.x web-170") == "on host: host.x web-170"


def test_a_fault_of_ours_in_one_source_leaves_the_others(
    prefix: Path, planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Host) -> tuple[()]:
        raise ZeroDivisionError("x")

    monkeypatch.setattr(sources.host_checks, "examine", broken)
    host = Host(root=str(planted), config=f"{prefix}/etc/config.yaml", ask=False)
    items = {item.name: item for item in sources.Collector(host, in_force(prefix), None).items()}
    assert items["doctor"].note == "left out, by a fault of vgpu: ZeroDivisionError: x"
    assert items["failures.jsonl"].data and items["policy.json"].data


TEXTS = st.text(st.characters(codec="ascii", exclude_characters='"\\'), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.text("abcdefXYZ0189+/=_-.", min_size=12, max_size=60), st.text("abcdef_-", min_size=1, max_size=8))
def test_a_secret_of_any_shape_goes_wherever_it_stands(other: Any, secret: str, key: str) -> None:
    """Under names that nobody has thought of, beside it in other files, in lists, as the name of a registry."""
    secret = f"S{secret}S"
    redactor = redact.Redactor()
    foreign = {f"x{key}": [secret, {"env": [f"A={secret}"], "args": [secret, f"--a={secret}"]}],
               "auths": {secret: {"auth": secret}}, "hosts": f"tcp://{secret}:1", "more": other}  # fmt: skip
    own = {"labels": {"team": secret, "vgpu.memory": "1GiB"}, "label": f"team={secret}", "message": f"seen: {secret}"}
    kept = [redactor.foreign(foreign), redactor.own(own)]
    assert secret not in json.dumps(redactor.again(kept))


@pytest.mark.parametrize(
    "text",
    [
        "https://user:SECRET@host/x",
        "A_TOKEN=SECRET",
        "password: SECRET",
        "api_key='SECRET' next",
        "Authorization: Bearer SECRETSECRET",
        "VGPU_MEMORY='SECRET': not a size",
        "NVIDIA_VISIBLE_DEVICES=SECRET",
        "-----BEGIN RSA PRIVATE KEY-----\nSECRET\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN X-----\nSECRET",
    ],
)
def test_free_text_is_searched_for_what_looks_like_a_secret(text: str) -> None:
    found = redact.Redactor().text(text.replace("SECRET", SECRET.replace("=", "").replace("/", "")))
    assert SECRET[:5] not in found, found


def test_free_text_keeps_what_is_none() -> None:
    text = "vgpu.memory='4': not a size; GPU 0: CardInsufficientMemory (asked 102400 MiB)"
    assert redact.Redactor().text(text) == text


def test_it_never_grows_beyond_its_limit_and_says_what_was_cut(tmp_path: Path) -> None:
    lines = b"".join(b"%09d\n" % number for number in range(100_000))
    items = [Item("a.json", os.urandom(100_000)), Item("log", lines, lines=True), Item("z.json", os.urandom(300_000))]
    items += [Item(f"c/{number}.json", os.urandom(2000)) for number in range(200)]
    limit = 512 << 10
    kept = archive.fit(items, limit)
    archive.write(str(tmp_path / "x.tar.gz"), kept)
    assert (tmp_path / "x.tar.gz").stat().st_size <= limit
    notes = {item.name: item.note for item in kept}
    assert notes["a.json"] == ""
    assert notes["log"].startswith("cut: the last ") and kept[1].data.endswith(b"000099999\n")
    assert len(kept[1].data.splitlines()[0]) == 9
    assert notes["z.json"] == "left out: 300000 bytes do not fit"
    listed = unpacked(tmp_path / "x.tar.gz")["contents.txt"].decode()
    assert "left out: 300000 bytes" in listed and "c/199.json" in listed


def unpacked(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as opened:
        names = opened.getnames()
        return {name.partition("/")[2]: (opened.extractfile(name) or io.BytesIO()).read() for name in names}


def bundle(prefix: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vgpu", "doctor", "bundle", "--offline", *arguments]
    env = {**os.environ, "VGPU_CONFIG": f"{prefix}/etc/config.yaml", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=cwd, env=env, check=False, stdin=subprocess.DEVNULL
    )


@pytest.mark.seeds("VGPU-DOC-001")
def test_it_is_listed_first_and_written_once(prefix: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    for arguments, code in ((["--dry-run"], 0), ([], 2)):  # in a pipe nobody can be asked
        done = bundle(prefix, *arguments, cwd=folder)
        assert (done.returncode, os.listdir(folder)) == (code, []), done
        assert "doctor.json" in done.stdout
    assert "--yes" in done.stderr
    done = bundle(prefix, "--yes", "--output", "a.tar.gz", cwd=folder)
    assert done.returncode == 0, done
    assert os.listdir(folder) == ["a.tar.gz"]
    assert (folder / "a.tar.gz").stat().st_mode & 0o777 == 0o600
    found = unpacked(folder / "a.tar.gz")
    assert found["contents.txt"].decode().splitlines() == done.stdout.splitlines()[:-1]
    before = (folder / "a.tar.gz").read_bytes()
    again = bundle(prefix, "--yes", "--output", "a.tar.gz", cwd=folder)
    assert (again.returncode, again.stderr[:20]) == (5, "vgpu: VGPU-DOC-001: ")
    assert "a.tar.gz" in again.stderr and "--output" in again.stderr
    assert (folder / "a.tar.gz").read_bytes() == before
    other = json.loads(bundle(prefix, "--yes", "--json", "--output", "b.tar.gz", cwd=folder).stdout)
    assert other["output"] == str(folder / "b.tar.gz")  # the remedy
    assert sorted(os.listdir(folder)) == ["a.tar.gz", "b.tar.gz"]


@pytest.mark.parametrize(("answer", "files"), [("y", 1), ("n", 0)])
def test_on_a_terminal_it_asks(prefix: Path, tmp_path: Path, answer: str, files: int) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vgpu", "doctor", "bundle", "--offline"]
    env = {**os.environ, "VGPU_CONFIG": f"{prefix}/etc/config.yaml", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs):
        os.close(theirs)
        said = b""
        while b"[y/N]" not in said:
            said += os.read(ours, 4096)
        assert b"doctor.json" in said  # the list comes first
        os.write(ours, f"{answer}\n".encode())
        try:
            while os.read(ours, 4096):
                pass
        except OSError:
            pass  # it has ended
    os.close(ours)
    assert len(os.listdir(folder)) == files


def test_without_a_policy_there_is_an_archive_that_tells_why(tmp_path: Path) -> None:
    done = bundle(tmp_path, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    assert "VGPU-HOST-001" in done.stderr and "there is no policy in force" in done.stdout


def test_the_kernels_lines_about_gpus_and_memory(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.write_bytes(
        b"6,1,2500000,-;NVRM: Xid (PCI:0000:01:00): 79\n SUBSYSTEM=x\n6,2,3,-;usb 1-1: new\n4,3,4000000,-;oom-kill: y\n"
    )
    assert kernel_log.lines(str(log)) == ["[2.500000] NVRM: Xid (PCI:0000:01:00): 79", "[4.000000] oom-kill: y"]
    with pytest.raises(OSError):
        kernel_log.lines(str(tmp_path / "none"))
