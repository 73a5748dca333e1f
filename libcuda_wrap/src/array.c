/* array.c - CUDA arrays: their size is computed from the descriptor, as the driver keeps no other that could be asked.
 */
#include "vgw_charge.h"

#include "cuda_handlers.h"
#include "vgw_tiles.h"

#define LAYERED 0x01u /* the depth counts layers, which every mip level has */
#define CUBEMAP 0x04u

static unsigned bytes_of_channel(CUarray_format format)
{
    switch ((unsigned)format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
        return 1;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
        return 2;
    default:
        return 4; /* 32-bit formats; of compressed and video formats none takes more for a channel */
    }
}

/* Bytes of all levels; UINT64_MAX if that does not fit into 64 bits. Memory that is bound later takes none now. */
static uint64_t size_of(const CUDA_ARRAY3D_DESCRIPTOR *array, unsigned levels)
{
    uint64_t all = 0;
    if (array->Flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING))
        return 0;
    for (unsigned level = 0; level < levels && level < 64; level++) {
        const bool layers = (array->Flags & (LAYERED | CUBEMAP)) != 0;
        const size_t width = array->Width >> level, height = array->Height >> level;
        const size_t depth = layers ? array->Depth : array->Depth >> level;
        uint64_t bytes = (uint64_t)bytes_of_channel(array->Format) * array->NumChannels;
        if (__builtin_mul_overflow(bytes, width > 0 ? width : 1, &bytes) ||
            __builtin_mul_overflow(bytes, height > 0 ? height : 1, &bytes) ||
            __builtin_mul_overflow(bytes, depth > 0 ? depth : 1, &bytes) || __builtin_add_overflow(all, bytes, &all))
            return UINT64_MAX;
        if (width <= 1 && height <= 1 && (layers || depth <= 1))
            break; /* the driver makes no more levels either */
    }
    return all;
}

/* Begins an array: CUDA_SUCCESS once its bytes are charged. */
static CUresult begin(const CUDA_ARRAY3D_DESCRIPTOR *array, unsigned levels, struct vgw_place *place, uint64_t *bytes)
{
    const CUresult result = vgw_place_here(place);
    if (result != CUDA_SUCCESS)
        return result;
    *bytes = size_of(array, levels);
    return vgw_charge(place->gpu, *bytes) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* Ends it: `result` is the driver's. CUDA_ERROR_OUT_OF_MEMORY with a result of CUDA_SUCCESS: the caller destroys the
 * array. */
static CUresult end(CUresult result, const void *handle, const struct vgw_place *place, uint64_t bytes)
{
    if (result == CUDA_SUCCESS && vgw_keep(VGW_ARRAY, vgw_key(handle), bytes, vgw_key(place->context), place->gpu))
        return CUDA_SUCCESS;
    vgw_refund(place->gpu, bytes);
    return result == CUDA_SUCCESS ? CUDA_ERROR_OUT_OF_MEMORY : result;
}

static CUresult end_array(CUresult result, CUarray *handle, const struct vgw_place *place, uint64_t bytes)
{
    const CUresult ended = end(result, result == CUDA_SUCCESS ? *handle : NULL, place, bytes);
    if (result == CUDA_SUCCESS && ended != CUDA_SUCCESS)
        vgw_driver.cuArrayDestroy(*handle);
    return ended;
}

CUresult vgw_array_create(vgw_fn_array_create *real, CUarray *pHandle, const CUDA_ARRAY_DESCRIPTOR *pAllocateArray)
{
    struct vgw_place place;
    uint64_t bytes;
    if (pHandle == NULL || pAllocateArray == NULL)
        return real(pHandle, pAllocateArray);
    const CUDA_ARRAY3D_DESCRIPTOR array = {.Width = pAllocateArray->Width,
                                           .Height = pAllocateArray->Height,
                                           .Format = pAllocateArray->Format,
                                           .NumChannels = pAllocateArray->NumChannels};
    const CUresult result = begin(&array, 1, &place, &bytes);
    return result != CUDA_SUCCESS ? result : end_array(real(pHandle, pAllocateArray), pHandle, &place, bytes);
}

CUresult vgw_array_create_v1(vgw_fn_array_create_v1 *real, CUarray *pHandle,
                             const CUDA_ARRAY_DESCRIPTOR_v1 *pAllocateArray)
{
    struct vgw_place place;
    uint64_t bytes;
    if (pHandle == NULL || pAllocateArray == NULL)
        return real(pHandle, pAllocateArray);
    const CUDA_ARRAY3D_DESCRIPTOR array = {.Width = pAllocateArray->Width,
                                           .Height = pAllocateArray->Height,
                                           .Format = pAllocateArray->Format,
                                           .NumChannels = pAllocateArray->NumChannels};
    const CUresult result = begin(&array, 1, &place, &bytes);
    return result != CUDA_SUCCESS ? result : end_array(real(pHandle, pAllocateArray), pHandle, &place, bytes);
}

CUresult vgw_array3d_create(vgw_fn_array3d_create *real, CUarray *pHandle,
                            const CUDA_ARRAY3D_DESCRIPTOR *pAllocateArray)
{
    struct vgw_place place;
    uint64_t bytes;
    if (pHandle == NULL || pAllocateArray == NULL)
        return real(pHandle, pAllocateArray);
    const CUresult result = begin(pAllocateArray, 1, &place, &bytes);
    return result != CUDA_SUCCESS ? result : end_array(real(pHandle, pAllocateArray), pHandle, &place, bytes);
}

CUresult vgw_array3d_create_v1(vgw_fn_array3d_create_v1 *real, CUarray *pHandle,
                               const CUDA_ARRAY3D_DESCRIPTOR_v1 *pAllocateArray)
{
    struct vgw_place place;
    uint64_t bytes;
    if (pHandle == NULL || pAllocateArray == NULL)
        return real(pHandle, pAllocateArray);
    const CUDA_ARRAY3D_DESCRIPTOR array = {.Width = pAllocateArray->Width,
                                           .Height = pAllocateArray->Height,
                                           .Depth = pAllocateArray->Depth,
                                           .Format = pAllocateArray->Format,
                                           .NumChannels = pAllocateArray->NumChannels,
                                           .Flags = pAllocateArray->Flags};
    const CUresult result = begin(&array, 1, &place, &bytes);
    return result != CUDA_SUCCESS ? result : end_array(real(pHandle, pAllocateArray), pHandle, &place, bytes);
}

CUresult vgw_mipmap_create(vgw_fn_mipmap_create *real, CUmipmappedArray *pHandle,
                           const CUDA_ARRAY3D_DESCRIPTOR *pMipmappedArrayDesc, unsigned int numMipmapLevels)
{
    struct vgw_place place;
    uint64_t bytes;
    if (pHandle == NULL || pMipmappedArrayDesc == NULL)
        return real(pHandle, pMipmappedArrayDesc, numMipmapLevels);
    CUresult result = begin(pMipmappedArrayDesc, numMipmapLevels, &place, &bytes);
    if (result != CUDA_SUCCESS)
        return result;
    result = real(pHandle, pMipmappedArrayDesc, numMipmapLevels);
    const CUresult ended = end(result, result == CUDA_SUCCESS ? *pHandle : NULL, &place, bytes);
    if (result == CUDA_SUCCESS && ended != CUDA_SUCCESS)
        vgw_driver.cuMipmappedArrayDestroy(*pHandle);
    return ended;
}

static CUresult destroyed(const struct vgw_freeing *freeing, struct vgw_bound *bound, CUresult result)
{
    vgw_tiles_ended(bound, result == CUDA_SUCCESS);
    return vgw_freed(freeing, result);
}

CUresult vgw_array_destroy(vgw_fn_array_destroy *real, CUarray hArray)
{
    struct vgw_bound *bound = vgw_tiles_take(vgw_key(hArray));
    const struct vgw_freeing freeing = vgw_forget(VGW_ARRAY, vgw_key(hArray));
    return destroyed(&freeing, bound, real(hArray));
}

CUresult vgw_mipmap_destroy(vgw_fn_mipmap_destroy *real, CUmipmappedArray hMipmappedArray)
{
    struct vgw_bound *bound = vgw_tiles_take(vgw_key(hMipmappedArray));
    const struct vgw_freeing freeing = vgw_forget(VGW_ARRAY, vgw_key(hMipmappedArray));
    return destroyed(&freeing, bound, real(hMipmappedArray));
}
