/* vgs_set.c - cuMemset*: filling device memory with 8, 16 or 32 bits, in one line or in rows. */
#include <string.h>

#include "vgs_driver.h"

static uint64_t fill_ns = 1000; /* of a MiB: 1 TiB takes a second, as on a fast GPU */

/* Only here: fills that take longer, so that little memory makes much work. */
__attribute__((visibility("default"))) void vgsSetFillTime(uint64_t ns_of_a_mib);
void vgsSetFillTime(uint64_t ns_of_a_mib)
{
    __atomic_store_n(&fill_ns, ns_of_a_mib, __ATOMIC_RELAXED);
}

static CUresult set_now(const CUDA_MEMSET_NODE_PARAMS *set)
{
    size_t width = set->width * set->elementSize;
    if (width == 0 || set->height == 0)
        return CUDA_SUCCESS;
    VGS_VALUE(set->dst % set->elementSize == 0 &&
              (set->height == 1 || (set->pitch >= width && set->pitch % set->elementSize == 0)));
    VGS_VALUE(vgs_accessible(set->dst, set->pitch * (set->height - 1) + width));
    for (size_t y = 0; y < set->height; y++) {
        char *row = (char *)(uintptr_t)(set->dst + y * set->pitch);
        if (set->elementSize == 1)
            memset(row, (int)set->value, width);
        else
            for (size_t x = 0; x < width; x += set->elementSize)
                memcpy(row + x, &set->value, set->elementSize);
    }
    return CUDA_SUCCESS;
}

CUresult vgs_set_on(CUstream stream, const CUDA_MEMSET_NODE_PARAMS *set)
{
    const CUresult result = set_now(set);
    const uint64_t bytes = set->width * set->elementSize * set->height;
    const uint64_t ns = (bytes * __atomic_load_n(&fill_ns, __ATOMIC_RELAXED)) >> 20;
    if (result == CUDA_SUCCESS && ns > 0)
        vgs_queue_kernel(stream, ns);
    return result;
}

static CUresult set_on(CUcontext ctx, CUstream handle, bool wait, CUdeviceptr dst, size_t pitch, unsigned int value,
                       unsigned int element, size_t width, size_t height)
{
    struct vgs_operation operation = {
        .kind = VGS_NODE_MEMSET,
        .as.set =
            {.dst = dst, .pitch = pitch, .value = value, .elementSize = element, .width = width, .height = height},
    };
    CUstream stream = wait ? &ctx->main : vgs_stream(handle);
    VGS_CHECK(stream, CUDA_ERROR_INVALID_HANDLE);
    return vgs_captured(stream, &operation) ? CUDA_SUCCESS : vgs_set_on(stream, &operation.as.set);
}

#define VGS_SET(bits, type)                                                                                            \
    VGS_API cuMemsetD##bits##_v2(CUdeviceptr dst, type value, size_t n)                                                \
    {                                                                                                                  \
        VGS_ENTER_CONTEXT();                                                                                           \
        return set_on(ctx, NULL, true, dst, 0, value, bits / 8, n, 1);                                                 \
    }                                                                                                                  \
    VGS_API cuMemsetD##bits##Async(CUdeviceptr dst, type value, size_t n, CUstream hStream)                            \
    {                                                                                                                  \
        VGS_ENTER_CONTEXT();                                                                                           \
        return set_on(ctx, hStream, false, dst, 0, value, bits / 8, n, 1);                                             \
    }                                                                                                                  \
    VGS_API cuMemsetD2D##bits##_v2(CUdeviceptr dst, size_t pitch, type value, size_t width, size_t height)             \
    {                                                                                                                  \
        VGS_ENTER_CONTEXT();                                                                                           \
        return set_on(ctx, NULL, true, dst, pitch, value, bits / 8, width, height);                                    \
    }                                                                                                                  \
    VGS_API cuMemsetD2D##bits##Async(CUdeviceptr dst, size_t pitch, type value, size_t width, size_t height,           \
                                     CUstream hStream)                                                                 \
    {                                                                                                                  \
        VGS_ENTER_CONTEXT();                                                                                           \
        return set_on(ctx, hStream, false, dst, pitch, value, bits / 8, width, height);                                \
    }

VGS_SET(8, unsigned char)
VGS_SET(16, unsigned short)
VGS_SET(32, unsigned int)
