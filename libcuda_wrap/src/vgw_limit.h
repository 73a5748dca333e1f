/* vgw_limit.h - what every function does that makes the GPU work, around the driver's call. */
#ifndef VGW_LIMIT_H
#define VGW_LIMIT_H

#include "vgw_driver.h"
#include "vgw_measure.h"
#include "vgw_region.h"

/* Whether all of the slice's GPUs are the container's for all of the time: then there is nothing to do. */
static inline bool vgw_no_limit(void)
{
    const struct vgw_quota *quota = __atomic_load_n(&vgw_quota, __ATOMIC_ACQUIRE);
    if (__builtin_expect(quota == NULL, false))
        return true; /* cuInit has failed, or was not called: the driver says so */
    for (unsigned gpu = 0; gpu < quota->gpu_count; gpu++)
        if (__builtin_expect(__atomic_load_n(&quota->gpus[gpu].cores_percent, __ATOMIC_RELAXED) != 100, false))
            return false;
    return true;
}

/* Waits for the share. what: equal things with about the same size (threads, bytes) cost about the same. */
void vgw_limit_begin(struct vgw_launch *launch, const void *what, uint64_t size, CUstream stream);
CUresult vgw_limit_end(const struct vgw_launch *launch, CUresult result);

/* The stream that a function's stream argument means. of_thread: it is the per-thread default stream's own form. */
static inline CUstream vgw_meant(CUstream stream, bool of_thread)
{
    return stream == NULL && of_thread ? CU_STREAM_PER_THREAD : stream;
}

#define VGW_IS(function) ((const void *)real == vgw_real(VGW_AT_##function))

#endif
