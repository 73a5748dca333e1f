"""What a CUDA program sees of the GPU: the device's memory, and how much of it can be had. Standard library only."""

from __future__ import annotations

import ctypes
import sys

CHUNK = 256 << 20  # bytes
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class CudaError(Exception):
    """The driver refused; the text says what and with which code."""


class Cuda:
    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: object) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code:
            raise CudaError(f"{name}: {code}")

    def total(self) -> int:
        size = ctypes.c_size_t()
        self.call("cuDeviceTotalMem_v2", ctypes.byref(size), 0)
        return size.value

    def fill(self) -> int:
        """Allocates until the driver says that it is enough; returns how many bytes it gave. Raises CudaError."""
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)
        had, chunk = 0, CHUNK
        while chunk:
            try:
                self.call("cuMemAlloc_v2", ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(chunk))
                had += chunk
            except CudaError as error:
                if not str(error).endswith(f": {OUT_OF_MEMORY}"):
                    raise
                chunk //= 2
        return had


def main() -> int:
    try:
        cuda = Cuda()
        total = cuda.total()
        print(f"the device has {total} bytes, {total / (1 << 30):.2f} GiB")
        had = cuda.fill()
        print(f"{had} bytes could be had; the next is CUDA_ERROR_OUT_OF_MEMORY")
    except (CudaError, OSError) as error:
        print(f"no GPU here: {error}; run with --runtime=vgpu --label vgpu.memory=8GiB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
