"""The tree in memory follows paths as the kernel does: compared on the same tree, on a disk and in an archive."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness import packed
from tests.harness.packed import Entry
from vgpu.doctor.image import layer
from vgpu.doctor.image.folder import Folder
from vgpu.doctor.image.layer import Budget
from vgpu.doctor.image.tree import Tree

NAMES = ("a", "b", "c")
STEPS = (*NAMES, "..", ".", "")
paths = st.lists(st.sampled_from(STEPS), min_size=1, max_size=6).map("/".join)
targets = st.one_of(paths, paths.map(lambda path: f"/{path}"), st.sampled_from(["/", "..", "a/", "x" * 300]))
# folder -> what is in it: a file, a link, or a folder of the same kind
trees = st.recursive(
    st.one_of(st.just(b"file"), targets.filter(bool)),
    lambda inside: st.dictionaries(st.sampled_from(NAMES), inside, max_size=3),
    max_leaves=12,
)


def entries(tree: object, name: str) -> list[Entry]:
    if isinstance(tree, dict):
        below = [entry for key, inside in tree.items() for entry in entries(inside, f"{name}/{key}")]
        return [packed.folder(name), *below]
    return [packed.link(name, tree) if isinstance(tree, str) else Entry(name, b"file")]


def on_disk(listed: list[Entry], root: Path) -> None:
    for entry in listed:
        path = root / entry.name
        if entry.target:
            path.symlink_to(entry.target)
        elif entry.data:
            path.write_bytes(entry.data)
        else:
            path.mkdir(parents=True)


@given(top=st.dictionaries(st.sampled_from(NAMES), trees, min_size=1, max_size=3), asked=st.lists(paths, max_size=20))
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_path_leads_where_the_kernel_leads_it(top: dict[str, object], asked: list[str]) -> None:
    listed = [entry for name, inside in top.items() for entry in entries(inside, name)]
    tree = Tree([layer.read(io.BytesIO(packed.layer(listed)), Budget())])
    with tempfile.TemporaryDirectory() as name:
        on_disk(listed, Path(name))
        folder = Folder(name)
        try:
            known: dict[tuple[int, int], tuple[int, int]] = {}
            for path in [entry.name for entry in listed] + asked:
                assert tree.is_file(path) == folder.is_file(path), path
                assert tree.real(path) == folder.real(path), path
                assert sorted(tree.names(path)) == sorted(folder.names(path)), path
                ours, theirs = tree.identity(path), folder.identity(path)
                assert (ours is None) == (theirs is None), path
                if ours and theirs:
                    assert known.setdefault(theirs, ours) == ours, path
            assert sorted(tree.files()) == sorted(folder.files())
        finally:
            folder.close()


def test_links_that_never_end_lead_nowhere() -> None:
    chain = [packed.link(f"l{number}", f"l{number + 1}") for number in range(60)]
    tree = Tree(
        [layer.read(io.BytesIO(packed.layer([*chain, Entry("l60", b"1"), packed.link("own", "own")])), Budget())]
    )
    assert tree.is_file("/l21") and not tree.is_file("/l19")  # the kernel follows 40
    assert not tree.is_file("/own") and tree.identity("/l0") is None


def test_links_lead_to_the_images_own_files_only(tmp_path: Path) -> None:
    """The same names exist on the machine; what is seen is the image's, or nothing."""
    listed = [packed.folder("etc"), packed.link("out", "/etc/passwd"), packed.link("up", "../../../../etc/passwd"),
              packed.link("self", "/proc/self/root/etc/passwd"), Entry("etc/group", b"own")]  # fmt: skip
    on_disk(listed, tmp_path)
    folder = Folder(str(tmp_path))
    for root in (folder, Tree([layer.read(io.BytesIO(packed.layer(listed)), Budget())])):
        assert [root.is_file(name) for name in ("out", "up", "self")] == [False] * 3
        assert root.is_file("/../etc/group") and os.path.exists("/etc/passwd")
    folder.close()
