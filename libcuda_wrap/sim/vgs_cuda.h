/* vgs_cuda.h - the types of the CUDA driver's interface that only the simulated driver needs, beside vgw_cuda.h.
 * Layouts and values are those of CUDA 13.0; the sizes are asserted below, and tests compare them with cuda-bindings.
 */
#ifndef VGS_CUDA_H
#define VGS_CUDA_H

#define CUkern_st CUfunc_st /* one object plays both: a kernel's function is itself */
#include "vgw_cuda.h"

typedef void (*CUhostFn)(void *user_data);
typedef void (*CUstreamCallback)(CUstream stream, CUresult status, void *user_data);
typedef size_t (*CUoccupancyB2DSize)(int block_size);

typedef struct {
    int maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3], sharedMemPerBlock, totalConstantMemory, SIMDWidth,
        memPitch, regsPerBlock, clockRate, textureAlign;
} CUdevprop;

typedef struct {
    CUmemLocation location;
    int flags; /* 0 none, 1 read, 3 read and write */
} CUmemAccessDesc;

typedef struct {
    size_t size, alignment;
    unsigned int reserved[4];
} CUDA_ARRAY_MEMORY_REQUIREMENTS;

typedef struct {
    struct {
        unsigned int width, height, depth; /* elements */
    } tileExtent;
    unsigned int miptailFirstLevel;
    unsigned long long miptailSize;
    unsigned int flags;
    unsigned int reserved[4];
} CUDA_ARRAY_SPARSE_PROPERTIES;

typedef struct {
    size_t srcXInBytes, srcY;
    int srcMemoryType;
    const void *srcHost;
    CUdeviceptr srcDevice;
    CUarray srcArray;
    size_t srcPitch;
    size_t dstXInBytes, dstY;
    int dstMemoryType;
    void *dstHost;
    CUdeviceptr dstDevice;
    CUarray dstArray;
    size_t dstPitch;
    size_t WidthInBytes, Height;
} CUDA_MEMCPY2D;

typedef struct { /* CUDA_MEMCPY3D_PEER has the same layout: its contexts stand where `reserved` is */
    size_t srcXInBytes, srcY, srcZ, srcLOD;
    int srcMemoryType;
    const void *srcHost;
    CUdeviceptr srcDevice;
    CUarray srcArray;
    void *reserved0;
    size_t srcPitch, srcHeight;
    size_t dstXInBytes, dstY, dstZ, dstLOD;
    int dstMemoryType;
    void *dstHost;
    CUdeviceptr dstDevice;
    CUarray dstArray;
    void *reserved1;
    size_t dstPitch, dstHeight;
    size_t WidthInBytes, Height, Depth;
} CUDA_MEMCPY3D;

typedef struct { /* version 2; version 1 ends before `kern` */
    CUfunction func;
    unsigned int gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
    void **kernelParams, **extra;
    CUkernel kern;
    CUcontext ctx;
} CUDA_KERNEL_NODE_PARAMS;

typedef struct {
    CUhostFn fn;
    void *userData;
} CUDA_HOST_NODE_PARAMS;

typedef struct {
    CUdeviceptr dst;
    size_t pitch;
    unsigned int value, elementSize;
    size_t width, height;
} CUDA_MEMSET_NODE_PARAMS;

_Static_assert(sizeof(CUmemAllocationProp) == 32, "CUDA 13.0");
_Static_assert(sizeof(CUmemPoolProps) == 88, "CUDA 13.0");
_Static_assert(sizeof(CUDA_ARRAY_DESCRIPTOR) == 24, "CUDA 13.0");
_Static_assert(sizeof(CUDA_ARRAY3D_DESCRIPTOR) == 40, "CUDA 13.0");
_Static_assert(sizeof(CUDA_ARRAY_SPARSE_PROPERTIES) == 48, "CUDA 13.0");
_Static_assert(sizeof(CUarrayMapInfo) == 96, "CUDA 13.0");
_Static_assert(sizeof(CUDA_MEMCPY2D) == 128, "CUDA 13.0");
_Static_assert(sizeof(CUDA_MEMCPY3D) == 200, "CUDA 13.0");
_Static_assert(sizeof(CUlaunchConfig) == 56, "CUDA 13.0");
_Static_assert(sizeof(CUDA_KERNEL_NODE_PARAMS) == 72, "CUDA 13.0");

#endif
