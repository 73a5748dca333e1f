/* green.c - green contexts: streams with a part of the GPU's processors, in the device's primary context.
 *
 * A green context retains the primary context, which owns what is allocated in it, and takes a little itself. Both are
 * measured, one after the other. To functions it is known as a CUcontext of its own, which the driver has for as long as
 * the green context lives; the table has the primary one for it.
 */
#include "vgw_charge.h"
#include "vgw_context.h"
#include "vgw_late.h"
#include "vgw_overhead.h"

#include "cuda_handlers.h"

bool vgw_green_any;

CUcontext vgw_green_primary(CUcontext context)
{
    struct vgw_entry entry;
    return vgw_table_get(VGW_GREEN, vgw_key(context), &entry) ? (CUcontext)(uintptr_t)entry.link : context;
}

uint64_t vgw_green_of(CUstream stream)
{
    CUcontext context;
    struct vgw_entry entry;
    if (!__atomic_load_n(&vgw_green_any, __ATOMIC_RELAXED) || vgw_driver.cuStreamGetCtx == NULL ||
        vgw_driver.cuStreamGetCtx(stream, &context) != CUDA_SUCCESS ||
        !vgw_table_get(VGW_GREEN, vgw_key(context), &entry))
        return 0;
    return vgw_key(context);
}

/* After the driver has made one: false undoes it. */
static bool keep(CUgreenCtx green, CUcontext primary, const struct vgw_before *before)
{
    CUcontext as_context;
    const bool fits = vgw_overhead_after(before, VGW_CONTEXT, green, primary);
    if (fits && vgw_driver.cuCtxFromGreenCtx(&as_context, green) == CUDA_SUCCESS &&
        vgw_keep(VGW_GREEN, vgw_key(as_context), 0, vgw_key(primary), before->gpu)) {
        __atomic_store_n(&vgw_green_any, true, __ATOMIC_RELEASE);
        vgw_late_context(before->gpu);
        return true;
    }
    const struct vgw_freeing freeing = vgw_forget(VGW_CONTEXT, vgw_key(green));
    vgw_freed(&freeing, vgw_driver.cuGreenCtxDestroy(green));
    return false;
}

CUresult vgw_green_create(vgw_fn_green_create *real, CUgreenCtx *phCtx, CUdevResourceDesc desc, CUdevice dev,
                          unsigned int flags)
{
    unsigned gpu;
    CUcontext primary;
    CUresult result = vgw_device_gpu(dev, &gpu);
    if (result != CUDA_SUCCESS || phCtx == NULL || desc == NULL)
        return result != CUDA_SUCCESS ? result : real(phCtx, desc, dev, flags);
    if (vgw_driver.cuDevicePrimaryCtxRetain == NULL || vgw_driver.cuCtxFromGreenCtx == NULL ||
        vgw_driver.cuGreenCtxDestroy == NULL)
        return vgw_refuse(); /* closed: what it took could not be told */
    result = vgw_primary_retain(vgw_driver.cuDevicePrimaryCtxRetain, &primary, dev);
    if (result != CUDA_SUCCESS)
        return result;
    const CUgreenCtx old = *phCtx;
    const struct vgw_before before = vgw_overhead_before(gpu);
    result = real(phCtx, desc, dev, flags);
    if (result != CUDA_SUCCESS) {
        vgw_overhead_failed(&before);
    } else if (!keep(*phCtx, primary, &before)) {
        *phCtx = old;
        result = CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result == CUDA_SUCCESS)
        vgw_driver.cuDevicePrimaryCtxRelease_v2(dev); /* not the last: the green one has retained it */
    else
        vgw_primary_release(vgw_driver.cuDevicePrimaryCtxRelease_v2, dev);
    return result;
}

CUresult vgw_green_destroy(vgw_fn_green_destroy *real, CUgreenCtx hCtx)
{
    CUcontext as_context;
    struct vgw_freeing green = {.known = false};
    if (hCtx != NULL && vgw_driver.cuCtxFromGreenCtx != NULL &&
        vgw_driver.cuCtxFromGreenCtx(&as_context, hCtx) == CUDA_SUCCESS)
        green = vgw_forget(VGW_GREEN, vgw_key(as_context));
    if (!green.known)
        return real(hCtx);
    const struct vgw_freeing own = vgw_forget(VGW_CONTEXT, vgw_key(hCtx));
    const struct vgw_releasing releasing = vgw_primary_releasing(vgw_device_of(green.entry.gpu));
    const CUresult result = vgw_freed(&green, vgw_freed(&own, real(hCtx)));
    return vgw_primary_released(&releasing, result);
}

/* A question, but what it answers is where a green context begins. */
CUresult vgw_device_resource(vgw_fn_device_resource *real, CUdevice device, CUdevResource *resource,
                             CUdevResourceType type)
{
    unsigned gpu;
    const CUresult result = vgw_device_gpu(device, &gpu);
    return result != CUDA_SUCCESS ? result : real(device, resource, type);
}
