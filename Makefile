# make demo    the main job on simulated GPUs, with a private Docker daemon; leaves nothing behind
# make test    unit tests, the wrapper's C tests, end-to-end tests on dockerd, runc and crun (as root)
# make lint    style, types, and that generated files are up to date
# make build   everything that is compiled, below build/
# make bench   what a start costs, beside plain runc, and what a call costs, beside the driver alone
# make storm   64 processes on one quota, killed at random, for 5 minutes
# make fuzz    files of the box with anything in them, 5 minutes for each reader in C: tests/libcuda_wrap/fuzzing.py
# make gpu-check   on a machine with a GPU: does the slice hold, and what does it cost? Needs no Docker, no network
# make gpu-check-bundle   the same as one file, for a machine that has Python and its driver only: docs/gpu-check.md
# make bench-preflight   what the check of an image costs at its start
# make bench-share   how exactly a compute share is held
# make wheel   wheel and source archive in dist/, checked, with their bills of materials (also: make sbom)
# make reproducible   two builds as different as can be: are the bytes the same?
# make images-context   dist/images, from which the container images are built without a network
# make chart   the Helm chart, rendered by Helm itself into packaging/kubernetes, linted and tested
# make packages   the .deb and the .rpm, in dist/; packages-test: the .deb in a fresh Debian 12 and 13 (minutes)
# make artefacts-test   what takes too long for make test: pip builds the source archive in a clean environment
# make bench-placement  placement policies on simulated clusters, bit for bit as committed
# make matrix  other versions of engines and runtimes, really run: docs/compatibility.md (minutes; not part of make test)
# Each sets up what it needs: see packaging/bootstrap.sh.

PYTHON := .venv/bin/python
# as for the wrapper: an old glibc, so that one program runs in every image
CC_CLIENT := $(PYTHON) -m ziglang cc -target $(shell uname -m)-linux-gnu.2.17 -O2 -s -Wall -Wextra -Werror
C_FILES = $(shell git ls-files --cached --others --exclude-standard '*.c' '*.h' | grep -v /generated/)
PARTS := build/.launcher build/.python build/.wrapper build/.sim build/fixtures/cuda_client

.PHONY: matrix demo test lint build bench bench-wrapper bench-preflight bench-share bench-placement storm fuzz gpu-check gpu-check-bundle wheel sbom reproducible images-context chart artefacts-test packages packages-test clean
.DELETE_ON_ERROR:

demo: build
	@PYTHONPATH=. $(PYTHON) packaging/demo.py

test: build
	$(PYTHON) -m tests

lint: .venv/.bootstrapped
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -m mypy -p tests.harness -p tests.e2e -p benchmarks
	MYPYPATH=. $(PYTHON) -m mypy packaging/install.py packaging/demo.py
	MYPYPATH=.:packaging $(PYTHON) -m mypy -p artefacts -p packages
	$(PYTHON) -m mypy packaging/images/node.py packaging/images/slice.py
	clang-format --dry-run -Werror $(C_FILES)
	$(PYTHON) -m libcuda_wrap.gen --check
	$(PYTHON) -m vgpu.doctor.manual --check
	shellcheck packaging/bootstrap.sh packaging/packages/scripts/* .ci/run

build: $(PARTS)

bench: build
	$(PYTHON) -m benchmarks.start
	$(PYTHON) -m benchmarks.wrapper

bench-wrapper: .venv/.bootstrapped
	$(PYTHON) -m benchmarks.wrapper

# what it downloads stays below build/; whose tests are marked `matrix` is named here
MATRIX_TESTS := tests/e2e/test_engine_versions.py tests/e2e/test_runtime_versions.py tests/e2e/test_beside_nvidia_toolkit.py \
	tests/e2e/test_podman.py tests/e2e/test_rootless_podman.py tests/e2e/test_docker_cdi.py tests/e2e/test_cri_handler.py tests/e2e/test_cri.py tests/e2e/test_cri_cdi.py tests/runtime_config/test_engine_containerd.py \
	tests/runtime_config/test_engine_k3s.py tests/vgpu/test_configure_containerd.py
matrix: build
	rm -f build/matrix.jsonl
	VGPU_MATRIX=build/matrix.jsonl $(PYTHON) -m pytest $(MATRIX_TESTS)
	$(PYTHON) -m runtime_config.matrix build/matrix.jsonl

storm: build
	$(PYTHON) -m benchmarks.storm

fuzz: .venv/.bootstrapped
	$(PYTHON) -m tests.libcuda_wrap.fuzzing --seconds 300

# with whatever Python there is: nothing is installed there
gpu-check:
	@PYTHON=$$([ -x $(PYTHON) ] && echo $(PYTHON) || echo python3); PYTHONPATH=. $$PYTHON -m benchmarks.gpu_check

gpu-check-bundle: .venv/.bootstrapped
	$(PYTHON) -m benchmarks.gpu.bundle

bench-preflight: build
	$(PYTHON) -m benchmarks.preflight

bench-share: build
	$(PYTHON) -m benchmarks.share

bench-placement: .venv/.bootstrapped
	PYTHONPATH=. $(PYTHON) -m benchmarks.placement

ARTEFACTS := PYTHONPATH=.:packaging $(PYTHON) -m artefacts

wheel: .venv/.bootstrapped
	rm -f dist/*.whl dist/*.tar.gz
	$(PYTHON) -m hatchling build -d dist
	$(ARTEFACTS).closure dist/*.whl dist/*.tar.gz
	$(ARTEFACTS).sbom dist/*.whl dist/*.tar.gz

packages: build
	PYTHONPATH=.:packaging $(PYTHON) -m packages.build
	$(ARTEFACTS).closure dist/*.deb dist/*.rpm

packages-test: build
	VGPU_LONG_TESTS=1 $(PYTHON) -m pytest tests/packages

# of whatever lies in dist/: packages too
sbom: .venv/.bootstrapped
	$(ARTEFACTS).sbom $(wildcard dist/*.whl dist/*.tar.gz dist/*.deb dist/*.rpm)

reproducible: .venv/.bootstrapped
	$(ARTEFACTS).reproducible --fresh

images-context: wheel
	$(ARTEFACTS).context dist/images --wheel dist/*.whl

.venv/.charts: pyproject.toml | .venv/.bootstrapped
	$(PYTHON) -m pip install -q --disable-pip-version-check -e '.[charts]'
	@touch $@

chart: .venv/.charts
	$(ARTEFACTS).manifests
	VGPU_LONG_TESTS=1 $(PYTHON) -m pytest tests/artefacts/test_chart.py tests/artefacts/test_manifests.py

artefacts-test: build .venv/.charts
	VGPU_LONG_TESTS=1 $(PYTHON) -m pytest tests/artefacts

clean:
	rm -rf build/launcher build/python build/wrapper build/sim build/fixtures build/.launcher build/.python build/.wrapper build/.sim

.venv/.bootstrapped: pyproject.toml packaging/bootstrap.sh
	@packaging/bootstrap.sh
	@touch $@

build/.launcher: $(wildcard oci_hook/launcher/*) | .venv/.bootstrapped
	$(PYTHON) -m oci_hook.launcher.build
	@touch $@

build/.python: oci_hook/sys_build.py | .venv/.bootstrapped
	$(PYTHON) -m oci_hook.sys_build --in-place
	@touch $@

build/.wrapper: $(wildcard libcuda_wrap/*.py libcuda_wrap/*.yaml libcuda_wrap/src/* libcuda_wrap/include/* libcuda_wrap/generated/*) | .venv/.bootstrapped
	$(PYTHON) -m libcuda_wrap.build
	@touch $@

build/.sim: $(wildcard libcuda_wrap/*.py libcuda_wrap/*.yaml libcuda_wrap/sim/* libcuda_wrap/include/*) | .venv/.bootstrapped
	$(PYTHON) -m libcuda_wrap.sim.build
	@touch $@

build/fixtures/cuda_client: tests/fixtures/cuda_client.c | .venv/.bootstrapped
	@mkdir -p $(@D)
	$(CC_CLIENT) -o $@ $< -ldl
