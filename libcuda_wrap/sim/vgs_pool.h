/* vgs_pool.h - a memory pool, for the two files that know what is in one: vgs_pool.c, vgs_poolshare.c. */
#ifndef VGS_POOL_H
#define VGS_POOL_H

#include <pthread.h>

#include "vgs_driver.h"

struct CUmemPoolHandle_st {
    struct vgs_object head;
    CUdevice device;
    bool is_default;
    bool destroyed;    /* lives on until its last memory is freed */
    bool is_shareable; /* was made for that, or imported */
    bool is_imported;  /* what it reserves counts with the process that made it */
    uint64_t name;     /* of a pool that was exported, wherever it is imported; 0: it was not */
    uint64_t threshold, reserved, reserved_high, used, used_high, limit;
    int reuse[4];
};

extern pthread_mutex_t vgs_pool_lock;

CUmemoryPool vgs_pool_new(CUdevice device);
/* `size` bytes of the pool, at an address of their own. */
CUresult vgs_pool_take(CUdeviceptr *dptr, size_t size, CUmemoryPool pool, CUcontext ctx);

#endif
