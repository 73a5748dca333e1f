"""Makes the .deb and the .rpm.

payload.py   what vgpu install takes: the build and the few Python modules that distributions lack or have too old
pages.py     manual pages and shell completions, out of the command itself
build.py     the two packages, by nfpm; `make packages`
scripts/     what they run when they are installed and removed: nothing is downloaded
vendor.txt   those Python modules, with digests

The files below /usr/lib/vgpu-runtime are a source for `vgpu install`, which a script runs: a new package is an upgrade
like any other: containers that run keep the version that they were started with.
"""
