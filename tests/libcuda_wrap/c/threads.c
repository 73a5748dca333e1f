/* threads.c - eight threads allocate and free in one process, plain, mapped and stream-ordered memory; at the end the
 * quota is whole.   threads QUOTA */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "vgw_cuda.h"
#include "cuda_prototypes.h"

#define THREADS 8
#define ROUNDS  4000
#define HELD    16
#define PIECE   (2u << 20) /* what physical memory comes in */

CUresult cuCtxSetCurrent(CUcontext context);
CUresult cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr addr,
                             unsigned long long flags);
CUresult cuMemAddressFree(CUdeviceptr ptr, size_t size);
static CUcontext context;

/* Mapped memory whose handle is gone: the mapping alone keeps it. */
static CUresult map(CUdeviceptr *at)
{
    const CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                      .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
    CUmemGenericAllocationHandle handle;
    CUresult result = cuMemCreate(&handle, PIECE, &prop, 0);
    if (result != CUDA_SUCCESS)
        return result;
    result = cuMemAddressReserve(at, PIECE, 0, 0, 0);
    if (result == CUDA_SUCCESS)
        result = cuMemMap(*at, PIECE, 0, handle, 0);
    const CUresult released = cuMemRelease(handle);
    return result != CUDA_SUCCESS ? result : released;
}

static CUresult unmap(CUdeviceptr at)
{
    const CUresult result = cuMemUnmap(at, PIECE);
    return result != CUDA_SUCCESS ? result : cuMemAddressFree(at, PIECE);
}

/* A place always has the same kind of memory. */
static CUresult take(unsigned place, CUdeviceptr *at, size_t bytes)
{
    return place % 4 == 3 ? map(at) : place % 4 == 2 ? cuMemAllocAsync(at, bytes, NULL) : cuMemAlloc_v2(at, bytes);
}

static CUresult give(unsigned place, CUdeviceptr at)
{
    return place % 4 == 3 ? unmap(at) : place % 4 == 2 ? cuMemFreeAsync(at, NULL) : cuMemFree_v2(at);
}

static void *work(void *argument)
{
    unsigned state = (unsigned)(size_t)argument * 2654435761u + 1;
    CUdeviceptr held[HELD] = {0};
    if (cuCtxSetCurrent(context) != CUDA_SUCCESS)
        return (void *)1;
    for (unsigned round = 0; round < ROUNDS; round++) {
        state = state * 1664525u + 1013904223u;
        const unsigned place = (state >> 8) % HELD;
        CUdeviceptr *at = &held[place];
        if (*at != 0) {
            if (give(place, *at) != CUDA_SUCCESS)
                return (void *)1;
            *at = 0;
        } else {
            const CUresult result = take(place, at, 1 + (state >> 12) % (1u << 20));
            if (result != CUDA_SUCCESS)
                *at = 0;
            if (result != CUDA_SUCCESS && result != CUDA_ERROR_OUT_OF_MEMORY)
                return (void *)1;
        }
    }
    for (unsigned place = 0; place < HELD; place++)
        if (held[place] != 0 && give(place, held[place]) != CUDA_SUCCESS)
            return (void *)1;
    return NULL;
}

int main(int count, char **arguments)
{
    pthread_t threads[THREADS];
    size_t free, total;
    CUdeviceptr all;
    if (count != 2 || cuInit(0) != CUDA_SUCCESS || cuDevicePrimaryCtxRetain(&context, 0) != CUDA_SUCCESS)
        return 2;
    for (size_t at = 0; at < THREADS; at++)
        pthread_create(&threads[at], NULL, work, (void *)at);
    void *failed = NULL, *result;
    for (size_t at = 0; at < THREADS; at++) {
        pthread_join(threads[at], &result);
        failed = failed != NULL ? failed : result;
    }
    cuCtxSetCurrent(context);
    const size_t quota = strtoull(arguments[1], NULL, 10);
    if (failed != NULL || cuCtxSynchronize() != CUDA_SUCCESS || cuMemGetInfo_v2(&free, &total) != CUDA_SUCCESS ||
        free != quota || cuMemAlloc_v2(&all, quota) != CUDA_SUCCESS)
        return 1;
    puts("ok");
    return 0;
}
