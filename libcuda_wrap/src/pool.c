/* pool.c - stream-ordered memory: what a pool has reserved counts, whether it is in use or kept for later.
 *
 * A pool grows by whole pieces when it must, and gives back when it is trimmed or, above its release threshold, when the
 * program synchronises. Only the driver knows its reserve, so that it is asked after each step; before an allocation all
 * that the pool may grow by is charged. One lock for the pools of this process, held across the driver's call: the two
 * have to be seen together. The driver does not call back out of it.
 */
#include "vgw_pool.h"

#include <pthread.h>
#include <stdlib.h>

#include "cuda_handlers.h"
#include "vgw_charge.h"
#include "vgw_late.h"
#include "vgw_ledger.h"
#include "vgw_tiles.h"

#define PIECE                                                                                                          \
    (2ull << 20) /* by which the driver's pools grow; where it takes more, the rest is charged after the call */

struct request { /* one of the two functions */
    vgw_fn_mem_alloc_async *current;
    vgw_fn_mem_alloc_from_pool *named;
    CUdeviceptr *dptr;
    size_t bytes;
    CUstream stream;
};

pthread_mutex_t vgw_pool_lock = PTHREAD_MUTEX_INITIALIZER;
static struct vgw_pool *pools;
static bool may_give_back; /* at a synchronisation: something was freed since the last */

bool vgw_pool_ask(const struct vgw_pool *pool, CUmemPool_attribute what, uint64_t *value)
{
    cuuint64_t answer = 0;
    if (pool->destroyed || vgw_driver.cuMemPoolGetAttribute == NULL ||
        vgw_driver.cuMemPoolGetAttribute(pool->handle, what, &answer) != CUDA_SUCCESS)
        return false;
    *value = answer;
    return true;
}

/* Whoever cannot be asked keeps what it has. */
bool vgw_pool_settle(struct vgw_pool *pool)
{
    uint64_t reserved, used;
    if (!pool->imported && vgw_pool_ask(pool, CU_MEMPOOL_ATTR_USED_MEM_CURRENT, &used) && used < pool->live)
        pool->live = used; /* the end of a context has freed some */
    if (pool->gpu == VGW_NO_GPU || !vgw_pool_ask(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved))
        return false;
    if (pool->exported)
        reserved = pool->kept = reserved > pool->kept ? reserved : pool->kept;
    if (pool->imported && reserved < pool->live)
        reserved = pool->live;
    if (reserved >= pool->charged)
        return false;
    vgw_refund(pool->gpu, pool->charged - reserved);
    pool->charged = reserved;
    return true;
}

static bool trim(unsigned gpu)
{
    bool any = false;
    for (struct vgw_pool *pool = pools; pool != NULL; pool = pool->next) {
        if (pool->gpu != gpu || pool->destroyed)
            continue;
        if (vgw_driver.cuMemPoolTrimTo != NULL)
            vgw_driver.cuMemPoolTrimTo(pool->handle, 0);
        any |= vgw_pool_settle(pool);
    }
    return any;
}

/* For an allocation that is no pool's. False if a pool is at work just now, this thread's own perhaps. */
static bool reclaim(unsigned gpu)
{
    if (pthread_mutex_trylock(&vgw_pool_lock) != 0)
        return false;
    const bool any = trim(gpu);
    pthread_mutex_unlock(&vgw_pool_lock);
    return any;
}

struct vgw_pool *vgw_pool_add(CUmemoryPool handle, unsigned gpu)
{
    struct vgw_pool *pool = calloc(1, sizeof *pool);
    if (pool != NULL) {
        *pool = (struct vgw_pool){.next = pools, .handle = handle, .gpu = gpu};
        pools = pool;
        vgw_reclaim[VGW_RECLAIM_POOLS] = reclaim;
    }
    return pool;
}

static void drop(struct vgw_pool *gone)
{
    struct vgw_pool **at = &pools;
    while (*at != gone)
        at = &(*at)->next;
    *at = gone->next;
    if (gone->gpu != VGW_NO_GPU && !gone->exported) /* else others may still have what it had */
        vgw_refund(gone->gpu, gone->charged);
    free(gone);
}

/* A pool that the program made, or a device's own; no other can be told where it is. */
CUresult vgw_pool_find(CUmemoryPool handle, struct vgw_pool **found)
{
    for (*found = pools; *found != NULL; *found = (*found)->next)
        if ((*found)->handle == handle && !(*found)->destroyed)
            return CUDA_SUCCESS;
    for (int ordinal = 0; ordinal < vgw_device_count(); ordinal++) {
        CUmemoryPool own = NULL;
        unsigned gpu;
        if (vgw_driver.cuDeviceGetDefaultMemPool == NULL ||
            vgw_driver.cuDeviceGetDefaultMemPool(&own, vgw_device_at(ordinal)) != CUDA_SUCCESS || own != handle)
            continue;
        const CUresult result = vgw_device_gpu(vgw_device_at(ordinal), &gpu);
        *found = result == CUDA_SUCCESS ? vgw_pool_add(handle, gpu) : NULL;
        return result != CUDA_SUCCESS || *found != NULL ? result : CUDA_ERROR_OUT_OF_MEMORY;
    }
    return CUDA_ERROR_INVALID_VALUE;
}

static bool has_room(unsigned gpu, uint64_t bytes)
{
    const uint64_t limit = __atomic_load_n(&vgw_quota->gpus[gpu].memory_bytes, __ATOMIC_RELAXED);
    const uint64_t used = vgw_ledger_used(vgw_usage, gpu);
    return used <= limit && bytes <= limit - used;
}

static uint64_t pieces(uint64_t bytes)
{
    return (bytes + PIECE - 1) / PIECE * PIECE;
}

bool vgw_pools_make_room(unsigned gpu, uint64_t bytes)
{
    if (has_room(gpu, bytes))
        return true;
    vgw_reap();
    if (vgw_driver.cuCtxSynchronize != NULL && pools != NULL)
        vgw_driver.cuCtxSynchronize();
    trim(gpu);
    return false;
}

/* What an allocation may make the pool grow by is charged; where that does not fit at once, what it lacks. */
static bool charge_growth(struct vgw_pool *pool, size_t bytes)
{
    uint64_t growth = bytes > VGW_BYTES_MAX ? bytes : pieces(bytes);
    if (!vgw_pools_make_room(pool->gpu, growth)) {
        vgw_pool_settle(pool);
        const uint64_t kept = pool->charged > pool->live ? pool->charged - pool->live : 0;
        growth = bytes > VGW_BYTES_MAX ? bytes : bytes > kept ? pieces(bytes - kept) : 0;
    }
    if (!vgw_charge(pool->gpu, growth))
        return false;
    pool->charged += growth;
    return true;
}

/* The driver took larger pieces than we thought: the rest is charged, or the allocation undone. */
static bool charge_rest(struct vgw_pool *pool)
{
    uint64_t reserved;
    if (!vgw_pool_ask(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved) || reserved <= pool->charged)
        return true;
    if (!vgw_charge(pool->gpu, reserved - pool->charged))
        return false;
    pool->charged = reserved;
    return true;
}

void vgw_pool_owe(struct vgw_pool *pool)
{
    uint64_t reserved;
    if (pool->gpu == VGW_NO_GPU || !vgw_pool_ask(pool, CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &reserved) ||
        reserved <= pool->charged)
        return;
    vgw_owe(pool->gpu, reserved - pool->charged);
    pool->charged = reserved;
}

static CUresult call(CUmemoryPool handle, const struct request *request)
{
    return request->named != NULL ? request->named(request->dptr, request->bytes, handle, request->stream)
                                  : request->current(request->dptr, request->bytes, request->stream);
}

static bool keep(struct vgw_pool *pool, const struct request *request)
{
    struct vgw_entry old;
    const struct vgw_entry entry = {.key = *request->dptr,
                                    .bytes = request->bytes,
                                    .link = vgw_key(pool),
                                    .count = 1,
                                    .kind = VGW_POOLED,
                                    .gpu = (uint8_t)pool->gpu};
    return vgw_table_put(&entry, &old);
}

/* Under the lock. */
static CUresult take(CUmemoryPool handle, const struct request *request)
{
    struct vgw_pool *pool;
    CUresult result = vgw_pool_find(handle, &pool);
    if (result != CUDA_SUCCESS)
        return result;
    if (pool->imported)
        return CUDA_ERROR_INVALID_VALUE; /* as the driver: only its maker allocates from it */
    if (pool->gpu != VGW_NO_GPU && !charge_growth(pool, request->bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    result = call(handle, request);
    if (result == CUDA_SUCCESS) {
        pool->live += request->bytes;
        if ((pool->gpu != VGW_NO_GPU && !charge_rest(pool)) || !keep(pool, request)) {
            vgw_driver.cuMemFree_v2(*request->dptr);
            pool->live -= request->bytes;
            trim(pool->gpu);
            vgw_pool_owe(pool); /* one that can be shared gives nothing back */
            result = CUDA_ERROR_OUT_OF_MEMORY;
        }
    } else if (result == CUDA_ERROR_OUT_OF_MEMORY && pool->gpu != VGW_NO_GPU) {
        vgw_denied(pool->gpu, VGW_DENIED_DRIVER, request->bytes);
    }
    vgw_pool_settle(pool);
    return result;
}

CUresult vgw_mem_alloc_from_pool(vgw_fn_mem_alloc_from_pool *real, CUdeviceptr *dptr, size_t bytesize,
                                 CUmemoryPool pool, CUstream hStream)
{
    struct vgw_place place;
    const bool of_thread =
        hStream == NULL && real == (vgw_fn_mem_alloc_from_pool *)vgw_real(VGW_AT_cuMemAllocFromPoolAsync_ptsz);
    CUresult result = vgw_place_of_stream(of_thread ? CU_STREAM_PER_THREAD : hStream, &place);
    if (result != CUDA_SUCCESS)
        return result;
    if (dptr == NULL || pool == NULL || place.gpu == VGW_NO_GPU)
        return real(dptr, bytesize, pool, hStream);
    const struct request request = {.named = real, .dptr = dptr, .bytes = bytesize, .stream = hStream};
    pthread_mutex_lock(&vgw_pool_lock);
    result = take(pool, &request);
    pthread_mutex_unlock(&vgw_pool_lock);
    return result;
}

CUresult vgw_mem_alloc_async(vgw_fn_mem_alloc_async *real, CUdeviceptr *dptr, size_t bytesize, CUstream hStream)
{
    struct vgw_place place;
    CUmemoryPool pool = NULL;
    const bool of_thread = hStream == NULL && real == (vgw_fn_mem_alloc_async *)vgw_real(VGW_AT_cuMemAllocAsync_ptsz);
    CUresult result = vgw_place_of_stream(of_thread ? CU_STREAM_PER_THREAD : hStream, &place);
    if (result != CUDA_SUCCESS)
        return result;
    if (place.gpu == VGW_NO_GPU)
        return real(dptr, bytesize, hStream); /* a node of the graph that is captured: see graphmem.c */
    if (dptr == NULL || vgw_driver.cuDeviceGetMemPool == NULL)
        return real(NULL, bytesize, hStream);
    result = vgw_driver.cuDeviceGetMemPool(&pool, vgw_device_of(place.gpu));
    if (result != CUDA_SUCCESS)
        return result;
    const struct request request = {.current = real, .dptr = dptr, .bytes = bytesize, .stream = hStream};
    pthread_mutex_lock(&vgw_pool_lock);
    result = take(pool, &request);
    pthread_mutex_unlock(&vgw_pool_lock);
    return result;
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
    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&vgw_pool_lock);
    result = real(pool, poolProps);
    if (result == CUDA_SUCCESS && vgw_pool_add(*pool, gpu) == NULL)
        result = CUDA_ERROR_OUT_OF_MEMORY; /* the pool stays, empty: nothing can be allocated from it */
    pthread_mutex_unlock(&vgw_pool_lock);
    return result;
}

/* What is still allocated from it keeps it; the last free then gives all back. */
CUresult vgw_mem_pool_destroy(vgw_fn_mem_pool_destroy *real, CUmemoryPool pool)
{
    struct vgw_pool *found;
    pthread_mutex_lock(&vgw_pool_lock);
    const bool known = pool != NULL && vgw_pool_find(pool, &found) == CUDA_SUCCESS;
    if (known && vgw_driver.cuMemPoolTrimTo != NULL)
        vgw_driver.cuMemPoolTrimTo(pool, 0);
    if (known)
        vgw_pool_settle(found);
    const CUresult result = real(pool);
    if (known && result == CUDA_SUCCESS) {
        found->destroyed = true;
        if (found->live == 0)
            drop(found);
    }
    pthread_mutex_unlock(&vgw_pool_lock);
    return result;
}

CUresult vgw_mem_pool_trim(vgw_fn_mem_pool_trim *real, CUmemoryPool pool, size_t minBytesToKeep)
{
    struct vgw_pool *found;
    pthread_mutex_lock(&vgw_pool_lock);
    const CUresult result = real(pool, minBytesToKeep);
    if (result == CUDA_SUCCESS && vgw_pool_find(pool, &found) == CUDA_SUCCESS)
        vgw_pool_settle(found);
    pthread_mutex_unlock(&vgw_pool_lock);
    return result;
}

void vgw_pool_freed(const struct vgw_entry *entry, bool at_once)
{
    pthread_mutex_lock(&vgw_pool_lock);
    struct vgw_pool *pool = pools;
    while (pool != NULL && vgw_key(pool) != entry->link)
        pool = pool->next;
    if (pool != NULL) {
        pool->live -= entry->bytes < pool->live ? entry->bytes : pool->live;
        if (pool->destroyed && pool->live == 0)
            drop(pool);
        else if (!at_once || (!vgw_pool_settle(pool) && pool->charged > pool->live))
            __atomic_store_n(&may_give_back, true, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&vgw_pool_lock);
}

static CUresult synchronised(CUresult result)
{
    vgw_late_look();
    if (__builtin_expect(__atomic_load_n(&vgw_tiles_leaving, __ATOMIC_RELAXED), false))
        vgw_tiles_settle();
    if (__builtin_expect(__atomic_load_n(&may_give_back, __ATOMIC_RELAXED), false)) {
        __atomic_store_n(&may_give_back, false, __ATOMIC_RELAXED);
        pthread_mutex_lock(&vgw_pool_lock);
        for (struct vgw_pool *pool = pools; pool != NULL; pool = pool->next) {
            vgw_pool_settle(pool);
            if (pool->charged > pool->live) /* not all has been given back: perhaps the next time */
                __atomic_store_n(&may_give_back, true, __ATOMIC_RELAXED);
        }
        pthread_mutex_unlock(&vgw_pool_lock);
    }
    return result;
}

CUresult vgw_ctx_synchronize(vgw_fn_ctx_synchronize *real)
{
    return synchronised(real());
}

CUresult vgw_ctx_synchronize_v2(vgw_fn_ctx_synchronize_v2 *real, CUcontext ctx)
{
    return synchronised(real(ctx));
}

CUresult vgw_stream_synchronize(vgw_fn_stream_synchronize *real, CUstream hStream)
{
    return synchronised(real(hStream));
}

CUresult vgw_event_synchronize(vgw_fn_event_synchronize *real, CUevent hEvent)
{
    return synchronised(real(hEvent));
}

void vgw_pools_forked(void)
{
    pthread_mutex_init(&vgw_pool_lock, NULL);
    pools = NULL; /* left alone, not freed: another thread of the parent may have been inside */
}
