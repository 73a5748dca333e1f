"""Started by the runtime as `python -I -S -E vgpu_hook.py …`: finds the package beside this file, and nothing else."""

import sys

sys.path.insert(0, __file__.rpartition("/")[0])

from oci_hook import hook  # only now is it found

sys.exit(hook.main(sys.argv[1:]))
