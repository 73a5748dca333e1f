"""Archives that are packed with zstd, as some registries' layers are. Needs the library `zstandard`, if it is there."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from oci_hook.errors import ImageError

if TYPE_CHECKING:
    from vgpu.doctor.image.layer import Stream

MARK = b"\x28\xb5\x2f\xfd"
_STEP = 1024  # bytes taken at once: they can stand for 32 MiB, and not for more


class Unpacked:
    """The content of a stream of frames. `read` raises ValueError for a broken one, EOFError for one cut short.

    Raises ImageError VGPU-IMG-006 where the library is missing.
    """

    def __init__(self, stream: Stream) -> None:
        try:
            import zstandard
        except ImportError:
            raise ImageError(
                "VGPU-IMG-006",
                "the image is packed with zstd, and this Python has no library to read it",
                remedy="install Debian's python3-zstandard, or pip's zstandard where vgpu is; or unpack it: zstd -d",
            ) from None
        self._library = zstandard
        self._stream = stream
        self._packed = b""  # of the next frame
        self._frame: Any = None  # None: between two
        self._plain = io.BytesIO()

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, all that are at hand if that is negative; none only at the end."""
        while True:
            found = self._plain.read(size)
            if found or size == 0:
                return found
            packed = self._packed or self._stream.read(_STEP)
            if not packed:
                if self._frame is not None:
                    raise EOFError("it is cut short")
                return b""
            self._plain = io.BytesIO(self._next(packed))

    def _next(self, packed: bytes) -> bytes:
        if self._frame is None:
            self._frame = self._library.ZstdDecompressor().decompressobj()
        try:
            found: bytes = self._frame.decompress(packed)
        except self._library.ZstdError as error:
            raise ValueError(str(error)) from None
        self._packed = b""
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None
        return found
