/* vgs_context_info.c - what a program may ask of its context, and set in it. */
#include "vgs_driver.h"

VGS_API cuCtxGetDevice(CUdevice *device)
{
    VGS_ENTER();
    VGS_VALUE(device);
    CUcontext ctx = vgs_context();
    VGS_CHECK(ctx, CUDA_ERROR_INVALID_CONTEXT);
    *device = ctx->device;
    return CUDA_SUCCESS;
}

VGS_API cuCtxGetDevice_v2(CUdevice *device, CUcontext given)
{
    CUcontext ctx;
    VGS_ENTER();
    VGS_VALUE(device);
    CUresult result = vgs_context_of(given, &ctx);
    if (result == CUDA_SUCCESS)
        *device = ctx->device;
    return result;
}

VGS_API cuCtxGetFlags(unsigned int *flags)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(flags);
    *flags = ctx->flags;
    return CUDA_SUCCESS;
}

VGS_API cuCtxSetFlags(unsigned int flags)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE((flags & ~0xffu) == 0);
    ctx->flags = flags;
    return CUDA_SUCCESS;
}

VGS_API cuCtxGetId(CUcontext given, unsigned long long *id)
{
    CUcontext ctx;
    VGS_ENTER();
    VGS_VALUE(id);
    CUresult result = vgs_context_of(given, &ctx);
    if (result == CUDA_SUCCESS)
        *id = ctx->id;
    return result;
}

VGS_API cuCtxSynchronize(void)
{
    VGS_ENTER_CONTEXT();
    vgs_wait_context(ctx);
    return CUDA_SUCCESS;
}

VGS_API cuCtxSynchronize_v2(CUcontext given)
{
    CUcontext ctx;
    VGS_ENTER();
    CUresult result = vgs_context_of(given, &ctx);
    if (result == CUDA_SUCCESS)
        vgs_wait_context(ctx);
    return result;
}

VGS_API cuCtxSetLimit(int limit, size_t value)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(limit >= 0 && limit < VGS_LIMITS);
    VGS_CHECK(limit != 3,
              CUDA_ERROR_UNSUPPORTED_LIMIT); /* device runtime's sync depth: gone since compute capability 9.0 */
    ctx->limits[limit] = value;
    return CUDA_SUCCESS;
}

VGS_API cuCtxGetLimit(size_t *value, int limit)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(value && limit >= 0 && limit < VGS_LIMITS);
    VGS_CHECK(limit != 3, CUDA_ERROR_UNSUPPORTED_LIMIT);
    *value = ctx->limits[limit];
    return CUDA_SUCCESS;
}

VGS_API cuCtxGetCacheConfig(int *config)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(config);
    *config = 0;
    return CUDA_SUCCESS;
}

VGS_API cuCtxSetCacheConfig(int config)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(config >= 0 && config <= 3);
    return CUDA_SUCCESS;
}

VGS_API cuCtxGetSharedMemConfig(int *config)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(config);
    *config = 1; /* banks of four bytes */
    return CUDA_SUCCESS;
}

VGS_API cuCtxSetSharedMemConfig(int config)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(config >= 0 && config <= 2);
    return CUDA_SUCCESS;
}

VGS_API cuCtxGetApiVersion(CUcontext given, unsigned int *version)
{
    CUcontext ctx;
    VGS_ENTER();
    VGS_VALUE(version);
    CUresult result = vgs_context_of(given, &ctx);
    if (result == CUDA_SUCCESS)
        *version = ctx->api_version;
    return result;
}

VGS_API cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    VGS_ENTER_CONTEXT();
    if (least)
        *least = 0;
    if (greatest)
        *greatest = -5;
    return CUDA_SUCCESS;
}

VGS_API cuCtxResetPersistingL2Cache(void)
{
    VGS_ENTER_CONTEXT();
    return CUDA_SUCCESS;
}

VGS_API cuCtxEnablePeerAccess(CUcontext peer, unsigned int flags)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(flags == 0);
    VGS_CHECK(vgs_valid(peer, VGS_CONTEXT) && !peer->dead && peer != ctx, CUDA_ERROR_INVALID_CONTEXT);
    VGS_CHECK(peer->device != ctx->device, CUDA_ERROR_PEER_ACCESS_UNSUPPORTED);
    VGS_CHECK(!(ctx->peers & 1u << peer->device), CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
    ctx->peers |= 1u << peer->device;
    return CUDA_SUCCESS;
}

VGS_API cuCtxDisablePeerAccess(CUcontext peer)
{
    VGS_ENTER_CONTEXT();
    VGS_CHECK(vgs_valid(peer, VGS_CONTEXT) && !peer->dead, CUDA_ERROR_INVALID_CONTEXT);
    VGS_CHECK(ctx->peers & 1u << peer->device, CUDA_ERROR_PEER_ACCESS_NOT_ENABLED);
    ctx->peers &= ~(1u << peer->device);
    return CUDA_SUCCESS;
}
