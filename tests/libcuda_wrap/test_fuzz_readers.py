"""Files that others write: whatever is in them, their readers answer with a value or with their one error."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libcuda_wrap import bindings, coverage
from oci_hook import elf, ldcache, quota_file
from oci_hook.errors import HostError
from tests.libcuda_wrap.wrapped import GIB, part

USAGE = quota_file.usage_header().ljust(quota_file.USAGE_BYTES, b"\0")
CORPUS = Path(__file__).parents[1] / "corpus"
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def _from_file(read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def run(data: bytes) -> object:
        descriptor, name = tempfile.mkstemp()
        try:
            os.write(descriptor, data)
            return read(Path(name))
        finally:
            os.close(descriptor)
            os.unlink(name)

    return run


def _cache(data: bytes) -> object:
    return ldcache.parse(data, elf.X86_64)


# reader -> how it is called, its one error, and a good file
READERS: dict[str, tuple[Callable[[bytes], object], type[Exception], bytes]] = {
    "usage": (_from_file(bindings.read_usage), HostError, USAGE),
    "quota": (
        _from_file(bindings.read_quota), HostError,
        quota_file.quota("c0ffee", [part(0, GIB), part(1, GIB)], burst="hard", priority="low"),
    ),
    "elf": (elf.parse_bytes, elf.ElfError, (CORPUS / "wrapper.elf").read_bytes()),
    "exports": (coverage.exports, ValueError, (CORPUS / "wrapper.elf").read_bytes()),
    "ldcache": (_cache, ldcache.CacheError, (CORPUS / "ld.so.cache").read_bytes()),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_the_good_file_is_read(name: str) -> None:
    read, _, good = READERS[name]
    assert read(good)


@pytest.mark.parametrize("name", READERS)
@QUICK
@given(data=st.data())
def test_damage_is_one_error_or_a_value(name: str, data: st.DataObject) -> None:
    """Words overwritten where the structure is, and the end cut off; a few words are enough to get past the checks."""
    read, error, good = READERS[name]
    damaged = bytearray(good)
    reach = min(len(good), 8192) - 8
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, reach))
        size = data.draw(st.sampled_from([1, 2, 4, 8]))
        word = data.draw(
            st.one_of(st.sampled_from([0, 1, 0x7F, 0xFF, 1 << 31, (1 << 64) - 1]), st.integers(0, 1 << 64))
        )
        damaged[at : at + size] = (word % (1 << 8 * size)).to_bytes(size, "little")
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    try:
        read(bytes(damaged))
    except error:
        return


@pytest.mark.parametrize("name", READERS)
@QUICK
@given(noise=st.binary(max_size=4096))
def test_noise_is_the_one_error(name: str, noise: bytes) -> None:
    read, error, _ = READERS[name]
    with pytest.raises(error):
        read(noise)
