"""A package that cannot be made says why, in nfpm's words."""

from __future__ import annotations

from pathlib import Path

import pytest
from packages import build

from oci_hook.errors import HostError


@pytest.mark.seeds("VGPU-PKG-002")
def test_what_nfpm_refuses_is_told_and_makes_nothing(tmp_path: Path) -> None:
    tree, out = tmp_path / "tree", tmp_path / "out"
    twice = tree / "usr/bin/vgpu"  # the link of that name comes from the settings
    twice.parent.mkdir(parents=True)
    twice.write_text("#!/bin/sh\n")
    with pytest.raises(
        HostError, match="nfpm makes no deb: ERROR Adding symlink at destination /usr/bin/vgpu"
    ) as caught:
        build.make(tree, "deb", "0.1.0", out)
    assert (caught.value.code, caught.value.remedy) == ("VGPU-PKG-002", "mend what it names")
    assert list(out.iterdir()) == []
    twice.unlink()
    build.make(tree, "deb", "0.1.0", out)
    assert [path.suffix for path in out.iterdir()] == [".deb"]
