/* context.c - contexts: whose device must be of the slice, and whose end frees what was allocated in them. */
#include "cuda_handlers.h"
#include "vgw_context.h"
#include "vgw_late.h"
#include "vgw_measure.h"
#include "vgw_overhead.h"
#include "vgw_tiles.h"

static CUcontext primary[VGW_DEVICES_MAX]; /* by CUdevice, from when it was first retained */

/* Takes what belongs to a context aside, so that what another context of the same handle allocates later is not
 * mistaken for it. */
static uint64_t set_aside(CUcontext context)
{
    static uint64_t last_mark;
    const uint64_t mark = ~__atomic_add_fetch(&last_mark, 1, __ATOMIC_RELAXED); /* no address */
    if (context != NULL) {
        vgw_table_relink(vgw_key(context), mark);
        vgw_measure_forget(context);
        vgw_tiles_set_aside(context, mark);
    }
    return mark;
}

static void ended(uint64_t mark, CUcontext context, bool is_gone)
{
    uint64_t bytes[VGW_MAX_GPUS] = {0};
    if (is_gone)
        vgw_table_drop(mark, bytes);
    else if (context != NULL)
        vgw_table_relink(mark, vgw_key(context));
    if (is_gone)
        vgw_late_unloaded();
    vgw_tiles_context_ended(mark, is_gone);
    for (unsigned gpu = 0; gpu < VGW_MAX_GPUS; gpu++) {
        vgw_refund(gpu, bytes[gpu]);
        if (is_gone && (bytes[gpu] != 0 || vgw_overhead_beyond(gpu)))
            vgw_late_on(gpu); /* what was taken late there has gone as well */
    }
}

/* After the driver has made a context: what it takes is charged, or it is undone before the program has seen it. */
static CUresult created(CUresult result, CUcontext *made, CUcontext old, const struct vgw_before *before)
{
    if (result != CUDA_SUCCESS) {
        vgw_overhead_failed(before);
        return result;
    }
    if (vgw_overhead_after(before, VGW_CONTEXT, *made, *made)) {
        vgw_late_context(before->gpu);
        return CUDA_SUCCESS;
    }
    vgw_driver.cuCtxDestroy_v2(*made);
    *made = old;
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/* `call` is the driver's function with its arguments. */
#define CREATE_CONTEXT(call)                                                                                           \
    unsigned gpu;                                                                                                      \
    const CUresult result = vgw_device_gpu(dev, &gpu);                                                                 \
    if (result != CUDA_SUCCESS || pctx == NULL)                                                                        \
        return result != CUDA_SUCCESS ? result : call;                                                                 \
    CUcontext old = *pctx;                                                                                             \
    const struct vgw_before before = vgw_overhead_before(gpu);                                                         \
    return created(call, pctx, old, &before)

CUresult vgw_ctx_create(vgw_fn_ctx_create *real, CUcontext *pctx, unsigned int flags, CUdevice dev)
{
    CREATE_CONTEXT(real(pctx, flags, dev));
}

CUresult vgw_ctx_create_v3(vgw_fn_ctx_create_v3 *real, CUcontext *pctx, CUexecAffinityParam *paramsArray, int numParams,
                           unsigned int flags, CUdevice dev)
{
    CREATE_CONTEXT(real(pctx, paramsArray, numParams, flags, dev));
}

CUresult vgw_ctx_create_v4(vgw_fn_ctx_create_v4 *real, CUcontext *pctx, CUctxCreateParams *ctxCreateParams,
                           unsigned int flags, CUdevice dev)
{
    CREATE_CONTEXT(real(pctx, ctxCreateParams, flags, dev));
}

CUresult vgw_ctx_destroy(vgw_fn_ctx_destroy *real, CUcontext ctx)
{
    const uint64_t mark = set_aside(ctx);
    const CUresult result = real(ctx);
    ended(mark, ctx, result == CUDA_SUCCESS);
    return result;
}

/* Only the first retain makes the context. */
static bool is_active(CUdevice dev)
{
    unsigned int flags;
    int active = 0;
    return vgw_driver.cuDevicePrimaryCtxGetState != NULL &&
           vgw_driver.cuDevicePrimaryCtxGetState(dev, &flags, &active) == CUDA_SUCCESS && active;
}

CUresult vgw_primary_retain(vgw_fn_primary_retain *real, CUcontext *pctx, CUdevice dev)
{
    unsigned gpu;
    CUresult result = vgw_device_gpu(dev, &gpu);
    if (result != CUDA_SUCCESS || pctx == NULL)
        return result != CUDA_SUCCESS ? result : real(pctx, dev);
    const CUcontext old = *pctx;
    const bool is_first = !is_active(dev);
    struct vgw_before before = {.gpu = gpu};
    if (is_first)
        before = vgw_overhead_before(gpu);
    result = real(pctx, dev);
    if (result != CUDA_SUCCESS && is_first)
        vgw_overhead_failed(&before);
    if (result == CUDA_SUCCESS && is_first && !vgw_overhead_after(&before, VGW_CONTEXT, *pctx, *pctx)) {
        vgw_driver.cuDevicePrimaryCtxRelease_v2(dev);
        *pctx = old;
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (result == CUDA_SUCCESS)
        __atomic_store_n(&primary[dev], *pctx, __ATOMIC_RELEASE);
    if (result == CUDA_SUCCESS && is_first)
        vgw_late_context(gpu);
    return result;
}

static CUcontext primary_of(CUdevice dev)
{
    return dev < 0 || dev >= VGW_DEVICES_MAX ? NULL : __atomic_load_n(&primary[dev], __ATOMIC_ACQUIRE);
}

struct vgw_releasing vgw_primary_releasing(CUdevice dev)
{
    const CUcontext context = primary_of(dev);
    return (struct vgw_releasing){.context = context, .mark = set_aside(context), .device = dev};
}

CUresult vgw_primary_released(const struct vgw_releasing *releasing, CUresult result)
{
    unsigned int flags;
    int active = 1; /* closed: what may still be there stays charged */
    if (result == CUDA_SUCCESS && vgw_driver.cuDevicePrimaryCtxGetState != NULL)
        vgw_driver.cuDevicePrimaryCtxGetState(releasing->device, &flags, &active);
    ended(releasing->mark, releasing->context, !active);
    return result;
}

CUresult vgw_primary_release(vgw_fn_primary_release *real, CUdevice dev)
{
    const struct vgw_releasing releasing = vgw_primary_releasing(dev);
    return vgw_primary_released(&releasing, real(dev));
}

CUresult vgw_primary_reset(vgw_fn_primary_reset *real, CUdevice dev)
{
    const CUcontext context = primary_of(dev);
    const uint64_t mark = set_aside(context);
    const CUresult result = real(dev);
    ended(mark, context, result == CUDA_SUCCESS);
    return result;
}

/* Bytes of device memory for one unit of a limit: heap and print buffer are sizes, the stack is one per thread that may
 * run. */
static uint64_t bytes_per_unit(CUlimit limit)
{
    CUdevice device;
    int processors = 1, threads = 1;
    if (limit != CU_LIMIT_STACK_SIZE || vgw_driver.cuCtxGetDevice(&device) != CUDA_SUCCESS)
        return 1;
    vgw_driver.cuDeviceGetAttribute(&processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device);
    vgw_driver.cuDeviceGetAttribute(&threads, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, device);
    return (uint64_t)processors * (uint64_t)threads;
}

/* What a limit has grown by since the context was new is charged until the context ends. */
static CUresult grow_limit(vgw_fn_ctx_set_limit *real, CUlimit limit, size_t value, size_t before,
                           const struct vgw_place *place)
{
    const uint64_t unit = bytes_per_unit(limit), key = vgw_key(place->context) ^ (uint64_t)limit;
    uint64_t wanted;
    struct vgw_entry entry = {.bytes = 0};
    if (__builtin_mul_overflow(value > before ? value - before : 0, unit, &wanted) || !vgw_charge(place->gpu, wanted))
        return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = real(limit, value);
    if (result != CUDA_SUCCESS) {
        vgw_refund(place->gpu, wanted);
        return result;
    }
    vgw_table_take(VGW_LIMIT, key, &entry);
    const uint64_t shrunk = value < before ? (before - value) * unit : 0;
    const uint64_t back = shrunk < entry.bytes ? shrunk : entry.bytes;
    vgw_refund(place->gpu, back);
    vgw_keep(VGW_LIMIT, key, entry.bytes + wanted - back, vgw_key(place->context), place->gpu);
    return CUDA_SUCCESS;
}

CUresult vgw_ctx_set_limit(vgw_fn_ctx_set_limit *real, CUlimit limit, size_t value)
{
    struct vgw_place place;
    size_t before;
    CUresult result = vgw_place_here(&place);
    if (result != CUDA_SUCCESS)
        return result;
    if ((limit != CU_LIMIT_STACK_SIZE && limit != CU_LIMIT_PRINTF_FIFO_SIZE && limit != CU_LIMIT_MALLOC_HEAP_SIZE) ||
        vgw_driver.cuCtxGetLimit == NULL)
        return real(limit, value);
    result = vgw_driver.cuCtxGetLimit(&before, limit);
    return result != CUDA_SUCCESS ? result : grow_limit(real, limit, value, before, &place);
}
