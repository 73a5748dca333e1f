/* threads.c - eight threads allocate and free in one process; at the end the quota is whole.   threads QUOTA */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "vgw_cuda.h"
#include "cuda_prototypes.h"

#define THREADS 8
#define ROUNDS  4000
#define HELD    16

CUresult cuCtxSetCurrent(CUcontext context);
static CUcontext context;

static void *work(void *argument)
{
    unsigned state = (unsigned)(size_t)argument * 2654435761u + 1;
    CUdeviceptr held[HELD] = {0};
    if (cuCtxSetCurrent(context) != CUDA_SUCCESS)
        return (void *)1;
    for (unsigned round = 0; round < ROUNDS; round++) {
        state = state * 1664525u + 1013904223u;
        CUdeviceptr *at = &held[(state >> 8) % HELD];
        if (*at != 0) {
            if (cuMemFree_v2(*at) != CUDA_SUCCESS)
                return (void *)1;
            *at = 0;
        } else if (cuMemAlloc_v2(at, 1 + (state >> 10) % (1u << 20)) != CUDA_SUCCESS) {
            *at = 0;
        }
    }
    for (unsigned at = 0; at < HELD; at++)
        if (held[at] != 0 && cuMemFree_v2(held[at]) != CUDA_SUCCESS)
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
    if (failed != NULL || cuMemGetInfo_v2(&free, &total) != CUDA_SUCCESS || free != quota ||
        cuMemAlloc_v2(&all, quota) != CUDA_SUCCESS)
        return 1;
    puts("ok");
    return 0;
}
