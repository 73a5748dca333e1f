/* vgs_copy.c - copies. All are 3-D copies inside; the bytes really move, and take no simulated time. */
#include <string.h>

#include "vgs_driver.h"

/* One side of a copy: its first byte, and the distance of rows and slices. */
struct side {
    char *begin;
    size_t pitch, slice;
};

/* Places one side; false: not device memory, or too small. `bytes`: from its first to its last byte. */
static CUresult place(struct side *side, int type, uintptr_t host, CUdeviceptr device, CUarray array,
                      const size_t at[3], size_t pitch, size_t height, const size_t extent[3])
{
    if (type == CU_MEMORYTYPE_ARRAY) {
        VGS_CHECK(vgs_valid(array, VGS_ARRAY), CUDA_ERROR_INVALID_HANDLE);
        pitch = array->shape.Width * array->element;
        height = array->shape.Height ? array->shape.Height : 1;
        size_t depth = array->shape.Depth ? array->shape.Depth : 1;
        VGS_VALUE(array->data && at[0] + extent[0] <= pitch && at[1] + extent[1] <= height &&
                  at[2] + extent[2] <= depth);
        device = array->data;
    } else if (type == CU_MEMORYTYPE_HOST) {
        device = 0;
    } else if (type != CU_MEMORYTYPE_DEVICE && type != CU_MEMORYTYPE_UNIFIED) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (pitch == 0)
        pitch = at[0] + extent[0];
    if (height == 0)
        height = at[1] + extent[1];
    VGS_VALUE(pitch >= at[0] + extent[0]);
    side->pitch = pitch;
    side->slice = pitch * height;
    uint64_t offset = at[2] * side->slice + at[1] * pitch + at[0];
    uint64_t last = (extent[2] - 1) * side->slice + (extent[1] - 1) * pitch + extent[0];
    if (type == CU_MEMORYTYPE_HOST) {
        VGS_VALUE(host);
        side->begin = (char *)(host + offset);
        return CUDA_SUCCESS;
    }
    /* unified: an address that is not ours is the program's own memory */
    VGS_VALUE(device &&
              ((type == CU_MEMORYTYPE_UNIFIED && !vgs_in_arena(device)) || vgs_accessible(device + offset, last)));
    side->begin = (char *)(uintptr_t)(device + offset);
    return CUDA_SUCCESS;
}

CUresult vgs_copy_now(const CUDA_MEMCPY3D *c)
{
    struct side from, to;
    const size_t extent[3] = {c->WidthInBytes, c->Height, c->Depth};
    if (!extent[0] || !extent[1] || !extent[2])
        return CUDA_SUCCESS;
    const size_t from_at[3] = {c->srcXInBytes, c->srcY, c->srcZ}, to_at[3] = {c->dstXInBytes, c->dstY, c->dstZ};
    CUresult result = place(&from, c->srcMemoryType, (uintptr_t)c->srcHost, c->srcDevice, c->srcArray, from_at,
                            c->srcPitch, c->srcHeight, extent);
    if (result == CUDA_SUCCESS)
        result = place(&to, c->dstMemoryType, (uintptr_t)c->dstHost, c->dstDevice, c->dstArray, to_at, c->dstPitch,
                       c->dstHeight, extent);
    if (result != CUDA_SUCCESS)
        return result;
    for (size_t z = 0; z < extent[2]; z++)
        for (size_t y = 0; y < extent[1]; y++)
            memmove(to.begin + z * to.slice + y * to.pitch, from.begin + z * from.slice + y * from.pitch, extent[0]);
    return CUDA_SUCCESS;
}

/* On a stream: what was queued before is only a matter of time, not of bytes, so the bytes can move at once. */
static CUresult copy_on(CUstream handle, const CUDA_MEMCPY3D *copy)
{
    CUstream stream = vgs_stream(handle);
    VGS_CHECK(stream, CUDA_ERROR_INVALID_HANDLE);
    struct vgs_operation operation = {.kind = VGS_NODE_MEMCPY, .as.copy = *copy};
    return vgs_captured(stream, &operation) ? CUDA_SUCCESS : vgs_copy_now(copy);
}

static CUresult copy_and_wait(CUcontext ctx, const CUDA_MEMCPY3D *copy)
{
    VGS_CHECK(!ctx->main.capture, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    vgs_wait_stream(&ctx->main);
    return vgs_copy_now(copy);
}

static CUDA_MEMCPY3D line(size_t bytes)
{
    return (CUDA_MEMCPY3D){.WidthInBytes = bytes, .Height = 1, .Depth = 1};
}

static CUDA_MEMCPY3D to_device(CUdeviceptr to, const void *from, size_t bytes)
{
    CUDA_MEMCPY3D copy = line(bytes);
    copy.srcMemoryType = CU_MEMORYTYPE_HOST;
    copy.srcHost = from;
    copy.dstMemoryType = CU_MEMORYTYPE_DEVICE;
    copy.dstDevice = to;
    return copy;
}

static CUDA_MEMCPY3D to_host(void *to, CUdeviceptr from, size_t bytes)
{
    CUDA_MEMCPY3D copy = line(bytes);
    copy.srcMemoryType = CU_MEMORYTYPE_DEVICE;
    copy.srcDevice = from;
    copy.dstMemoryType = CU_MEMORYTYPE_HOST;
    copy.dstHost = to;
    return copy;
}

static CUDA_MEMCPY3D between(CUdeviceptr to, CUdeviceptr from, size_t bytes, int type)
{
    CUDA_MEMCPY3D copy = line(bytes);
    copy.srcMemoryType = copy.dstMemoryType = type;
    copy.srcDevice = from;
    copy.dstDevice = to;
    return copy;
}

static CUDA_MEMCPY3D flat(const CUDA_MEMCPY2D *c)
{
    return (CUDA_MEMCPY3D){
        .srcXInBytes = c->srcXInBytes,
        .srcY = c->srcY,
        .srcMemoryType = c->srcMemoryType,
        .srcHost = c->srcHost,
        .srcDevice = c->srcDevice,
        .srcArray = c->srcArray,
        .srcPitch = c->srcPitch,
        .dstXInBytes = c->dstXInBytes,
        .dstY = c->dstY,
        .dstMemoryType = c->dstMemoryType,
        .dstHost = c->dstHost,
        .dstDevice = c->dstDevice,
        .dstArray = c->dstArray,
        .dstPitch = c->dstPitch,
        .WidthInBytes = c->WidthInBytes,
        .Height = c->Height,
        .Depth = 1,
    };
}

/* Each kind of copy twice: at once, and on a stream. */
#define VGS_COPY(name, async_name, parameters, condition, copy_of)                                                     \
    VGS_API name(parameters)                                                                                           \
    {                                                                                                                  \
        VGS_ENTER_CONTEXT();                                                                                           \
        VGS_VALUE(condition);                                                                                          \
        CUDA_MEMCPY3D copy = copy_of;                                                                                  \
        return copy_and_wait(ctx, &copy);                                                                              \
    }                                                                                                                  \
    VGS_API async_name(parameters, CUstream hStream)                                                                   \
    {                                                                                                                  \
        VGS_ENTER_CONTEXT();                                                                                           \
        VGS_VALUE(condition);                                                                                          \
        CUDA_MEMCPY3D copy = copy_of;                                                                                  \
        return copy_on(hStream, &copy);                                                                                \
    }
#define VGS_LIST(...) __VA_ARGS__

VGS_COPY(cuMemcpyHtoD_v2, cuMemcpyHtoDAsync_v2, VGS_LIST(CUdeviceptr to, const void *from, size_t bytes),
         from || !bytes, to_device(to, from, bytes))
VGS_COPY(cuMemcpyDtoH_v2, cuMemcpyDtoHAsync_v2, VGS_LIST(void *to, CUdeviceptr from, size_t bytes), to || !bytes,
         to_host(to, from, bytes))
VGS_COPY(cuMemcpyDtoD_v2, cuMemcpyDtoDAsync_v2, VGS_LIST(CUdeviceptr to, CUdeviceptr from, size_t bytes), true,
         between(to, from, bytes, CU_MEMORYTYPE_DEVICE))
VGS_COPY(cuMemcpy, cuMemcpyAsync, VGS_LIST(CUdeviceptr to, CUdeviceptr from, size_t bytes), true,
         between(to, from, bytes, CU_MEMORYTYPE_UNIFIED))
VGS_COPY(cuMemcpyPeer, cuMemcpyPeerAsync,
         VGS_LIST(CUdeviceptr to, CUcontext there, CUdeviceptr from, CUcontext here, size_t bytes),
         vgs_valid(there, VGS_CONTEXT) && vgs_valid(here, VGS_CONTEXT), between(to, from, bytes, CU_MEMORYTYPE_DEVICE))
VGS_COPY(cuMemcpy2D_v2, cuMemcpy2DAsync_v2, VGS_LIST(const CUDA_MEMCPY2D *c), c, flat(c))
VGS_COPY(cuMemcpy3D_v2, cuMemcpy3DAsync_v2, VGS_LIST(const CUDA_MEMCPY3D *c), c, *c)
VGS_COPY(cuMemcpy3DPeer, cuMemcpy3DPeerAsync, VGS_LIST(const CUDA_MEMCPY3D *c), c, *c)

VGS_API cuMemcpy2DUnaligned_v2(const CUDA_MEMCPY2D *c)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(c);
    CUDA_MEMCPY3D copy = flat(c);
    return copy_and_wait(ctx, &copy);
}

/* Between a line of memory and the beginning of an array. */
static CUDA_MEMCPY3D array_line(CUarray array, size_t offset, size_t bytes, bool into)
{
    CUDA_MEMCPY3D copy = line(bytes);
    if (into) {
        copy.dstMemoryType = CU_MEMORYTYPE_ARRAY;
        copy.dstArray = array;
        copy.dstXInBytes = offset;
    } else {
        copy.srcMemoryType = CU_MEMORYTYPE_ARRAY;
        copy.srcArray = array;
        copy.srcXInBytes = offset;
    }
    return copy;
}

static CUDA_MEMCPY3D host_to_array(CUarray array, size_t offset, const void *from, size_t bytes)
{
    CUDA_MEMCPY3D copy = array_line(array, offset, bytes, true);
    copy.srcMemoryType = CU_MEMORYTYPE_HOST;
    copy.srcHost = from;
    return copy;
}

static CUDA_MEMCPY3D array_to_host(void *to, CUarray array, size_t offset, size_t bytes)
{
    CUDA_MEMCPY3D copy = array_line(array, offset, bytes, false);
    copy.dstMemoryType = CU_MEMORYTYPE_HOST;
    copy.dstHost = to;
    return copy;
}

VGS_COPY(cuMemcpyHtoA_v2, cuMemcpyHtoAAsync_v2, VGS_LIST(CUarray array, size_t offset, const void *from, size_t bytes),
         from, host_to_array(array, offset, from, bytes))
VGS_COPY(cuMemcpyAtoH_v2, cuMemcpyAtoHAsync_v2, VGS_LIST(void *to, CUarray array, size_t offset, size_t bytes), to,
         array_to_host(to, array, offset, bytes))
