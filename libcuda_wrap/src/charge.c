/* charge.c - linear memory: cuMemAlloc and its family, and what frees it. Pools are pool.c's.
 *
 * The quota is charged before the driver is called, so that two threads cannot both pass, and given back if the driver
 * refuses. No lock is held across a driver call, which may call back into us.
 */
#include "vgw_charge.h"

#include "cuda_handlers.h"
#include "vgw_pool.h"

bool vgw_keep(enum vgw_kind kind, uint64_t key, uint64_t bytes, uint64_t link, unsigned gpu)
{
    const struct vgw_entry entry = {
        .key = key, .bytes = bytes, .link = link, .count = 1, .kind = (uint8_t)kind, .gpu = (uint8_t)gpu};
    struct vgw_entry old;
    if (!vgw_table_put(&entry, &old))
        return false;
    if (old.kind != VGW_NOTHING && old.gpu != VGW_NO_GPU)
        vgw_refund(old.gpu, old.bytes); /* the driver gave the key out again: what had it is gone, unseen by us */
    return true;
}

struct vgw_freeing vgw_forget(enum vgw_kind kind, uint64_t key)
{
    struct vgw_freeing freeing;
    freeing.known = vgw_table_take(kind, key, &freeing.entry);
    return freeing;
}

CUresult vgw_freed(const struct vgw_freeing *freeing, CUresult result)
{
    struct vgw_entry old;
    if (freeing->known && result == CUDA_SUCCESS)
        vgw_refund(freeing->entry.gpu, freeing->entry.bytes);
    else if (freeing->known)
        vgw_table_put(&freeing->entry, &old); /* it is still there; taking it out has left room */
    return result;
}

/* The end of an allocation: `result` is the driver's. */
static CUresult finish(CUresult result, CUdeviceptr pointer, uint64_t bytes, const struct vgw_place *place)
{
    if (result == CUDA_SUCCESS && vgw_keep(VGW_POINTER, pointer, bytes, vgw_key(place->context), place->gpu))
        return CUDA_SUCCESS;
    if (result == CUDA_SUCCESS) {
        vgw_driver.cuMemFree_v2(pointer);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    } else if (result == CUDA_ERROR_OUT_OF_MEMORY) {
        vgw_denied(place->gpu, VGW_DENIED_DRIVER, bytes);
    }
    vgw_refund(place->gpu, bytes);
    return result;
}

CUresult vgw_mem_alloc(vgw_fn_mem_alloc *real, CUdeviceptr *dptr, size_t bytesize)
{
    struct vgw_place place;
    CUresult result = vgw_place_here(&place);
    if (result != CUDA_SUCCESS)
        return result;
    if (dptr == NULL)
        return real(dptr, bytesize);
    if (!vgw_charge(place.gpu, bytesize))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = real(dptr, bytesize);
    return finish(result, result == CUDA_SUCCESS ? *dptr : 0, bytesize, &place);
}

CUresult vgw_mem_alloc_v1(vgw_fn_mem_alloc_v1 *real, CUdeviceptr_v1 *dptr, unsigned int bytesize)
{
    struct vgw_place place;
    CUresult result = vgw_place_here(&place);
    if (result != CUDA_SUCCESS)
        return result;
    if (dptr == NULL)
        return real(dptr, bytesize);
    if (!vgw_charge(place.gpu, bytesize))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = real(dptr, bytesize);
    return finish(result, result == CUDA_SUCCESS ? *dptr : 0, bytesize, &place);
}

/* Managed memory moves between host and GPU: it counts in full, as all of it may be on the GPU at once. */
CUresult vgw_mem_alloc_managed(vgw_fn_mem_alloc_managed *real, CUdeviceptr *dptr, size_t bytesize, unsigned int flags)
{
    struct vgw_place place;
    CUresult result = vgw_place_here(&place);
    if (result != CUDA_SUCCESS)
        return result;
    if (dptr == NULL)
        return real(dptr, bytesize, flags);
    if (!vgw_charge(place.gpu, bytesize))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = real(dptr, bytesize, flags);
    return finish(result, result == CUDA_SUCCESS ? *dptr : 0, bytesize, &place);
}

/* Only the driver knows the pitch. All drivers so far round rows up to 512 bytes; should one do less, its answers tell.
 * What it will take is charged before the call, so that it never holds a byte that is not charged. */
static size_t pitch_unit = 512;

static bool charge_rows(unsigned gpu, size_t width, size_t height, size_t *bytes)
{
    const size_t unit = __atomic_load_n(&pitch_unit, __ATOMIC_RELAXED);
    size_t padded;
    return !__builtin_add_overflow(width, unit - 1, &padded) &&
           !__builtin_mul_overflow(padded & ~(unit - 1), height, bytes) && vgw_charge(gpu, *bytes);
}

/* What was charged too much goes back. If it was too little, and the rest does not fit, the allocation is undone before
 * the program has seen it. */
static CUresult finish_pitch(CUresult result, CUdeviceptr pointer, size_t charged, size_t pitch, size_t height,
                             const struct vgw_place *place)
{
    const size_t actual = pitch * height;
    if (result != CUDA_SUCCESS)
        return finish(result, 0, charged, place);
    if (actual > charged && !vgw_charge(place->gpu, actual - charged)) {
        vgw_driver.cuMemFree_v2(pointer);
        vgw_refund(place->gpu, charged);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (actual < charged)
        vgw_refund(place->gpu, charged - actual);
    if (pitch % __atomic_load_n(&pitch_unit, __ATOMIC_RELAXED) != 0)
        __atomic_store_n(&pitch_unit, pitch & -pitch, __ATOMIC_RELAXED);
    return finish(result, pointer, actual, place);
}

CUresult vgw_mem_alloc_pitch(vgw_fn_mem_alloc_pitch *real, CUdeviceptr *dptr, size_t *pPitch, size_t WidthInBytes,
                             size_t Height, unsigned int ElementSizeBytes)
{
    struct vgw_place place;
    size_t charged;
    CUresult result = vgw_place_here(&place);
    if (result != CUDA_SUCCESS)
        return result;
    if (dptr == NULL || pPitch == NULL)
        return real(dptr, pPitch, WidthInBytes, Height, ElementSizeBytes);
    if (!charge_rows(place.gpu, WidthInBytes, Height, &charged))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = real(dptr, pPitch, WidthInBytes, Height, ElementSizeBytes);
    const bool done = result == CUDA_SUCCESS;
    return finish_pitch(result, done ? *dptr : 0, charged, done ? *pPitch : 0, Height, &place);
}

CUresult vgw_mem_alloc_pitch_v1(vgw_fn_mem_alloc_pitch_v1 *real, CUdeviceptr_v1 *dptr, unsigned int *pPitch,
                                unsigned int WidthInBytes, unsigned int Height, unsigned int ElementSizeBytes)
{
    struct vgw_place place;
    size_t charged;
    CUresult result = vgw_place_here(&place);
    if (result != CUDA_SUCCESS)
        return result;
    if (dptr == NULL || pPitch == NULL)
        return real(dptr, pPitch, WidthInBytes, Height, ElementSizeBytes);
    if (!charge_rows(place.gpu, WidthInBytes, Height, &charged))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = real(dptr, pPitch, WidthInBytes, Height, ElementSizeBytes);
    const bool done = result == CUDA_SUCCESS;
    return finish_pitch(result, done ? *dptr : 0, charged, done ? *pPitch : 0, Height, &place);
}

/* What came from a pool goes back to it, and not to the quota: see pool.c. */
static CUresult freed(const struct vgw_freeing *freeing, bool pooled, CUresult result, bool at_once)
{
    if (!pooled || result != CUDA_SUCCESS)
        return vgw_freed(freeing, result);
    vgw_pool_freed(&freeing->entry, at_once);
    return result;
}

static struct vgw_freeing forget_pointer(uint64_t pointer, bool *pooled)
{
    struct vgw_freeing freeing = vgw_forget(VGW_POINTER, pointer);
    *pooled = !freeing.known;
    return freeing.known ? freeing : vgw_forget(VGW_POOLED, pointer);
}

CUresult vgw_mem_free(vgw_fn_mem_free *real, CUdeviceptr dptr)
{
    bool pooled;
    const struct vgw_freeing freeing = forget_pointer(dptr, &pooled);
    return freed(&freeing, pooled && freeing.known, real(dptr), true);
}

CUresult vgw_mem_free_v1(vgw_fn_mem_free_v1 *real, CUdeviceptr_v1 dptr)
{
    const struct vgw_freeing freeing = vgw_forget(VGW_POINTER, dptr);
    return vgw_freed(&freeing, real(dptr));
}

CUresult vgw_mem_free_async(vgw_fn_mem_free_async *real, CUdeviceptr dptr, CUstream hStream)
{
    bool pooled;
    const struct vgw_freeing freeing = forget_pointer(dptr, &pooled);
    return freed(&freeing, pooled && freeing.known, real(dptr, hStream), false);
}
