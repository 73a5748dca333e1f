"""Started by vgpu-runtime as `python -I -S -E vgpu_shim.py …`: finds the package beside this file, and nothing else."""

import gc
import sys

gc.disable()  # we end before there is anything to collect
sys.path.insert(0, __file__.rpartition("/")[0])

from oci_hook import shim  # noqa: E402  # only now is it found

sys.exit(shim.main(sys.argv[1:]))
