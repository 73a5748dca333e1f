"""runc and crun of other releases, without an engine: a slice, and a refusal. By `make matrix` only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import bundle, debian, installed, matrix, suites

pytestmark = [pytest.mark.e2e, pytest.mark.matrix]
GIB = 1 << 30
RUNTIMES = [(suite, name) for suite in suites.SUITES for name in ("runc", "crun")]
RUNTIMES += [(suite, name) for suite, packages in suites.RUNTIMES.items() for name in packages.names]


@pytest.mark.parametrize(("suite", "name"), RUNTIMES)
def test_a_low_level_runtime_gives_a_slice_and_refuses(
    suite: str, name: str, needs_root: None, e2e_folder: Path, c_tree: Path, record_property: matrix.Record
) -> None:
    try:
        program = suites.runtime(suite, name)
    except debian.NotOffered as missing:
        pytest.skip(str(missing))
    matrix.row(record_property, engine="none (OCI bundle)", runtime=program, suite=suite)
    folder = e2e_folder / f"plain-{suite}-{name}"
    folder.mkdir()
    vgpu = installed.install(folder, bundle.fit(program, folder))

    def run(memory: str, *args: str) -> bundle.Result:
        asked = {"vgpu.memory": memory} if memory else {}
        with bundle.container(vgpu.runtime, folder, c_tree, args, annotations=asked) as box:
            return box.run()

    given = run("8GiB", "cuda_client", "fill")
    assert given.code == 0 and f"took {8 * GIB} bytes" in given.output, given
    refused = run("100GiB", "true")
    assert refused.code != 0 and "VGPU-PLC-001" in refused.refusal, refused
    plain = run("", "ls", "/usr/lib/vgpu")
    assert plain.code == 1 and "No such file" in plain.output, plain
    assert vgpu.containers() == []
