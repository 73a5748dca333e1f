"""Started by vgpu-runtime as `python -I -S -E vgpu_shim.py …`: finds the package beside this file, and nothing else.

Its modules are also in one file, shim.pack (packaging/pack.py), which spares the search for each; without a pack of
this interpreter's they are imported as usual.
"""

import gc
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER
from marshal import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType

gc.disable()  # we end before there is anything to collect
here = __file__.rpartition("/")[0]
sys.path.insert(0, here)


class Pack:
    """Finder and loader: name of a module -> its code."""

    codes: "dict[str, CodeType]" = {}

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        if name not in cls.codes:
            return None
        spec = ModuleSpec(name, cls, origin=cls.codes[name].co_filename)  # type: ignore[arg-type]  # no instance of it
        if name == "oci_hook":
            spec.submodule_search_locations = [f"{here}/{name}"]
        return spec

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        return None

    @classmethod
    def exec_module(cls, module: "ModuleType") -> None:
        exec(cls.codes[module.__name__], module.__dict__)


try:
    with open(f"{here}/shim.pack", "rb", 0) as file:
        data = file.read()
    if data.startswith(MAGIC_NUMBER):
        Pack.codes = loads(data[len(MAGIC_NUMBER) :])
        sys.meta_path.insert(0, Pack)
except FileNotFoundError:
    pass

from oci_hook import shim  # noqa: E402  # only now is it found

sys.exit(shim.main(sys.argv[1:]))
