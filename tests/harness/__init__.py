"""What the end-to-end tests, the demo and the benchmarks run on: real engines, apart from the machine's own.

engines      a Docker engine unpacked from Debian packages: nothing is installed, no service is started
dockerd      one private daemon
rootfs       root file trees made from the machine's own files: no registry is needed
images       those trees as Docker images
bundle       plain OCI bundles for runc and crun, without Docker
installed    vgpu in a prefix of its own
leftovers    what of the machine changed: mounts, processes, control groups
"""
