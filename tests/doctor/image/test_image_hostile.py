"""Images that want to do harm: none gets out, none crashes the doctor, none holds it up."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import struct
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from looked import checks, findings

from oci_hook.errors import ImageError
from tests.harness import packed, rootfs
from tests.harness.packed import Entry
from vgpu.doctor.image import archive, layer
from vgpu.doctor.image.driver import Driver
from vgpu.doctor.image.layer import Budget
from vgpu.doctor.image.tree import Tree

Root = Callable[..., Path]
CORPUS = Path(__file__).parents[2] / "corpus"
SAVED = (CORPUS / "saved.tar").read_bytes()  # an image of two layers, of packed.saved
QUICK = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
WORDS = [b"\0" * 8, b"\xff" * 8, b"77777777", b"../../..", b"\x80" + b"\xff" * 7, b"L", b"x"]
CODES = {"VGPU-IMG-006", "VGPU-IMG-007"}


def read(data: bytes, budget: Budget | None = None) -> Tree:
    return Tree([layer.read(io.BytesIO(data), budget or Budget())])


def refused(data: bytes, budget: Budget | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        read(data, budget)
    assert caught.value.code in CODES
    return str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        Entry("../../etc/passwd", b"x"), Entry("a/../../b", b"x"), Entry("/../x", b"x"), packed.folder(".."),
        packed.hard("a", "../../etc/shadow"), Entry("a/.wh...", b""), Entry(".wh.", b""), Entry("a/.wh..", b""),
        packed.link("../a", "b"), Entry("a/..", b"x"),
    ],
    ids=lambda entry: repr(entry.name),
)  # fmt: skip
def test_a_name_that_leads_upwards_is_refused(entry: Entry) -> None:
    assert "leads out" in refused(packed.layer([entry])) or "is nothing" in refused(packed.layer([entry]))


def test_what_is_not_a_file_is_there_and_is_none(tmp_path: Path) -> None:
    """Absolute names are names in the image; devices and FIFOs are never opened, links never followed out of it."""
    before = set(tmp_path.iterdir())
    tree = read(packed.layer([
        Entry(str(tmp_path / "made"), b"x"), packed.link("out", "/etc/passwd"), packed.link("up", "../../etc/passwd"),
        Entry("disk", kind=tarfile.BLKTYPE), Entry("zero", kind=tarfile.CHRTYPE), Entry("fifo", kind=tarfile.FIFOTYPE),
        packed.hard("gone", "etc/shadow"), Entry("odd", kind=b"Z"),
    ]))  # fmt: skip
    assert set(tmp_path.iterdir()) == before
    assert tree.is_file(str(tmp_path / "made"))
    assert not any(tree.is_file(name) for name in ("out", "up", "disk", "zero", "fifo", "gone"))


def test_bombs_are_stopped_by_their_size() -> None:
    class Few(Budget):
        def __init__(self) -> None:
            super().__init__()
            self.bytes, self.entries, self.parts, self.names, self.kept = 8 << 20, 1000, 5000, 100_000, 1 << 16

    started = time.monotonic()
    zeros = tarfile.TarInfo("zeros")
    zeros.size = 1 << 40
    head = zeros.tobuf(tarfile.GNU_FORMAT)
    assert "more bytes" in refused(gzip.compress(head + bytes(64 << 20)), Few())
    assert "more files" in refused(packed.layer([Entry(str(number)) for number in range(1100)]), Few())
    assert "more folders" in refused(packed.layer([Entry("a/" * 2000 + str(number)) for number in range(3)]), Few())
    assert "more names" in refused(packed.layer([packed.link(str(n), "x" * 4000) for n in range(30)]), Few())
    assert "more than 4096" in refused(packed.layer([packed.link("a", "x" * 5000)]), Few())
    assert "more text files" in refused(packed.layer([Entry(f"{n}/os-release", b"x" * 60000) for n in range(2)]), Few())
    assert time.monotonic() - started < 20
    assert Budget(10 << 20).bytes == 4 << 30 and Budget(1 << 40).bytes == 256 << 30


def test_links_that_lead_on_and_on_are_followed_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """39 links, each a long way to the next; every file that is put behind them costs 80,000 steps."""
    from vgpu.doctor.image import tree

    monkeypatch.setattr(tree, "_MAX_STEPS", 3_000_000)
    chain = [packed.link(f"l{number}", "./" * 2000 + f"l{number + 1}") for number in range(38)]
    entries = [packed.folder("l38"), *chain, *(Entry(f"l0/{number}") for number in range(1000))]
    started = time.monotonic()
    assert "lead on and on" in refused(packed.layer(entries))
    assert time.monotonic() - started < 20


def test_headers_that_say_they_are_huge_are_not_believed() -> None:
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE):
        member = tarfile.TarInfo("x")
        member.type, member.size = kind, 1 << 40
        assert "a header of" in refused(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def test_a_chain_of_headers_and_holes_is_survived() -> None:
    long = tarfile.TarInfo("x")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 10
    refused((long.tobuf() + b"name\0".ljust(512, b"\0")) * 3000)
    sparse = tarfile.TarInfo("lib.so")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 512
    raw = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    raw[386:410] = b"00000000000\0" + b"00000001000\0"
    raw[483:495] = b"77777777777\0"  # 8 GiB that are not there
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    tree = read(bytes(raw) + bytes(512) + bytes(1024))
    assert tree.is_file("/lib.so")


@QUICK
@given(data=st.data())
def test_a_damaged_archive_is_the_one_error_or_an_image(data: st.DataObject) -> None:
    damaged = bytearray(SAVED)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(damaged) - 9))
        word = data.draw(
            st.sampled_from([b"\0" * 8, b"\xff" * 8, b"77777777", b"../../..", b"\x80" + b"\xff" * 7, b"L", b"x"])
        )
        damaged[at : at + len(word)] = word
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    loaded(bytes(damaged))


@QUICK
@given(noise=st.binary(max_size=3000), head=st.sampled_from([b"", b"\x1f\x8b\x08\0", SAVED[:512], SAVED[:1536]]))
def test_noise_is_the_one_error_or_an_image(noise: bytes, head: bytes) -> None:
    loaded(head + noise)


def loaded(data: bytes) -> None:
    try:
        store = archive.StreamStore(io.BytesIO(data), Budget(), lambda _: None)
        archive.load(store, "x86_64")
    except ImageError as error:
        assert error.code in CODES


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20), st.sampled_from(["sha256:" + "a" * 64])),
    lambda inside: st.one_of(
        st.lists(inside, max_size=3),
        st.dictionaries(
            st.sampled_from(["manifests", "digest", "layers", "config", "Layers", "Config", "RepoTags", "platform",
                             "annotations", "Env", "Entrypoint", "Cmd", "Labels", "WorkingDir", "architecture"]),
            inside, max_size=5,
        ),
    ),
    max_leaves=12,
)  # fmt: skip


class _Documents:
    """A store whose every document is the same."""

    def __init__(self, names: dict[str, Any], value: Any) -> None:
        self.names, self.value = names, value

    def document(self, name: str) -> Any:
        return self.names.get(name, self.value if name.startswith("blobs") or name == "config" else None)

    def layer(self, name: str) -> layer.Layer | None:
        return layer.Layer()


@QUICK
@given(index=anything, value=anything)
def test_any_manifest_is_the_one_error_or_an_image(index: Any, value: Any) -> None:
    for names in ({"index.json": index, "oci-layout": {}}, {"manifest.json": index}):
        try:
            _, config = archive.load(_Documents(names, value), "x86_64")
            assert isinstance(config.env, tuple) and isinstance(config.cwd, str)
        except ImageError as error:
            assert error.code in CODES


def test_a_layout_does_not_lead_to_the_machines_files(tmp_path: Path) -> None:
    """A blob's name is a digest and nothing else, and a link in the folder ends at the folder."""
    entries = packed.layout([packed.layer([Entry("a", b"1")])], packed.document())
    folder = packed.written(entries, tmp_path / "layout")
    blob = max((folder / "blobs/sha256").iterdir(), key=lambda path: path.read_bytes()[:2] == b"\x1f\x8b")
    blob.unlink()
    blob.symlink_to(__file__)
    assert "lacks the layer" in findings(folder, None)[0].evidence
    index = {"manifests": [{"digest": "sha256:../../../../etc/passwd"}]}
    (folder / "index.json").write_text(json.dumps(index))
    assert "has the digest" in findings(folder, None)[0].evidence
    (folder / "index.json").unlink()
    os.mkfifo(folder / "index.json")
    assert findings(folder, None)[0].code == "VGPU-IMG-006"


def odd_places(tree: Path) -> dict[str, Callable[[], object]]:
    """Things where files should be."""
    lib, cache = tree / rootfs.LIBDIR, tree / "etc/ld.so.cache"
    return {
        "cache is a FIFO": lambda: os.mkfifo(cache),
        "cache is a folder": lambda: cache.mkdir(),
        "cache is a link to itself": lambda: cache.symlink_to(cache),
        "cache is the machine's": lambda: cache.symlink_to("../../../../../../../../etc/ld.so.cache"),
        "cache is a device": lambda: cache.symlink_to("/dev/zero"),
        "libm is a FIFO": lambda: _instead(lib / "libm.so.6", os.mkfifo),
        "libm is a socket": lambda: _instead(lib / "libm.so.6", _socket),
        "libm is a folder": lambda: _instead(lib / "libm.so.6", os.mkdir),
        "libm is the machine's": lambda: _instead(lib / "libm.so.6", lambda path: os.symlink("/etc/passwd", path)),
        "libm has 32 bits": lambda: _patched(lib / "libm.so.6", 4, b"\1"),
        "libm is big-endian": lambda: _patched(lib / "libm.so.6", 5, b"\2"),
        "libm is for another machine": lambda: _patched(lib / "libm.so.6", 18, struct.pack("<H", 243)),
        "libm is empty": lambda: _instead(lib / "libm.so.6", lambda path: Path(path).touch()),
        "libm has no end": lambda: _patched(lib / "libm.so.6", 32, b"\xff" * 8),
    }  # fmt: skip


def _instead(path: Path, make: Callable[[str], object]) -> None:
    path.unlink()
    make(str(path))


def _socket(path: str) -> None:
    os.chdir(os.path.dirname(path))  # its whole path is longer than a socket's may be
    socket.socket(socket.AF_UNIX).bind(os.path.basename(path))


def _patched(path: Path, at: int, data: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[at : at + len(data)] = data
    path.unlink()
    path.write_bytes(raw)


@pytest.mark.parametrize("name", odd_places(Path()))
def test_odd_files_where_a_loader_looks_are_survived(
    name: str, debian_root: Root, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    tree = debian_root("bookworm")
    odd_places(tree)[name]()
    started = time.monotonic()
    found = findings(tree, driver, "/sbin/none", deep=True)
    assert time.monotonic() - started < 10
    expected = {"VGPU-IMG-008"} if name.startswith("cache") else {"VGPU-IMG-008", "VGPU-DEP-001", "VGPU-DEP-006"}
    assert {one.code for one in found} == expected


@QUICK
@given(data=st.data())
def test_damaged_libraries_and_caches_in_a_root_are_survived(data: st.DataObject) -> None:
    """From tests/corpus, as a layer: the whole of the doctor's looking goes over them."""
    damaged = []
    for name in ("wrapper.elf", "ld.so.cache"):
        raw = bytearray((CORPUS / name).read_bytes())
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, min(len(raw), 8192) - 8))
            raw[at : at + 8] = data.draw(st.sampled_from([b"\0" * 8, b"\xff" * 8, b"\1" + b"\0" * 7, b"\x7f" * 8]))
        damaged.append(bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw) // 2]))]))
    library, cache = damaged
    places = ("lib/x86_64-linux-gnu/libc.so.6", "lib/x86_64-linux-gnu/libm.so.6", "usr/bin/app", "lib/libcuda.so.1")
    tree = read(packed.layer([*(Entry(place, library) for place in places), Entry("etc/ld.so.cache", cache)]))
    from looked import NO_DRIVER

    from vgpu.doctor.image import examine, source

    image = source.Image("test", "tree", tree, archive.Config(cmd=("app",)))
    for check in examine.examine(examine.Asked(image, "x86_64", NO_DRIVER, (), True, lambda _: None)):
        assert all(one.code.startswith(("VGPU-DEP", "VGPU-IMG")) for one in check.findings)


def test_files_whose_search_would_not_end_are_told_and_the_rest_is_looked_at(
    debian_root: Root, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from looked import program, unseen

    from oci_hook import preflight
    from vgpu.doctor.image import deep

    root = debian_root("bookworm")
    app = program(root / "app", "int main(void) { return 0; }", "-Wl,-rpath," + "/usr:" * 300)
    monkeypatch.setattr(preflight, "_MAX_LOOKUPS", 250)
    found = findings(root, driver, deep=True)
    assert [(one.code, one.subject, one.severity) for one in found] == [("VGPU-IMG-005", "/app", "warning")]
    app.unlink()
    monkeypatch.setattr(deep, "MAX_SECONDS", 0.0)
    assert "were not looked at: it took more than 0 s" in unseen(checks(root, driver, deep=True))


def test_names_of_an_image_do_not_reach_the_terminal_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "evil.tar"
    path.write_bytes(packed.saved([packed.layer([Entry("a", b"1")])], packed.document(Entrypoint=["\x1b[2Jboo"])))
    from vgpu.doctor import report

    found = report.Report("image", "x", checks(path, None))
    assert "\x1b" not in "".join(report.lines(found)) and "boo" in "".join(report.lines(found))
