/* vgs_context.c - contexts: each thread's stack of them, primary contexts, and what the other files ask of the current one. */
#include <string.h>

#include "vgs_driver.h"

#define STACK      64
#define SCHED_MASK 0x07u
#define FLAGS_MASK 0xffu

static _Thread_local CUcontext stack[STACK];
static _Thread_local uint32_t depth; /* stack[depth - 1] is current */
static CUcontext primaries[VGS_MAX_GPUS];
static unsigned int primary_flags[VGS_MAX_GPUS];

static const size_t default_limits[VGS_LIMITS] = {1024, 1048576, 8388608, 2, 2048, 64, 0, 0, 0, 0};

bool vgs_device_ok(CUdevice device)
{
    return device >= 0 && (uint32_t)device < vgs_gpus.count;
}

CUcontext vgs_context(void)
{
    CUcontext top = depth ? stack[depth - 1] : NULL;
    if (top && top->green_of && !top->dead)
        top = top->green_of;
    return top && !top->dead ? top : NULL;
}

CUcontext vgs_green_here(void)
{
    CUcontext top = depth ? stack[depth - 1] : NULL;
    return top && top->green_of && !top->dead ? top : NULL;
}

CUresult vgs_context_of(CUcontext given, CUcontext *out)
{
    if (!given)
        return (*out = vgs_context()) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
    VGS_CHECK(vgs_valid(given, VGS_CONTEXT), CUDA_ERROR_INVALID_CONTEXT);
    VGS_CHECK(!given->dead, CUDA_ERROR_CONTEXT_IS_DESTROYED);
    *out = given->green_of ? given->green_of : given;
    return CUDA_SUCCESS;
}

CUcontext vgs_primary(CUdevice device)
{
    CUcontext ctx = primaries[device];
    return ctx && !ctx->dead ? ctx : NULL;
}

static CUresult create(CUdevice device, unsigned int flags, unsigned int version, CUcontext *out)
{
    uint32_t gpu = vgs_gpus.index[device];
    uint64_t bytes = vgs_state->context_bytes;
    VGS_CHECK(bytes == 0 || vgs_charge(gpu, bytes), CUDA_ERROR_OUT_OF_MEMORY);
    CUcontext ctx = vgs_new(VGS_CONTEXT, sizeof *ctx, NULL);
    if (!ctx) {
        if (bytes)
            vgs_refund(gpu, bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    ctx->device = device;
    ctx->gpu = gpu;
    ctx->flags = flags;
    ctx->api_version = version;
    ctx->id = vgs_next_id();
    ctx->charged = bytes;
    ctx->main.head.ctx = ctx;
    ctx->main.id = vgs_next_id();
    memcpy(ctx->limits, default_limits, sizeof default_limits);
    __atomic_fetch_add(&vgs_state->slots[vgs_slot].gpus[gpu].contexts, 1, __ATOMIC_RELAXED);
    *out = ctx;
    return CUDA_SUCCESS;
}

static bool free_array(void *object, void *unused)
{
    struct CUarray_st *array = object;
    CUdeviceptr base;
    struct vgs_block *block = array->data ? vgs_arena_find(array->data, &base) : NULL;
    (void)unused;
    if (block)
        vgs_free_memory(base, block);
    vgs_tiles_free(array->tiles);
    vgs_delete(array);
    return false;
}

static bool forget(void *object, void *unused)
{
    (void)unused;
    vgs_delete(object);
    return false;
}

static bool free_module(void *object, void *unused)
{
    (void)unused;
    vgs_module_free(object);
    return false;
}

static void destroy(CUcontext ctx)
{
    vgs_wait_context(ctx);
    vgs_greens_end(ctx);
    ctx->dead = true; /* the handle stays: other threads may have it on their stacks */
    vgs_each(VGS_ARRAY, ctx, free_array, NULL);
    vgs_each(VGS_MODULE, ctx, free_module, NULL);
    for (enum vgs_kind kind = VGS_STREAM; kind <= VGS_MIPMAP; kind++)
        vgs_each(kind, ctx, forget, NULL);
    vgs_free_all_of(ctx);
    if (ctx->charged)
        vgs_refund(ctx->gpu, ctx->charged);
    __atomic_fetch_sub(&vgs_state->slots[vgs_slot].gpus[ctx->gpu].contexts, 1, __ATOMIC_RELAXED);
}

static CUresult create_current(CUcontext *pctx, unsigned int flags, CUdevice dev, unsigned int version)
{
    VGS_VALUE(pctx && (flags & ~FLAGS_MASK) == 0 && (flags & SCHED_MASK) <= 4);
    VGS_CHECK(vgs_device_ok(dev), CUDA_ERROR_INVALID_DEVICE);
    VGS_CHECK(depth < STACK, CUDA_ERROR_OUT_OF_MEMORY);
    CUresult result = create(dev, flags, version, pctx);
    if (result == CUDA_SUCCESS)
        stack[depth++] = *pctx;
    return result;
}

VGS_API cuCtxCreate(CUcontext *pctx, unsigned int flags, CUdevice dev)
{
    VGS_ENTER();
    return create_current(pctx, flags, dev, 3010);
}

VGS_API cuCtxCreate_v2(CUcontext *pctx, unsigned int flags, CUdevice dev)
{
    VGS_ENTER();
    return create_current(pctx, flags, dev, 3020);
}

VGS_API cuCtxCreate_v3(CUcontext *pctx, void *affinity, int count, unsigned int flags, CUdevice dev)
{
    VGS_ENTER();
    VGS_VALUE(count >= 0 && (count == 0 || affinity));
    return create_current(pctx, flags, dev, 3020);
}

VGS_API cuCtxCreate_v4(CUcontext *pctx, void *params, unsigned int flags, CUdevice dev)
{
    VGS_ENTER();
    (void)params;
    return create_current(pctx, flags, dev, 3020);
}

VGS_API cuCtxDestroy_v2(CUcontext ctx)
{
    VGS_ENTER();
    VGS_VALUE(ctx);
    VGS_CHECK(vgs_valid(ctx, VGS_CONTEXT) && !ctx->dead && !ctx->primary && !ctx->green_of, CUDA_ERROR_INVALID_CONTEXT);
    destroy(ctx);
    if (depth && stack[depth - 1] == ctx)
        depth--;
    return CUDA_SUCCESS;
}

VGS_API cuCtxPushCurrent_v2(CUcontext ctx)
{
    VGS_ENTER();
    VGS_VALUE(ctx);
    VGS_CHECK(vgs_valid(ctx, VGS_CONTEXT), CUDA_ERROR_INVALID_CONTEXT);
    VGS_CHECK(!ctx->dead, CUDA_ERROR_CONTEXT_IS_DESTROYED);
    VGS_CHECK(depth < STACK, CUDA_ERROR_OUT_OF_MEMORY);
    stack[depth++] = ctx;
    return CUDA_SUCCESS;
}

VGS_API cuCtxPopCurrent_v2(CUcontext *pctx)
{
    VGS_ENTER();
    VGS_CHECK(depth && stack[depth - 1], CUDA_ERROR_INVALID_CONTEXT);
    depth--;
    if (pctx)
        *pctx = stack[depth];
    return CUDA_SUCCESS;
}

VGS_API cuCtxSetCurrent(CUcontext ctx)
{
    VGS_ENTER();
    if (ctx) {
        VGS_CHECK(vgs_valid(ctx, VGS_CONTEXT), CUDA_ERROR_INVALID_CONTEXT);
        VGS_CHECK(!ctx->dead, CUDA_ERROR_CONTEXT_IS_DESTROYED);
        if (depth == 0)
            depth = 1;
        stack[depth - 1] = ctx;
    } else if (depth) {
        depth--;
    }
    return CUDA_SUCCESS;
}

VGS_API cuCtxGetCurrent(CUcontext *pctx)
{
    VGS_ENTER();
    VGS_VALUE(pctx);
    *pctx = depth ? stack[depth - 1] : NULL;
    return CUDA_SUCCESS;
}

CUresult vgs_primary_retain(CUdevice dev, CUcontext *out)
{
    static char lock;
    while (__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE))
        ;
    CUresult result = CUDA_SUCCESS;
    CUcontext ctx = vgs_primary(dev);
    if (!ctx && (result = create(dev, primary_flags[dev], 3020, &ctx)) == CUDA_SUCCESS) {
        ctx->primary = true;
        primaries[dev] = ctx;
    }
    if (result == CUDA_SUCCESS) {
        ctx->retained++;
        *out = ctx;
    }
    __atomic_clear(&lock, __ATOMIC_RELEASE);
    return result;
}

void vgs_primary_release(CUcontext ctx)
{
    if (--ctx->retained == 0)
        destroy(ctx);
}

VGS_API cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev)
{
    VGS_ENTER();
    VGS_VALUE(pctx);
    VGS_CHECK(vgs_device_ok(dev), CUDA_ERROR_INVALID_DEVICE);
    return vgs_primary_retain(dev, pctx);
}

VGS_API cuDevicePrimaryCtxRelease_v2(CUdevice dev)
{
    VGS_ENTER();
    VGS_CHECK(vgs_device_ok(dev), CUDA_ERROR_INVALID_DEVICE);
    CUcontext ctx = vgs_primary(dev);
    VGS_CHECK(ctx, CUDA_ERROR_INVALID_CONTEXT);
    vgs_primary_release(ctx);
    return CUDA_SUCCESS;
}

VGS_API cuDevicePrimaryCtxReset_v2(CUdevice dev)
{
    VGS_ENTER();
    VGS_CHECK(vgs_device_ok(dev), CUDA_ERROR_INVALID_DEVICE);
    CUcontext ctx = vgs_primary(dev);
    if (ctx)
        destroy(ctx);
    return CUDA_SUCCESS;
}

VGS_API cuDevicePrimaryCtxSetFlags_v2(CUdevice dev, unsigned int flags)
{
    VGS_ENTER();
    VGS_CHECK(vgs_device_ok(dev), CUDA_ERROR_INVALID_DEVICE);
    VGS_VALUE((flags & ~FLAGS_MASK) == 0);
    primary_flags[dev] = flags;
    if (vgs_primary(dev))
        vgs_primary(dev)->flags = flags;
    return CUDA_SUCCESS;
}

VGS_API cuDevicePrimaryCtxGetState(CUdevice dev, unsigned int *flags, int *active)
{
    VGS_ENTER();
    VGS_VALUE(flags && active);
    VGS_CHECK(vgs_device_ok(dev), CUDA_ERROR_INVALID_DEVICE);
    *flags = primary_flags[dev];
    *active = vgs_primary(dev) != NULL;
    return CUDA_SUCCESS;
}
