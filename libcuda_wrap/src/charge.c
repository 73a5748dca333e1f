/* charge.c - linear memory: cuMemAlloc and its family, from pools and streams too.
 *
 * The quota is charged before the driver is called, so that two threads cannot both pass, and given back if the driver
 * refuses. No lock is held across a driver call, which may call back into us.
 */
#include "vgw_charge.h"

#include "cuda_handlers.h"

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

/* Memory of a pool belongs to the device: the end of a context does not free it, so that it has no link to one. */
static CUresult finish_async(CUresult result, const CUdeviceptr *dptr, size_t bytes, unsigned gpu, CUstream stream)
{
    if (result == CUDA_SUCCESS && gpu != VGW_NO_GPU && !vgw_keep(VGW_POINTER, *dptr, bytes, 0, gpu)) {
        vgw_driver.cuMemFreeAsync(*dptr, stream);
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result != CUDA_SUCCESS && gpu != VGW_NO_GPU)
        vgw_refund(gpu, bytes);
    return result;
}

CUresult vgw_mem_alloc_async(vgw_fn_mem_alloc_async *real, CUdeviceptr *dptr, size_t bytesize, CUstream hStream)
{
    struct vgw_place place;
    const bool of_thread = hStream == NULL && real == (vgw_fn_mem_alloc_async *)vgw_real(VGW_AT_cuMemAllocAsync_ptsz);
    CUresult result = vgw_place_of_stream(of_thread ? CU_STREAM_PER_THREAD : hStream, &place);
    if (result != CUDA_SUCCESS)
        return result;
    if (dptr == NULL)
        return real(dptr, bytesize, hStream);
    if (!vgw_charge(place.gpu, bytesize))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return finish_async(real(dptr, bytesize, hStream), dptr, bytesize, place.gpu, hStream);
}

CUresult vgw_mem_pool_create(vgw_fn_mem_pool_create *real, CUmemoryPool *pool, const CUmemPoolProps *poolProps)
{
    unsigned gpu = VGW_NO_GPU;
    if (pool == NULL || poolProps == NULL)
        return real(pool, poolProps);
    if (poolProps->allocType == CU_MEM_ALLOCATION_TYPE_MANAGED)
        return vgw_refuse(); /* it has no place of its own, so nobody could be charged */
    CUresult result = CUDA_SUCCESS;
    if (poolProps->location.type == CU_MEM_LOCATION_TYPE_DEVICE)
        result = vgw_device_gpu(poolProps->location.id, &gpu);
    if (result == CUDA_SUCCESS)
        result = real(pool, poolProps);
    if (result == CUDA_SUCCESS && !vgw_keep(VGW_POOL, vgw_key(*pool), 0, 0, gpu))
        result = CUDA_ERROR_OUT_OF_MEMORY; /* the pool stays, empty: nothing can be allocated from it */
    return result;
}

/* A pool that the program made, or a device's own; no other can be told where it is. */
static CUresult pool_gpu(CUmemoryPool pool, unsigned *gpu)
{
    struct vgw_entry entry;
    if (vgw_table_get(VGW_POOL, vgw_key(pool), &entry)) {
        *gpu = entry.gpu;
        return CUDA_SUCCESS;
    }
    CUresult result = vgw_devices_ready();
    for (int ordinal = 0; result == CUDA_SUCCESS && ordinal < vgw_device_count(); ordinal++) {
        CUmemoryPool own = NULL;
        if (vgw_driver.cuDeviceGetDefaultMemPool != NULL &&
            vgw_driver.cuDeviceGetDefaultMemPool(&own, vgw_device_at(ordinal)) == CUDA_SUCCESS && own == pool)
            return vgw_device_gpu(vgw_device_at(ordinal), gpu);
    }
    return result != CUDA_SUCCESS ? result : CUDA_ERROR_INVALID_VALUE;
}

CUresult vgw_mem_alloc_from_pool(vgw_fn_mem_alloc_from_pool *real, CUdeviceptr *dptr, size_t bytesize,
                                 CUmemoryPool pool, CUstream hStream)
{
    struct vgw_place place;
    unsigned gpu;
    const bool of_thread =
        hStream == NULL && real == (vgw_fn_mem_alloc_from_pool *)vgw_real(VGW_AT_cuMemAllocFromPoolAsync_ptsz);
    CUresult result = vgw_place_of_stream(of_thread ? CU_STREAM_PER_THREAD : hStream, &place);
    if (result != CUDA_SUCCESS)
        return result;
    if (dptr == NULL || pool == NULL)
        return real(dptr, bytesize, pool, hStream);
    result = pool_gpu(pool, &gpu);
    if (result != CUDA_SUCCESS)
        return result;
    if (gpu != VGW_NO_GPU && !vgw_charge(gpu, bytesize))
        return CUDA_ERROR_OUT_OF_MEMORY;
    return finish_async(real(dptr, bytesize, pool, hStream), dptr, bytesize, gpu, hStream);
}

CUresult vgw_mem_free(vgw_fn_mem_free *real, CUdeviceptr dptr)
{
    const struct vgw_freeing freeing = vgw_forget(VGW_POINTER, dptr);
    return vgw_freed(&freeing, real(dptr));
}

CUresult vgw_mem_free_v1(vgw_fn_mem_free_v1 *real, CUdeviceptr_v1 dptr)
{
    const struct vgw_freeing freeing = vgw_forget(VGW_POINTER, dptr);
    return vgw_freed(&freeing, real(dptr));
}

CUresult vgw_mem_free_async(vgw_fn_mem_free_async *real, CUdeviceptr dptr, CUstream hStream)
{
    const struct vgw_freeing freeing = vgw_forget(VGW_POINTER, dptr);
    return vgw_freed(&freeing, real(dptr, hStream));
}
