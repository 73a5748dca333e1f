"""Which package ships a library that an image lacks. Loaded only when one is missing."""

from __future__ import annotations

# package of Debian bookworm -> sonames, from its Contents-amd64; later suites add t64 to some names, and apt knows both
_DEBIAN = {
    "ibverbs-providers": "libmlx5.so.1", "libaio1": "libaio.so.1", "libasound2": "libasound.so.2",
    "libatomic1": "libatomic.so.1", "libavutil57": "libavutil.so.57", "libbz2-1.0": "libbz2.so.1.0",
    "libc6": "libc.so.6 libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1 libutil.so.1 libmvec.so.1 libresolv.so.2",
    "libcap2": "libcap.so.2", "libcrypt1": "libcrypt.so.1", "libcurl4": "libcurl.so.4", "libdrm2": "libdrm.so.2",
    "libedit2": "libedit.so.2", "libegl1": "libEGL.so.1", "libelf1": "libelf.so.1", "libexpat1": "libexpat.so.1",
    "libffi8": "libffi.so.8", "libfontconfig1": "libfontconfig.so.1", "libfreetype6": "libfreetype.so.6",
    "libgcc-s1": "libgcc_s.so.1", "libgfortran5": "libgfortran.so.5", "libgl1": "libGL.so.1",
    "libgles2": "libGLESv2.so.2",
    "libglib2.0-0": "libglib-2.0.so.0 libgio-2.0.so.0 libgobject-2.0.so.0 libgthread-2.0.so.0",
    "libglvnd0": "libGLdispatch.so.0", "libglx0": "libGLX.so.0", "libgmp10": "libgmp.so.10",
    "libgomp1": "libgomp.so.1", "libgoogle-perftools4": "libtcmalloc.so.4", "libhdf5-103-1": "libhdf5_serial.so.103",
    "libhwloc15": "libhwloc.so.15", "libibverbs1": "libibverbs.so.1", "libice6": "libICE.so.6",
    "libjemalloc2": "libjemalloc.so.2", "libjpeg62-turbo": "libjpeg.so.62", "liblz4-1": "liblz4.so.1",
    "liblzma5": "liblzma.so.5", "libncursesw6": "libncursesw.so.6", "libnl-3-200": "libnl-3.so.200",
    "libnl-route-3-200": "libnl-route-3.so.200", "libnuma1": "libnuma.so.1", "libopengl0": "libOpenGL.so.0",
    "libopenmpi3": "libmpi.so.40", "libpng16-16": "libpng16.so.16", "libprotobuf32": "libprotobuf.so.32",
    "libpython3.11": "libpython3.11.so.1.0", "libquadmath0": "libquadmath.so.0", "librdmacm1": "librdmacm.so.1",
    "libreadline8": "libreadline.so.8", "libseccomp2": "libseccomp.so.2", "libsm6": "libSM.so.6",
    "libsndfile1": "libsndfile.so.1", "libsqlite3-0": "libsqlite3.so.0", "libssl1.1": "libcrypto.so.1.1 libssl.so.1.1",
    "libssl3": "libcrypto.so.3 libssl.so.3", "libstdc++6": "libstdc++.so.6", "libsystemd0": "libsystemd.so.0",
    "libtbb12": "libtbb.so.12", "libtcmalloc-minimal4": "libtcmalloc_minimal.so.4", "libtiff6": "libtiff.so.6",
    "libtinfo6": "libtinfo.so.6", "libudev1": "libudev.so.1", "libunwind8": "libunwind.so.8",
    "liburing2": "liburing.so.2", "libusb-1.0-0": "libusb-1.0.so.0", "libuuid1": "libuuid.so.1",
    "libvulkan1": "libvulkan.so.1", "libwayland-client0": "libwayland-client.so.0", "libx11-6": "libX11.so.6",
    "libxcb1": "libxcb.so.1", "libxext6": "libXext.so.6", "libxkbcommon0": "libxkbcommon.so.0",
    "libxml2": "libxml2.so.2", "libxrender1": "libXrender.so.1", "libzstd1": "libzstd.so.1",
    "ocl-icd-libopencl1": "libOpenCL.so.1", "zlib1g": "libz.so.1",
}  # fmt: skip

# NVIDIA's Python packages -> sonames; those for CUDA 13 have no suffix
_PYTHON = {
    "nvidia-cublas-cu12": "libcublas.so.12 libcublasLt.so.12", "nvidia-cublas": "libcublas.so.13 libcublasLt.so.13",
    "nvidia-cuda-cupti-cu12": "libcupti.so.12", "nvidia-cuda-cupti": "libcupti.so.13",
    "nvidia-cuda-nvrtc-cu12": "libnvrtc.so.12", "nvidia-cuda-nvrtc": "libnvrtc.so.13",
    "nvidia-cuda-runtime-cu12": "libcudart.so.12", "nvidia-cuda-runtime": "libcudart.so.13",
    "nvidia-cudnn-cu12": "libcudnn.so.9", "nvidia-cufft-cu12": "libcufft.so.11", "nvidia-cufft": "libcufft.so.12",
    "nvidia-cufile-cu12": "libcufile.so.0", "nvidia-curand-cu12": "libcurand.so.10",
    "nvidia-cusolver-cu12": "libcusolver.so.11", "nvidia-cusolver": "libcusolver.so.12",
    "nvidia-cusparse-cu12": "libcusparse.so.12", "nvidia-cusparselt-cu12": "libcusparseLt.so.0",
    "nvidia-nccl-cu12": "libnccl.so.2", "nvidia-nvjitlink-cu12": "libnvJitLink.so.12",
    "nvidia-nvjitlink": "libnvJitLink.so.13", "nvidia-nvtx-cu12": "libnvToolsExt.so.1",
}  # fmt: skip


def _by_soname(packages: dict[str, str]) -> dict[str, str]:
    return {soname: package for package, sonames in packages.items() for soname in sonames.split()}


DEBIAN = _by_soname(_DEBIAN)
PYTHON = _by_soname(_PYTHON)


def remedy(soname: str) -> str:
    """What to do about a missing library."""
    if soname in DEBIAN or soname.startswith("ld-linux-"):
        return f"install it in the image (Debian's package {DEBIAN.get(soname, 'libc6')})"
    if soname in PYTHON:
        return f"install it in the image (pip install {PYTHON[soname]})"
    return "add it to the image"
