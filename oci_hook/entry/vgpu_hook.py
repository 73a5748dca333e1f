"""Started by the runtime as `python -I -S -E vgpu_hook.py …`: finds the package beside this file, and nothing else."""

import gc
import os
import sys

gc.disable()  # we end before there is anything to collect
sys.path.insert(0, __file__.rpartition("/")[0])

from oci_hook import hook  # noqa: E402  # only now is it found

os._exit(hook.main(sys.argv[1:]))  # all is written; taking the interpreter apart costs 2 ms
