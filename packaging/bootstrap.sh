#!/bin/sh
# What a fresh Debian 12 needs for build, tests and demo: a few packages, and a virtual environment in .venv.
# Installs only what is missing and starts no service. A second run does nothing.
set -eu
cd "$(dirname "$0")/.."

# Docker is not here: its package would start the machine's own daemon. tests/harness/engines.py unpacks one below build/.
packages="gcc libc6-dev make python3 python3-venv python3-dev runc crun busybox-static util-linux"
packages="$packages clang-format shellcheck binutils clang libclang-rt-dev valgrind qemu-user" # to check and fuzz C
packages="$packages rpm cpio dnf debootstrap zsh fish" # to try packages and completions

missing=""
for package in $packages; do
    if [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
        missing="$missing $package"
    fi
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "bootstrap: as root, first: apt-get install$missing" >&2
        exit 1
    fi
    echo "bootstrap: installing$missing" >&2
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # one word per package
    apt-get install -q -y --no-install-recommends $missing >/dev/null 2>&1 || {
        apt-get update -q >&2
        apt-get install -q -y --no-install-recommends $missing >&2
    }
fi

# Debian's own Python, not one that PATH may put first: shim and hook run on it, and their compiled part must fit
[ -x .venv/bin/python ] || /usr/bin/python3 -m venv .venv
stamp=.venv/.bootstrapped
wanted="$(cat pyproject.toml packaging/bootstrap.sh | sha256sum)"
if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
    echo "bootstrap: filling .venv" >&2
    .venv/bin/python -m pip install -q --disable-pip-version-check -e '.[dev,clients]' >&2
    echo "$wanted" >$stamp
fi
