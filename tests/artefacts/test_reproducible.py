"""Two builds, the same bytes: from two places, with two umasks, time zones, languages and file times."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from artefacts import reproducible


@pytest.mark.timeout(600)  # all is compiled anew, as its folder is another: 10 s, or minutes on a busy machine
def test_wheel_source_archive_and_bill_are_the_same_wherever_they_are_built(tmp_path: Path) -> None:
    assert reproducible.twice(tmp_path, fresh=False) == []
    assert len(list((tmp_path / "2").iterdir())) == 2


def test_the_moment_of_a_release_is_in_every_file_of_the_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    reproducible.build(reproducible.ROOT, tmp_path, {}, 0o022)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        assert {info.date_time for info in wheel.infolist()} == {(2023, 11, 14, 22, 13, 20)}
        assert {info.external_attr >> 16 & 0o777 for info in wheel.infolist()} <= {0o644, 0o755}
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as sdist:
        members = sdist.getmembers()
        assert {(one.mtime, one.uid, one.gid, one.uname, one.gname) for one in members} == {(1700000000, 0, 0, "", "")}


def wheel(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as made:
        for name, data in files.items():
            made.writestr(zipfile.ZipInfo(name), data)


def test_a_difference_is_named_by_its_file(tmp_path: Path) -> None:
    for name, data in (("1", b"one"), ("2", b"two")):
        folder = tmp_path / name
        folder.mkdir()
        wheel(folder / "a.whl", {"same": b"", "lib/other": data})
        with tarfile.open(folder / "a.tar.gz", "w:gz") as made:
            info = tarfile.TarInfo("file")
            info.mtime = len(name) + int(name)  # a date, and nothing else
            made.addfile(info, io.BytesIO())
    found = reproducible.differences(tmp_path / "1", tmp_path / "2")
    assert found == ["a.whl: lib/other", "a.tar.gz: the archive itself: order, dates or modes"]
