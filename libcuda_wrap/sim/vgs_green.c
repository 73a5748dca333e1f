/* vgs_green.c - green contexts: a primary context once more, with streams of its own and a part of the GPU's processors.
 * The part is kept account of, but has no effect: a kernel takes the same time everywhere, as kernels never run beside one another here.
 */
#include <string.h>

#include "vgs_driver.h"

#define PROCESSORS 132u /* as the attribute says: vgs_device.c */
#define SMALLEST   8u   /* of a part, and what its size is a multiple of: compute capability 9.0 */
#define FINEST     2u   /* where clusters do not matter */
#define OWN_PART   8    /* of what a context takes: for queues, and the default stream */

struct CUdevResource_st { /* as the driver's, which keeps `internal` to itself */
    unsigned int type;
    unsigned char padding[4];
    struct {
        uint64_t split; /* which split made it; 0: none */
        CUdevice device;
        unsigned char rest[76];
    } internal;
    unsigned int count, smallest, alignment;
    unsigned char external[36];
};
_Static_assert(sizeof(struct CUdevResource_st) == 144, "CUDA 13.0");

struct CUdevResourceDesc_st {
    struct vgs_object head;
    CUdevResource sum;
};

struct CUgreenCtx_st {
    struct vgs_object head; /* ctx: the primary one; NULL: that has ended */
    CUcontext as_context;
    CUdevResource resource;
    uint64_t charged, id;
};

static void fill(CUdevResource *out, CUdevice device, unsigned int count, uint64_t split)
{
    memset(out, 0, sizeof *out);
    out->type = CU_DEV_RESOURCE_TYPE_SM;
    out->internal.device = device;
    out->internal.split = split;
    out->count = count;
    out->smallest = out->alignment = SMALLEST;
}

VGS_API cuDeviceGetDevResource(CUdevice device, CUdevResource *resource, CUdevResourceType type)
{
    VGS_ENTER();
    VGS_VALUE(resource);
    VGS_CHECK(vgs_device_ok(device), CUDA_ERROR_INVALID_DEVICE);
    VGS_CHECK(type == CU_DEV_RESOURCE_TYPE_SM, CUDA_ERROR_INVALID_RESOURCE_TYPE);
    fill(resource, device, PROCESSORS, 0);
    return CUDA_SUCCESS;
}

VGS_API cuDevSmResourceSplitByCount(CUdevResource *result, unsigned int *groups, const CUdevResource *input,
                                    CUdevResource *remaining, unsigned int flags, unsigned int least)
{
    VGS_ENTER();
    VGS_VALUE(groups && input && flags <= 3);
    VGS_CHECK(input->type == CU_DEV_RESOURCE_TYPE_SM, CUDA_ERROR_INVALID_RESOURCE_TYPE);
    VGS_CHECK(input->internal.split == 0, CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION); /* not before it has a context */
    VGS_VALUE(least <= input->count);
    const unsigned int step = flags & 1 ? FINEST : SMALLEST;
    const unsigned int each = least == 0 ? step : (least + step - 1) / step * step;
    unsigned int most = input->count / each, count = result && *groups < most ? *groups : most;
    *groups = count;
    if (!result)
        return CUDA_SUCCESS;
    const uint64_t split = vgs_next_id();
    for (unsigned int i = 0; i < count; i++)
        fill(&result[i], input->internal.device, each, split);
    if (remaining)
        fill(remaining, input->internal.device, input->count - count * each, split);
    return CUDA_SUCCESS;
}

VGS_API cuDevResourceGenerateDesc(CUdevResourceDesc *desc, CUdevResource *resources, unsigned int count)
{
    VGS_ENTER();
    VGS_VALUE(desc && resources && count);
    CUdevResource sum = resources[0];
    for (unsigned int i = 0; i < count; i++) {
        VGS_CHECK(resources[i].type == CU_DEV_RESOURCE_TYPE_SM, CUDA_ERROR_INVALID_RESOURCE_TYPE);
        VGS_CHECK(resources[i].internal.device == sum.internal.device &&
                      resources[i].internal.split == sum.internal.split && (i == 0 || sum.internal.split),
                  CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION);
        sum.count += i == 0 ? 0 : resources[i].count;
    }
    struct CUdevResourceDesc_st *made = vgs_new(VGS_RESOURCES, sizeof *made, NULL);
    VGS_CHECK(made, CUDA_ERROR_OUT_OF_MEMORY);
    made->sum = sum;
    made->sum.internal.split = 0; /* of a context, which may be split again */
    *desc = made;
    return CUDA_SUCCESS;
}

static CUresult create(CUgreenCtx *out, CUdevResourceDesc desc, CUcontext primary)
{
    const uint64_t bytes = vgs_state->context_bytes / OWN_PART;
    CUgreenCtx green = vgs_new(VGS_GREEN, sizeof *green, primary);
    CUcontext as_context = vgs_new(VGS_CONTEXT, sizeof *as_context, NULL);
    if (!green || !as_context || (bytes && !vgs_charge(primary->gpu, bytes))) {
        if (green)
            vgs_delete(green);
        if (as_context)
            vgs_delete(as_context);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    as_context->green_of = primary;
    as_context->device = primary->device;
    as_context->gpu = primary->gpu;
    as_context->main.head.ctx = primary;
    as_context->main.green = as_context;
    as_context->main.id = vgs_next_id();
    green->as_context = as_context;
    green->resource = desc->sum;
    green->charged = bytes;
    green->id = vgs_next_id();
    *out = green;
    return CUDA_SUCCESS;
}

VGS_API cuGreenCtxCreate(CUgreenCtx *phCtx, CUdevResourceDesc desc, CUdevice dev, unsigned int flags)
{
    VGS_ENTER();
    VGS_VALUE(phCtx && vgs_valid(desc, VGS_RESOURCES) && flags == 1);
    VGS_CHECK(vgs_device_ok(dev), CUDA_ERROR_INVALID_DEVICE);
    VGS_VALUE(desc->sum.internal.device == dev);
    CUcontext primary;
    CUresult result = vgs_primary_retain(dev, &primary);
    VGS_CHECK(result == CUDA_SUCCESS, result);
    result = create(phCtx, desc, primary);
    if (result != CUDA_SUCCESS)
        vgs_primary_release(primary);
    return result;
}

struct walk { /* over the streams of a green context */
    CUcontext green;
    CUstream latest;     /* whose work ends last */
    uint64_t not_before; /* for what comes later; 0: nothing changes */
    bool capturing;
};

static bool see(CUstream stream, struct walk *walk)
{
    if (stream->green != walk->green)
        return false;
    walk->capturing |= stream->capture != NULL;
    if (stream->end_virtual_ns < walk->not_before)
        __atomic_store_n(&stream->end_virtual_ns, walk->not_before, __ATOMIC_RELAXED);
    if (!walk->latest || stream->end_virtual_ns > walk->latest->end_virtual_ns)
        walk->latest = stream;
    return false;
}

static bool see_object(void *stream, void *walk)
{
    return see(stream, walk);
}

static struct walk walk_of(CUgreenCtx green, uint64_t not_before)
{
    struct walk walk = {.green = green->as_context, .not_before = not_before};
    see(&green->as_context->main, &walk);
    vgs_each(VGS_STREAM, green->head.ctx, see_object, &walk);
    return walk;
}

static bool forget_stream(void *object, void *green)
{
    CUstream stream = object;
    if (stream->green == green)
        vgs_delete(stream);
    return false;
}

/* All but the release of its primary context. */
static void end(CUgreenCtx green)
{
    const CUcontext primary = green->head.ctx;
    vgs_wait_stream(walk_of(green, 0).latest);
    vgs_each(VGS_STREAM, primary, forget_stream, green->as_context);
    if (green->charged)
        vgs_refund(primary->gpu, green->charged);
    green->as_context->dead = true; /* the handle stays: threads may have it on their stacks */
    green->as_context->green_of = NULL;
    vgs_delete(green);
}

static bool end_object(void *green, void *unused)
{
    (void)unused;
    end(green);
    return false;
}

void vgs_greens_end(CUcontext primary)
{
    vgs_each(VGS_GREEN, primary, end_object, NULL);
}

static bool add_main(void *object, void *latest)
{
    CUgreenCtx green = object;
    CUstream *last = latest, main = &green->as_context->main;
    if (!*last || main->end_virtual_ns > (*last)->end_virtual_ns)
        *last = main;
    return false;
}

/* Their other streams are the primary context's. */
void vgs_greens_wait(CUcontext primary)
{
    CUstream latest = NULL;
    vgs_each(VGS_GREEN, primary, add_main, &latest);
    if (latest)
        vgs_wait_stream(latest);
}

VGS_API cuGreenCtxDestroy(CUgreenCtx hCtx)
{
    VGS_ENTER();
    VGS_CHECK(vgs_valid(hCtx, VGS_GREEN), CUDA_ERROR_INVALID_CONTEXT);
    const CUcontext primary = hCtx->head.ctx;
    end(hCtx);
    vgs_primary_release(primary);
    return CUDA_SUCCESS;
}

VGS_API cuCtxFromGreenCtx(CUcontext *pContext, CUgreenCtx hCtx)
{
    VGS_ENTER();
    VGS_VALUE(pContext);
    VGS_CHECK(vgs_valid(hCtx, VGS_GREEN), CUDA_ERROR_INVALID_CONTEXT);
    *pContext = hCtx->as_context;
    return CUDA_SUCCESS;
}

static bool is_its(void *object, void *as_context)
{
    return ((CUgreenCtx)object)->as_context == as_context;
}

static CUgreenCtx green_of(CUcontext as_context)
{
    return as_context ? vgs_each(VGS_GREEN, NULL, is_its, as_context) : NULL;
}

VGS_API cuCtxGetDevResource(CUcontext hCtx, CUdevResource *resource, CUdevResourceType type)
{
    VGS_ENTER();
    CUcontext ctx;
    VGS_VALUE(resource);
    VGS_CHECK(type == CU_DEV_RESOURCE_TYPE_SM, CUDA_ERROR_INVALID_RESOURCE_TYPE);
    CUresult result = vgs_context_of(hCtx, &ctx);
    VGS_CHECK(result == CUDA_SUCCESS, result);
    const CUgreenCtx green = green_of(hCtx ? hCtx : vgs_green_here());
    if (green)
        *resource = green->resource;
    else
        fill(resource, ctx->device, PROCESSORS, 0);
    return CUDA_SUCCESS;
}

VGS_API cuGreenCtxGetDevResource(CUgreenCtx hCtx, CUdevResource *resource, CUdevResourceType type)
{
    VGS_ENTER();
    VGS_VALUE(resource);
    VGS_CHECK(vgs_valid(hCtx, VGS_GREEN), CUDA_ERROR_INVALID_CONTEXT);
    VGS_CHECK(type == CU_DEV_RESOURCE_TYPE_SM, CUDA_ERROR_INVALID_RESOURCE_TYPE);
    *resource = hCtx->resource;
    return CUDA_SUCCESS;
}

VGS_API cuGreenCtxGetId(CUgreenCtx hCtx, unsigned long long *id)
{
    VGS_ENTER();
    VGS_VALUE(id);
    if (!hCtx)
        hCtx = green_of(vgs_green_here());
    VGS_CHECK(vgs_valid(hCtx, VGS_GREEN), CUDA_ERROR_INVALID_CONTEXT);
    *id = hCtx->id;
    return CUDA_SUCCESS;
}

VGS_API cuGreenCtxRecordEvent(CUgreenCtx hCtx, CUevent hEvent)
{
    VGS_ENTER();
    VGS_CHECK(vgs_valid(hCtx, VGS_GREEN), CUDA_ERROR_INVALID_CONTEXT);
    const struct walk walk = walk_of(hCtx, 0);
    VGS_CHECK(!walk.capturing, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    return vgs_event_record(hEvent, hCtx->head.ctx, walk.latest) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

VGS_API cuGreenCtxWaitEvent(CUgreenCtx hCtx, CUevent hEvent)
{
    VGS_ENTER();
    VGS_CHECK(vgs_valid(hCtx, VGS_GREEN), CUDA_ERROR_INVALID_CONTEXT);
    VGS_CHECK(vgs_valid(hEvent, VGS_EVENT), CUDA_ERROR_INVALID_HANDLE);
    VGS_CHECK(!walk_of(hCtx, 0).capturing, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    walk_of(hCtx, vgs_event_end(hEvent));
    return CUDA_SUCCESS;
}

VGS_API cuGreenCtxStreamCreate(CUstream *phStream, CUgreenCtx greenCtx, unsigned int flags, int priority)
{
    VGS_ENTER();
    VGS_VALUE(phStream && flags == 1);
    VGS_CHECK(vgs_valid(greenCtx, VGS_GREEN), CUDA_ERROR_INVALID_CONTEXT);
    CUstream stream = vgs_new(VGS_STREAM, sizeof *stream, greenCtx->head.ctx);
    VGS_CHECK(stream, CUDA_ERROR_OUT_OF_MEMORY);
    stream->id = vgs_next_id();
    stream->flags = flags;
    stream->priority = priority > 0 ? 0 : priority < -5 ? -5 : priority;
    stream->green = greenCtx->as_context;
    *phStream = stream;
    return CUDA_SUCCESS;
}

VGS_API cuStreamGetGreenCtx(CUstream hStream, CUgreenCtx *phCtx)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    CUstream stream = vgs_stream(hStream);
    VGS_CHECK(stream, CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(phCtx);
    *phCtx = green_of(stream->green);
    return CUDA_SUCCESS;
}

VGS_API cuStreamGetCtx_v2(CUstream hStream, CUcontext *pCtx, CUgreenCtx *pGreenCtx)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    CUstream stream = vgs_stream(hStream);
    VGS_CHECK(stream, CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(pCtx && pGreenCtx);
    *pCtx = stream->head.ctx;
    *pGreenCtx = green_of(stream->green);
    return CUDA_SUCCESS;
}
