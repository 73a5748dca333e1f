"""Which package ships a library: held against Debian's own lists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from oci_hook import sonames
from tests.harness import debian


def test_what_this_machine_has_installed_is_in_the_packages_that_are_named() -> None:
    """On Debian 12, whose names these are."""
    compared = 0
    for listing in Path("/var/lib/dpkg/info").glob("*.list"):
        package = listing.name.removesuffix(".list").partition(":")[0]
        for name in re.findall(r"/lib/x86_64-linux-gnu/(lib[^/]+\.so\.[0-9.]+)$", listing.read_text(), re.MULTILINE):
            if name in sonames.DEBIAN:
                compared += 1
                assert sonames.DEBIAN[name] == package, name
    assert compared > 20


def test_the_packages_exist() -> None:
    try:
        command = [*debian.apt("bookworm", "main"), "indextargets", "--format", "$(FILENAME)", "Created-By: Packages"]
    except debian.NotOffered as missing:
        pytest.skip(str(missing))
    path = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
    text = subprocess.run(
        ["/usr/lib/apt/apt-helper", "cat-file", path], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    offered = set(re.findall(r"^Package: (\S+)$", text, re.MULTILINE))
    assert set(sonames.DEBIAN.values()) - offered == {"libssl1.1"}  # of Debian 11


def test_each_library_has_one_package() -> None:
    listed = [name for text in sonames._DEBIAN.values() for name in text.split()]
    assert len(listed) == len(set(listed)) == len(sonames.DEBIAN)


@pytest.mark.parametrize(
    ("soname", "words"),
    [
        ("libgomp.so.1", "Debian's package libgomp1"),
        ("ld-linux-x86-64.so.2", "Debian's package libc6"),
        ("libnvJitLink.so.12", "pip install nvidia-nvjitlink-cu12"),
        ("libhouse.so.3", "add it to the image"),
    ],
)
def test_the_remedy_names_the_package_where_one_is_known(soname: str, words: str) -> None:
    assert words in sonames.remedy(soname)
