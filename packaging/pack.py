"""python -I -S -E pack.py FOLDER TARGET shim|hook: what the shim in FOLDER imports until it has answered, or after
that, when it is the hook; compiled, on standard output.

TARGET: the folder that they are installed in, for tracebacks. The result is the running interpreter's own, and begins
with its magic number; oci_hook/entry/vgpu_shim.py reads it.
"""

import marshal
import sys
from _frozen_importlib_external import MAGIC_NUMBER

folder, target, part = sys.argv[1:]
sys.path.insert(0, folder)
before = set(sys.modules)

import oci_hook.shim  # noqa: E402  # only now is it found

if part == "hook":
    before |= set(sys.modules)
    import oci_hook.hook  # noqa: F401

codes = {}
for name, module in sorted(sys.modules.items()):
    path = getattr(module, "__file__", None)
    if name in before or path is None or module.__spec__.origin != path or not path.endswith(".py"):
        continue  # built into the interpreter, or no code of Python's
    with open(path, "rb") as file:
        codes[name] = compile(file.read(), path.replace(folder, target, 1), "exec", dont_inherit=True)
sys.stdout.buffer.write(MAGIC_NUMBER + marshal.dumps(codes))
