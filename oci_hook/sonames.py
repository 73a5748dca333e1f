"""Which Debian package ships a library that an image lacks. Loaded only when one is missing."""

from __future__ import annotations

# soname -> package; of trixie where names differ between suites (libssl3 became libssl3t64 there), then the older one.
# tests/vgpu/image/test_sonames.py holds each against Debian's own list of contents.
PACKAGES: dict[str, str] = {
    "libstdc++.so.6": "libstdc++6",
    "libgcc_s.so.1": "libgcc-s1",
    "libX11.so.6": "libx11-6",
    "libXext.so.6": "libxext6",
    "libcrypto.so.3": "libssl3",
    "libcrypto.so.1.1": "libssl1.1",
    "libexpat.so.1": "libexpat1",
    "libz.so.1": "zlib1g",
}
_LIBC6 = ("libc.so.", "libm.so.", "libdl.so.", "libpthread.so.", "librt.so.", "libutil.so.", "ld-linux-")


def package(soname: str) -> str:
    """Debian's package that ships it, "" if that is not known here."""
    return PACKAGES.get(soname, "libc6" if soname.startswith(_LIBC6) else "")


def remedy(soname: str) -> str:
    """What to do about a missing library."""
    found = package(soname)
    return f"install it in the image (Debian's package {found})" if found else "add it to the image"
