/* vgw_context.h - primary contexts, which end with the last release of whatever kind; green contexts, which are primary
 * ones once more. */
#ifndef VGW_CONTEXT_H
#define VGW_CONTEXT_H

#include "vgw_driver.h"

/* Around a call that may be the last to release the device's primary context. The second with its result, which it
 * returns. */
struct vgw_releasing {
    CUcontext context;
    uint64_t mark;
    CUdevice device;
};
struct vgw_releasing vgw_primary_releasing(CUdevice dev);
CUresult vgw_primary_released(const struct vgw_releasing *releasing, CUresult result);

extern bool vgw_green_any; /* green contexts in this process, ever */

/* The context that memory belongs to which is allocated in this one: itself, or a green one's primary context. */
CUcontext vgw_green_primary(CUcontext context);

/* Not 0, and different for each, for streams of green contexts: there a kernel has fewer processors. */
uint64_t vgw_green_of(CUstream stream);

#endif
