/* agreeable.c - the handlers of physical memory and multicast objects over a driver that agrees to everything, also to
 * what no driver should: parts of mappings, and addresses that are used again before a call has returned. Then threads do
 * it all at once, for the thread sanitizer. Answers "ok", or the first line whose sum is wrong.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "cuda_handlers.h"
#include "vgw_charge.h"
#include "vgw_late.h"
#include "vgw_ledger.h"
#include "vgw_tiles.h"
#include "vgw_vmm.h"

enum { THREADS = 4, ROUNDS = 1000, BYTES = 4096 };

/* The driver's place: one GPU, which is the slice's first. */
struct vgw_driver vgw_driver;
int vgw_only_gpu;
uint32_t vgw_late; /* nothing is taken unseen */
void *vgw_real_table[4096];
bool vgw_real_loaded = true;

void vgw_real_load(void)
{
}

void vgw_late_look_now(void)
{
}

bool vgw_tiles_leaving; /* nothing is bound to arrays */
void vgw_tiles_settle(void)
{
}

CUresult vgw_devices_ready(void)
{
    return vgw_region_ready() ? CUDA_SUCCESS : CUDA_ERROR_SYSTEM_NOT_READY;
}

CUresult vgw_device_gpu(CUdevice device, unsigned *gpu)
{
    *gpu = (unsigned)device;
    return CUDA_SUCCESS;
}

int vgw_device_count(void)
{
    return 1;
}

CUdevice vgw_device_at(int ordinal)
{
    return ordinal;
}

CUdevice vgw_device_of(unsigned gpu)
{
    return (CUdevice)gpu;
}

CUresult vgw_place_here(struct vgw_place *place)
{
    *place = (struct vgw_place){.gpu = 0};
    return CUDA_SUCCESS;
}

CUresult vgw_place_of_stream(CUstream stream, struct vgw_place *place)
{
    (void)stream;
    return vgw_place_here(place);
}

CUresult vgw_refuse(void)
{
    return CUDA_ERROR_NOT_SUPPORTED;
}

/* The driver. */
static CUresult new_handle(CUmemGenericAllocationHandle *handle)
{
    static uint64_t last;
    *handle = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
    return CUDA_SUCCESS;
}

static CUresult create(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                       unsigned long long flags)
{
    (void)size, (void)prop, (void)flags;
    return new_handle(handle);
}

static CUresult team(CUmemGenericAllocationHandle *handle, const CUmulticastObjectProp *prop)
{
    (void)prop;
    return new_handle(handle);
}

static CUresult let_go(CUmemGenericAllocationHandle handle)
{
    (void)handle;
    return CUDA_SUCCESS;
}

static CUresult map(CUdeviceptr at, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                    unsigned long long flags)
{
    (void)at, (void)size, (void)offset, (void)handle, (void)flags;
    return CUDA_SUCCESS;
}

static CUresult unmap(CUdeviceptr at, size_t size)
{
    (void)at, (void)size;
    return CUDA_SUCCESS;
}

static CUresult bind(CUmemGenericAllocationHandle object, size_t to, CUmemGenericAllocationHandle memory, size_t from,
                     size_t size, unsigned long long flags)
{
    (void)object, (void)to, (void)memory, (void)from, (void)size, (void)flags;
    return CUDA_SUCCESS;
}

static CUresult unbind(CUmemGenericAllocationHandle object, CUdevice device, size_t offset, size_t size)
{
    (void)object, (void)device, (void)offset, (void)size;
    return CUDA_SUCCESS;
}

static CUresult export(void *out, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type,
                       unsigned long long flags)
{
    (void)out, (void)handle, (void)type, (void)flags;
    return CUDA_SUCCESS;
}

static CUmemGenericAllocationHandle memory(size_t bytes)
{
    const CUmemAllocationProp prop = {.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
    CUmemGenericAllocationHandle handle = 0;
    if (vgw_mem_create(create, &handle, bytes, &prop, 0) != CUDA_SUCCESS)
        abort();
    return handle;
}

static CUmemGenericAllocationHandle object(void)
{
    const CUmulticastObjectProp prop = {.numDevices = 1, .size = BYTES};
    CUmemGenericAllocationHandle handle = 0;
    if (vgw_multicast_create(team, &handle, &prop) != CUDA_SUCCESS)
        abort();
    return handle;
}

#define USED(bytes)                                                                                                    \
    do {                                                                                                               \
        const uint64_t used_ = vgw_ledger_used(vgw_usage, 0);                                                          \
        if (used_ != (bytes)) {                                                                                        \
            printf("line %d: %llu\n", __LINE__, (unsigned long long)used_);                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static CUmemGenericAllocationHandle next_there, next_team;

/* Another thread was quick: the program uses address and offset again before the call has returned. */
static CUresult unmap_and_map(CUdeviceptr at, size_t size)
{
    (void)size;
    return vgw_mem_map(map, at, 3 * BYTES, 0, next_there, 0);
}

static CUresult unbind_and_bind(CUmemGenericAllocationHandle from, CUdevice device, size_t offset, size_t size)
{
    (void)device;
    return vgw_multicast_bind_mem(bind, from, offset, next_there, 0, size, 0);
}

static void mappings(void)
{
    CUmemGenericAllocationHandle one = memory(BYTES);
    next_there = memory(3 * BYTES);
    vgw_mem_map(map, BYTES, BYTES, 0, one, 0);
    vgw_mem_release(let_go, one);
    if (vgw_mem_unmap(unmap, BYTES, BYTES / 2) != CUDA_ERROR_INVALID_VALUE)
        abort();
    USED(4 * BYTES); /* a part of it was not unmapped */
    vgw_mem_unmap(unmap, BYTES + BYTES / 2, BYTES / 2);
    USED(4 * BYTES); /* and the driver did it, so it stays charged */
    vgw_mem_unmap(unmap_and_map, BYTES, BYTES);
    vgw_mem_release(let_go, next_there);
    USED(3 * BYTES); /* what is mapped there now */
    vgw_mem_unmap(unmap, BYTES, 3 * BYTES);
    USED(0);
}

static void bindings(void)
{
    CUmemGenericAllocationHandle one = memory(BYTES);
    next_team = object();
    next_there = memory(3 * BYTES);
    vgw_multicast_bind_mem(bind, next_team, 0, one, 0, BYTES, 0);
    vgw_mem_release(let_go, one);
    vgw_multicast_unbind(unbind_and_bind, next_team, 0, 0, BYTES);
    vgw_mem_release(let_go, next_there);
    USED(3 * BYTES);
    vgw_mem_release(let_go, next_team);
    USED(0);
}

static void *work(void *number)
{
    const CUdeviceptr at = (CUdeviceptr)(uintptr_t)number << 32;
    const size_t offset = (size_t)(uintptr_t)number * BYTES;
    for (unsigned round = 0; round < ROUNDS; round++) {
        const CUmemGenericAllocationHandle one = memory(BYTES), own = object();
        vgw_mem_map(map, at, BYTES, 0, one, 0);
        vgw_multicast_bind_mem(bind, own, 0, one, 0, BYTES, 0);
        vgw_multicast_bind_mem(bind, next_team, offset, one, 0, BYTES, 0);
        vgw_mem_release(let_go, one);
        vgw_mem_unmap(unmap, at, BYTES);
        vgw_mem_export(export, NULL, next_team, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
        vgw_mem_map(map, at, BYTES, 0, next_team, 0);
        vgw_multicast_unbind(unbind, next_team, 0, offset, BYTES);
        vgw_mem_unmap(unmap, at, BYTES);
        vgw_mem_release(let_go, own);
    }
    return NULL;
}

int main(void)
{
    pthread_t threads[THREADS];
    if (!vgw_region_ready())
        return 1;
    mappings();
    bindings();
    next_team = object();
    for (uintptr_t at = 0; at < THREADS; at++)
        pthread_create(&threads[at], NULL, work, (void *)(at + 1));
    for (unsigned at = 0; at < THREADS; at++)
        pthread_join(threads[at], NULL);
    USED(BYTES); /* exported: what others may have bound to it */
    vgw_mem_release(let_go, next_team);
    USED(0);
    puts("ok");
    return 0;
}
