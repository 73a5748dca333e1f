/* poolshare.c - pools that several processes use.
 *
 * The maker's pool goes on being charged what it reserves, and what it once reserved stays charged to its maker when it
 * is trimmed or destroyed: the descriptor may keep it, and no call tells when the last one is closed. An importer takes
 * no new memory, but keeps the maker's when that gives it back or ends. So it is charged in full for what its imported
 * pool reserves, which the driver counts with each process: the pieces that the imported pointers lie in.
 */
#include "vgw_pool.h"

#include "cuda_handlers.h"
#include "vgw_charge.h"

CUresult vgw_mem_pool_export(vgw_fn_mem_pool_export *real, void *handle_out, CUmemoryPool pool,
                             CUmemAllocationHandleType handleType, unsigned long long flags)
{
    struct vgw_pool *found;
    pthread_mutex_lock(&vgw_pool_lock);
    const CUresult result = real(handle_out, pool, handleType, flags);
    if (result == CUDA_SUCCESS && vgw_pool_find(pool, &found) == CUDA_SUCCESS) {
        found->exported = true;
        vgw_pool_settle(found);
    }
    pthread_mutex_unlock(&vgw_pool_lock);
    return result;
}

/* The pool is empty here, whatever its maker has in it. */
CUresult vgw_mem_pool_import(vgw_fn_mem_pool_import *real, CUmemoryPool *pool_out, void *handle,
                             CUmemAllocationHandleType handleType, unsigned long long flags)
{
    struct vgw_pool *found;
    CUresult result = vgw_devices_ready();
    if (result != CUDA_SUCCESS || pool_out == NULL)
        return result != CUDA_SUCCESS ? result : real(pool_out, handle, handleType, flags);
    pthread_mutex_lock(&vgw_pool_lock);
    result = real(pool_out, handle, handleType, flags);
    if (result == CUDA_SUCCESS && vgw_pool_find(*pool_out, &found) != CUDA_SUCCESS) {
        found = vgw_pool_add(*pool_out, VGW_NO_GPU);
        if (found != NULL) {
            found->imported = true;
        } else {
            vgw_driver.cuMemPoolDestroy(*pool_out);
            result = CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    pthread_mutex_unlock(&vgw_pool_lock);
    return result;
}

/* No call tells where an imported pool is, but one tells where a pointer is. Host memory: VGW_NO_GPU. */
static CUresult gpu_of(CUdeviceptr pointer, unsigned *gpu)
{
    unsigned type = 0;
    int device = -1;
    *gpu = VGW_NO_GPU;
    if (vgw_driver.cuPointerGetAttribute == NULL ||
        vgw_driver.cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, pointer) != CUDA_SUCCESS)
        return vgw_refuse();
    if (type == CU_MEMORYTYPE_HOST)
        return CUDA_SUCCESS;
    if (vgw_driver.cuPointerGetAttribute(&device, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, pointer) != CUDA_SUCCESS)
        return vgw_refuse();
    return vgw_device_gpu(device, gpu);
}

/* Charges what the pool has reserved now, and at least the pointers that came from it. */
static CUresult charge(struct vgw_pool *pool)
{
    uint64_t reserved;
    if (!vgw_pool_ask(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved))
        return vgw_refuse(); /* closed: nobody knows how much it keeps */
    const uint64_t bytes = reserved > pool->live ? reserved : pool->live;
    if (bytes > pool->charged) {
        vgw_pools_make_room(pool->gpu, bytes - pool->charged);
        if (!vgw_charge(pool->gpu, bytes - pool->charged))
            return CUDA_ERROR_OUT_OF_MEMORY;
        pool->charged = bytes;
    }
    return CUDA_SUCCESS;
}

/* After the call: only now can its place and size be asked for. */
static CUresult take(struct vgw_pool *pool, CUdeviceptr pointer)
{
    CUdeviceptr base;
    size_t bytes = 0;
    unsigned gpu;
    struct vgw_entry entry, old;
    CUresult result = gpu_of(pointer, &gpu);
    if (result != CUDA_SUCCESS || gpu == VGW_NO_GPU)
        return result;
    pool->gpu = gpu;
    if (vgw_driver.cuMemGetAddressRange_v2 == NULL ||
        vgw_driver.cuMemGetAddressRange_v2(&base, &bytes, pointer) != CUDA_SUCCESS)
        return vgw_refuse();
    if (vgw_table_get(VGW_POOLED, pointer, &entry) && entry.link == vgw_key(pool))
        return CUDA_SUCCESS; /* imported once more: it is the same memory */
    entry = (struct vgw_entry){.key = pointer,
                               .bytes = bytes,
                               .link = vgw_key(pool),
                               .count = 1,
                               .kind = VGW_POOLED,
                               .gpu = (uint8_t)pool->gpu};
    pool->live += bytes;
    result = charge(pool);
    if (result == CUDA_SUCCESS && !vgw_table_put(&entry, &old))
        result = CUDA_ERROR_OUT_OF_MEMORY;
    if (result != CUDA_SUCCESS)
        pool->live -= bytes;
    return result;
}

/* A pointer that does not fit is freed before the program has seen it. What the pool keeps of it all the same is owed:
 * its maker has taken it already, and now this process has it too. */
static void undo(struct vgw_pool *pool, CUdeviceptr pointer)
{
    vgw_driver.cuMemFree_v2(pointer);
    vgw_pool_settle(pool);
    vgw_pool_owe(pool);
}

CUresult vgw_mem_pool_import_pointer(vgw_fn_mem_pool_import_pointer *real, CUdeviceptr *ptr_out, CUmemoryPool pool,
                                     CUmemPoolPtrExportData *shareData)
{
    struct vgw_pool *found;
    CUresult result = vgw_devices_ready();
    if (result != CUDA_SUCCESS || ptr_out == NULL || pool == NULL)
        return result != CUDA_SUCCESS ? result : real(ptr_out, pool, shareData);
    pthread_mutex_lock(&vgw_pool_lock);
    result = vgw_pool_find(pool, &found);
    if (result == CUDA_SUCCESS && !found->imported)
        result = CUDA_ERROR_INVALID_VALUE;
    if (result == CUDA_SUCCESS)
        result = real(ptr_out, pool, shareData);
    if (result == CUDA_SUCCESS) {
        result = take(found, *ptr_out);
        if (result != CUDA_SUCCESS)
            undo(found, *ptr_out);
    }
    pthread_mutex_unlock(&vgw_pool_lock);
    return result;
}
