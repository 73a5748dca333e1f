"""Started by vgpu-runtime as `python -I -S -E vgpu_shim.py …`: finds the package beside this file, and nothing else.

Its modules are also in two files, shim.pack and hook.pack (packaging/pack.py), which spares the search for each;
without packs of this interpreter's they are imported as usual.
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
    later = ["hook.pack"]  # read when a module is asked for that was not in the first

    @classmethod
    def read(cls, name: str) -> bool:
        """Whether there is such a pack, of this interpreter's."""
        try:
            with open(f"{here}/{name}", "rb", 0) as file:
                data = file.read()
        except FileNotFoundError:
            return False
        if not data.startswith(MAGIC_NUMBER):
            return False
        cls.codes.update(loads(data[len(MAGIC_NUMBER) :]))
        return True

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        if name not in cls.codes and name.startswith("oci_hook.") and cls.later:
            cls.read(cls.later.pop())
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


if Pack.read("shim.pack"):
    sys.meta_path.insert(0, Pack)

from oci_hook import shim  # noqa: E402  # only now is it found

sys.exit(shim.main(sys.argv[1:]))
