/* vgs_pool.c - stream-ordered memory: pools that reserve device memory in pieces and keep what their release threshold allows. */
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>

#include "vgs_pool.h"

static uint64_t piece = 2ull << 20; /* a pool's reserve grows by whole pieces */

enum pool_attribute {
    REUSE_FOLLOW = 1,
    REUSE_OPPORTUNISTIC,
    REUSE_INTERNAL,
    RELEASE_THRESHOLD,
    RESERVED_CURRENT,
    RESERVED_HIGH,
    USED_CURRENT,
    USED_HIGH
};

static CUmemoryPool defaults[VGS_MAX_GPUS], currents[VGS_MAX_GPUS];
pthread_mutex_t vgs_pool_lock = PTHREAD_MUTEX_INITIALIZER;

/* Of this process, from now on: a driver may take larger ones than another. */
__attribute__((visibility("default"))) void vgsSetPoolPiece(uint64_t bytes);
void vgsSetPoolPiece(uint64_t bytes)
{
    __atomic_store_n(&piece, bytes, __ATOMIC_RELAXED);
}

static uint64_t pieces(uint64_t bytes)
{
    const uint64_t size = __atomic_load_n(&piece, __ATOMIC_RELAXED);
    return (bytes + size - 1) / size * size;
}

static uint32_t gpu_of(CUmemoryPool pool)
{
    return vgs_gpus.index[pool->device];
}

CUmemoryPool vgs_pool_new(CUdevice device)
{
    CUmemoryPool pool = vgs_new(VGS_POOL, sizeof *pool, NULL);
    if (pool) {
        pool->device = device;
        pool->reuse[REUSE_FOLLOW] = pool->reuse[REUSE_OPPORTUNISTIC] = pool->reuse[REUSE_INTERNAL] = 1;
    }
    return pool;
}

CUmemoryPool vgs_default_pool(CUdevice device)
{
    pthread_mutex_lock(&vgs_pool_lock);
    if (!defaults[device] && (defaults[device] = vgs_pool_new(device)))
        defaults[device]->is_default = true;
    CUmemoryPool pool = defaults[device];
    pthread_mutex_unlock(&vgs_pool_lock);
    return pool;
}

/* Under vgs_pool_lock: gives back what is reserved above `keep` and not in use; returns the bytes. A pool that can be
 * shared, and one that was imported, gives nothing back before its end, as the driver's do not. */
static uint64_t shrink(CUmemoryPool pool, uint64_t keep)
{
    if (pool->is_shareable && !pool->destroyed)
        return 0;
    uint64_t floor = pool->used > keep ? pool->used : keep;
    if (pool->reserved <= floor) /* the threshold may be UINT64_MAX: first this, then round */
        return 0;
    uint64_t target = pieces(floor);
    if (pool->reserved <= target)
        return 0;
    uint64_t given = pool->reserved - target;
    pool->reserved = target;
    if (!pool->is_imported) /* else it counts with the process that made it */
        vgs_refund(gpu_of(pool), given);
    return given;
}

static bool settle(void *object, void *argument)
{
    CUmemoryPool pool = object;
    CUcontext ctx = argument;
    if (pool->reserved > pool->used && pool->device == ctx->device)
        shrink(pool, pool->threshold);
    return false;
}

void vgs_pools_settle(CUcontext ctx)
{
    pthread_mutex_lock(&vgs_pool_lock);
    vgs_each(VGS_POOL, NULL, settle, ctx);
    pthread_mutex_unlock(&vgs_pool_lock);
}

static bool trim(void *object, void *argument)
{
    *(uint64_t *)argument += shrink(object, 0);
    return false;
}

uint64_t vgs_pools_trim(void)
{
    uint64_t given = 0;
    pthread_mutex_lock(&vgs_pool_lock);
    vgs_each(VGS_POOL, NULL, trim, &given);
    pthread_mutex_unlock(&vgs_pool_lock);
    return given;
}

/* Under vgs_pool_lock: the reserve for `size` bytes more. */
static bool reserve(CUmemoryPool pool, uint64_t size)
{
    uint64_t more = pieces(pool->used + size - pool->reserved);
    uint64_t given = 0;
    if (more < size && pool->reserved == 0)
        return false;
    if (!pool->is_imported && !vgs_charge(gpu_of(pool), more)) {
        vgs_each(VGS_POOL, NULL, trim, &given);
        more = pieces(pool->used + size - pool->reserved); /* this pool may have shrunk too */
        if (given == 0 || !vgs_charge(gpu_of(pool), more))
            return false;
    }
    pool->reserved += more;
    return true;
}

/* Under vgs_pool_lock. */
static bool pool_takes(CUmemoryPool pool, uint64_t size)
{
    if (pool->used + size < size || (pool->limit && pool->used + size > pool->limit))
        return false;
    if (pool->used + size > pool->reserved && !reserve(pool, size))
        return false;
    pool->used += size;
    pool->used_high = pool->used > pool->used_high ? pool->used : pool->used_high;
    pool->reserved_high = pool->reserved > pool->reserved_high ? pool->reserved : pool->reserved_high;
    return true;
}

CUresult vgs_pool_take(CUdeviceptr *dptr, size_t size, CUmemoryPool pool, CUcontext ctx)
{
    pthread_mutex_lock(&vgs_pool_lock);
    bool taken = pool_takes(pool, size);
    pthread_mutex_unlock(&vgs_pool_lock);
    VGS_CHECK(taken, CUDA_ERROR_OUT_OF_MEMORY);
    struct vgs_block block = {.size = size, .ctx = ctx, .gpu = gpu_of(pool), .kind = VGS_POOLED, .pool = pool};
    CUdeviceptr base = vgs_arena_take(&block);
    if (!base) {
        pthread_mutex_lock(&vgs_pool_lock);
        pool->used -= size;
        pthread_mutex_unlock(&vgs_pool_lock);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *dptr = base;
    return CUDA_SUCCESS;
}

static CUresult take(CUdeviceptr *dptr, size_t size, CUmemoryPool pool, CUstream handle)
{
    CUstream stream = vgs_stream(handle);
    VGS_CHECK(stream, CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(dptr && size);
    if (stream->capture)
        return vgs_capture_alloc(stream, dptr, size, pool->device);
    return vgs_pool_take(dptr, size, pool, stream->head.ctx);
}

void vgs_pool_free(CUdeviceptr base, struct vgs_block *block)
{
    CUmemoryPool pool = block->pool;
    uint64_t size = block->size;
    vgs_arena_give(base);
    pthread_mutex_lock(&vgs_pool_lock);
    pool->used -= size;
    if (pool->destroyed) {
        shrink(pool, 0);
        if (pool->used == 0)
            vgs_delete(pool);
    }
    pthread_mutex_unlock(&vgs_pool_lock);
}

VGS_API cuMemAllocAsync(CUdeviceptr *dptr, size_t bytesize, CUstream hStream)
{
    VGS_ENTER_CONTEXT();
    CUmemoryPool pool = currents[ctx->device] ? currents[ctx->device] : vgs_default_pool(ctx->device);
    return take(dptr, bytesize, pool, hStream);
}

VGS_API cuMemAllocFromPoolAsync(CUdeviceptr *dptr, size_t bytesize, CUmemoryPool pool, CUstream hStream)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(vgs_valid(pool, VGS_POOL) && !pool->destroyed && !pool->is_imported);
    return take(dptr, bytesize, pool, hStream);
}

VGS_API cuMemFreeAsync(CUdeviceptr dptr, CUstream hStream)
{
    VGS_ENTER_CONTEXT();
    CUstream stream = vgs_stream(hStream);
    VGS_CHECK(stream, CUDA_ERROR_INVALID_HANDLE);
    if (stream->capture)
        return vgs_capture_free(stream, dptr);
    CUdeviceptr base;
    struct vgs_block *block = vgs_arena_find(dptr, &base);
    if (block && base == dptr && block->kind == VGS_GRAPH_DATA)
        return vgs_graph_free(base);
    VGS_VALUE(block && base == dptr &&
              (block->kind == VGS_POOLED || block->kind == VGS_DEVICE || block->kind == VGS_MANAGED));
    vgs_free_memory(base, block);
    return CUDA_SUCCESS;
}

VGS_API cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *poolProps)
{
    VGS_ENTER();
    VGS_VALUE(pool && poolProps && poolProps->allocType == CU_MEM_ALLOCATION_TYPE_PINNED);
    VGS_CHECK(poolProps->location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
                  (poolProps->handleTypes | CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) ==
                      CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
              CUDA_ERROR_NOT_SUPPORTED);
    VGS_CHECK(vgs_device_ok(poolProps->location.id), CUDA_ERROR_INVALID_DEVICE);
    VGS_CHECK(*pool = vgs_pool_new(poolProps->location.id), CUDA_ERROR_OUT_OF_MEMORY);
    (*pool)->limit = poolProps->maxSize;
    (*pool)->is_shareable = poolProps->handleTypes != CU_MEM_HANDLE_TYPE_NONE;
    return CUDA_SUCCESS;
}

VGS_API cuMemPoolDestroy(CUmemoryPool pool)
{
    VGS_ENTER();
    VGS_VALUE(vgs_valid(pool, VGS_POOL) && !pool->is_default && !pool->destroyed);
    pthread_mutex_lock(&vgs_pool_lock);
    for (uint32_t i = 0; i < VGS_MAX_GPUS; i++)
        if (currents[i] == pool)
            currents[i] = NULL;
    pool->destroyed = true;
    shrink(pool, 0);
    if (pool->used == 0)
        vgs_delete(pool);
    pthread_mutex_unlock(&vgs_pool_lock);
    return CUDA_SUCCESS;
}

VGS_API cuMemPoolTrimTo(CUmemoryPool pool, size_t minBytesToKeep)
{
    VGS_ENTER();
    VGS_VALUE(vgs_valid(pool, VGS_POOL));
    pthread_mutex_lock(&vgs_pool_lock);
    shrink(pool, minBytesToKeep);
    pthread_mutex_unlock(&vgs_pool_lock);
    return CUDA_SUCCESS;
}

VGS_API cuMemPoolSetAttribute(CUmemoryPool pool, int attr, void *value)
{
    VGS_ENTER();
    VGS_VALUE(vgs_valid(pool, VGS_POOL) && value && attr >= REUSE_FOLLOW && attr <= USED_HIGH);
    pthread_mutex_lock(&vgs_pool_lock);
    CUresult result = CUDA_SUCCESS;
    if (attr <= REUSE_INTERNAL)
        pool->reuse[attr] = *(int *)value;
    else if (attr == RELEASE_THRESHOLD)
        pool->threshold = *(cuuint64_t *)value;
    else if (attr == RESERVED_HIGH && *(cuuint64_t *)value == 0)
        pool->reserved_high = pool->reserved;
    else if (attr == USED_HIGH && *(cuuint64_t *)value == 0)
        pool->used_high = pool->used;
    else
        result = CUDA_ERROR_INVALID_VALUE;
    pthread_mutex_unlock(&vgs_pool_lock);
    return result;
}

VGS_API cuMemPoolGetAttribute(CUmemoryPool pool, int attr, void *value)
{
    VGS_ENTER();
    VGS_VALUE(vgs_valid(pool, VGS_POOL) && value && attr >= REUSE_FOLLOW && attr <= USED_HIGH);
    pthread_mutex_lock(&vgs_pool_lock);
    const uint64_t values[] = {pool->threshold, pool->reserved, pool->reserved_high, pool->used, pool->used_high};
    if (attr <= REUSE_INTERNAL)
        *(int *)value = pool->reuse[attr];
    else
        *(cuuint64_t *)value = values[attr - RELEASE_THRESHOLD];
    pthread_mutex_unlock(&vgs_pool_lock);
    return CUDA_SUCCESS;
}

VGS_API cuMemPoolSetAccess(CUmemoryPool pool, const CUmemAccessDesc *map, size_t count)
{
    VGS_ENTER();
    VGS_VALUE(vgs_valid(pool, VGS_POOL) && (map || !count));
    return CUDA_SUCCESS;
}

VGS_API cuMemPoolGetAccess(int *flags, CUmemoryPool pool, CUmemLocation *location)
{
    VGS_ENTER();
    VGS_VALUE(flags && vgs_valid(pool, VGS_POOL) && location);
    *flags = location->type == CU_MEM_LOCATION_TYPE_DEVICE && location->id == pool->device ? 3 : 0;
    return CUDA_SUCCESS;
}

static CUresult pool_of(CUmemoryPool *pool, CUdevice dev, bool current)
{
    VGS_VALUE(pool);
    VGS_CHECK(vgs_device_ok(dev), CUDA_ERROR_INVALID_DEVICE);
    *pool = current && currents[dev] ? currents[dev] : vgs_default_pool(dev);
    return *pool ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

VGS_API cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice dev)
{
    VGS_ENTER();
    return pool_of(pool, dev, false);
}

VGS_API cuDeviceGetMemPool(CUmemoryPool *pool, CUdevice dev)
{
    VGS_ENTER();
    return pool_of(pool, dev, true);
}

VGS_API cuDeviceSetMemPool(CUdevice dev, CUmemoryPool pool)
{
    VGS_ENTER();
    VGS_CHECK(vgs_device_ok(dev), CUDA_ERROR_INVALID_DEVICE);
    VGS_VALUE(vgs_valid(pool, VGS_POOL) && pool->device == dev && !pool->is_imported);
    currents[dev] = pool;
    return CUDA_SUCCESS;
}

VGS_API cuMemGetDefaultMemPool(CUmemoryPool *pool, CUmemLocation *location, int type)
{
    VGS_ENTER();
    VGS_VALUE(location && type == CU_MEM_ALLOCATION_TYPE_PINNED);
    VGS_CHECK(location->type == CU_MEM_LOCATION_TYPE_DEVICE, CUDA_ERROR_NOT_SUPPORTED);
    return pool_of(pool, location->id, false);
}

VGS_API cuMemGetMemPool(CUmemoryPool *pool, CUmemLocation *location, int type)
{
    VGS_ENTER();
    VGS_VALUE(location && type == CU_MEM_ALLOCATION_TYPE_PINNED);
    VGS_CHECK(location->type == CU_MEM_LOCATION_TYPE_DEVICE, CUDA_ERROR_NOT_SUPPORTED);
    return pool_of(pool, location->id, true);
}
