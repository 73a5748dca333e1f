/* vgs_launch.c - kernel launches: each occupies the GPU for its function's time; nothing is computed. Occupancy, by simple rules. */
#include <stdlib.h>

#include "vgs_driver.h"

#define MAX_THREADS    1024u
#define THREADS_PER_SM 2048

static uint64_t default_ns = 10000;

/* Only here: the time of kernels whose names do not say it. */
__attribute__((visibility("default"))) void vgsSetKernelTime(uint64_t ns);
void vgsSetKernelTime(uint64_t ns)
{
    __atomic_store_n(&default_ns, ns, __ATOMIC_RELAXED);
}

uint64_t vgs_kernel_ns(CUfunction function)
{
    return function->duration_ns ? function->duration_ns : __atomic_load_n(&default_ns, __ATOMIC_RELAXED);
}

static CUresult launch(const CUDA_KERNEL_NODE_PARAMS *p, CUstream handle)
{
    CUcontext ctx = vgs_context();
    VGS_CHECK(ctx, CUDA_ERROR_INVALID_CONTEXT);
    VGS_CHECK(vgs_valid(p->func, VGS_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
    CUstream stream = vgs_stream(handle);
    VGS_CHECK(stream, CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(p->gridDimX && p->gridDimY && p->gridDimZ && p->blockDimX && p->blockDimY && p->blockDimZ);
    VGS_VALUE(p->gridDimX <= 0x7fffffffu && p->gridDimY <= 65535 && p->gridDimZ <= 65535);
    VGS_VALUE(p->blockDimX <= MAX_THREADS && p->blockDimY <= MAX_THREADS && p->blockDimZ <= 64);
    VGS_VALUE((uint64_t)p->blockDimX * p->blockDimY * p->blockDimZ <= MAX_THREADS);
    VGS_VALUE(p->sharedMemBytes <= (unsigned int)p->func->max_dynamic_shared && !(p->kernelParams && p->extra));
    struct vgs_operation operation = {.kind = VGS_NODE_KERNEL, .as.kernel = *p};
    if (vgs_captured(stream, &operation))
        return CUDA_SUCCESS;
    CUresult result = vgs_function_load(p->func);
    if (result == CUDA_SUCCESS)
        vgs_queue_kernel(stream, vgs_kernel_ns(p->func));
    return result;
}

VGS_API cuLaunchKernel(CUfunction f, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx,
                       unsigned int by, unsigned int bz, unsigned int shared, CUstream stream, void **params,
                       void **extra)
{
    VGS_ENTER();
    const CUDA_KERNEL_NODE_PARAMS p = {f, gx, gy, gz, bx, by, bz, shared, params, extra, NULL, NULL};
    return launch(&p, stream);
}

VGS_API cuLaunchCooperativeKernel(CUfunction f, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx,
                                  unsigned int by, unsigned int bz, unsigned int shared, CUstream stream, void **params)
{
    VGS_ENTER();
    const CUDA_KERNEL_NODE_PARAMS p = {f, gx, gy, gz, bx, by, bz, shared, params, NULL, NULL, NULL};
    return launch(&p, stream);
}

VGS_API cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **params, void **extra)
{
    VGS_ENTER();
    VGS_VALUE(c && (c->numAttrs == 0 || c->attrs));
    const CUDA_KERNEL_NODE_PARAMS p = {
        f,      c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ, c->sharedMemBytes,
        params, extra,       NULL,        NULL};
    return launch(&p, c->hStream);
}

/* The kernels are launched one after the other, and do not wait for one another; the program waits for what must come first. */
VGS_API cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *list, unsigned int count, unsigned int flags)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    uint32_t devices = 0;
    VGS_VALUE(list && count && flags <= 3);
    for (unsigned int i = 0; i < count; i++) {
        CUstream stream = (uintptr_t)list[i].hStream > 2 ? vgs_stream(list[i].hStream) : NULL;
        VGS_CHECK(stream && !stream->capture && vgs_valid(list[i].function, VGS_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
        const uint32_t device = 1u << stream->head.ctx->device;
        VGS_VALUE(!(devices & device) && list[i].gridDimX == list[0].gridDimX &&
                  list[i].blockDimX == list[0].blockDimX);
        devices |= device;
    }
    for (unsigned int i = 0; i < count && !(flags & 1); i++)
        vgs_wait_stream(list[i].hStream);
    for (unsigned int i = 0; i < count; i++) {
        const CUDA_LAUNCH_PARAMS *l = &list[i];
        const CUDA_KERNEL_NODE_PARAMS p = {l->function,     l->gridDimX,  l->gridDimY,  l->gridDimZ,
                                           l->blockDimX,    l->blockDimY, l->blockDimZ, l->sharedMemBytes,
                                           l->kernelParams, NULL,         NULL,         NULL};
        CUresult result = launch(&p, l->hStream);
        if (result != CUDA_SUCCESS)
            return result;
    }
    return CUDA_SUCCESS;
}

VGS_API cuLaunchHostFunc(CUstream hStream, CUhostFn fn, void *userData)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    CUstream stream = vgs_stream(hStream);
    VGS_CHECK(stream, CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(fn);
    struct vgs_operation operation = {.kind = VGS_NODE_HOST, .as.host = {fn, userData}};
    if (!vgs_captured(stream, &operation))
        vgs_queue_host(stream, fn, userData);
    return CUDA_SUCCESS;
}

struct callback {
    CUstreamCallback function;
    CUstream stream;
    void *argument;
};

static void run_callback(void *argument)
{
    struct callback call = *(struct callback *)argument;
    free(argument);
    call.function(call.stream, CUDA_SUCCESS, call.argument);
}

VGS_API cuStreamAddCallback(CUstream hStream, CUstreamCallback callback, void *userData, unsigned int flags)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    CUstream stream = vgs_stream(hStream);
    VGS_CHECK(stream, CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(callback && flags == 0);
    VGS_CHECK(!stream->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    struct callback *call = malloc(sizeof *call);
    VGS_CHECK(call, CUDA_ERROR_OUT_OF_MEMORY);
    *call = (struct callback){callback, hStream, userData};
    vgs_queue_host(stream, run_callback, call);
    return CUDA_SUCCESS;
}

static CUresult blocks_per_sm(int *blocks, CUfunction f, int block_size, size_t shared)
{
    VGS_VALUE(blocks && block_size > 0 && block_size <= (int)MAX_THREADS);
    VGS_CHECK(vgs_valid(f, VGS_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
    size_t by_threads = THREADS_PER_SM / (size_t)block_size, by_shared = shared ? (228u << 10) / (shared + 1024) : 32;
    size_t most = by_threads < by_shared ? by_threads : by_shared;
    *blocks = (int)(most < 32 ? most : 32);
    return CUDA_SUCCESS;
}

VGS_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction f, int blockSize, size_t shared)
{
    VGS_ENTER();
    return blocks_per_sm(blocks, f, blockSize, shared);
}

VGS_API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, CUfunction f, int blockSize, size_t shared,
                                                             unsigned int flags)
{
    VGS_ENTER();
    VGS_VALUE(flags <= 1);
    return blocks_per_sm(blocks, f, blockSize, shared);
}

static CUresult best_block(int *minGridSize, int *blockSize, CUfunction f, CUoccupancyB2DSize size_of, size_t shared,
                           int limit)
{
    VGS_VALUE(minGridSize && blockSize);
    VGS_CHECK(vgs_valid(f, VGS_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
    int best = 0, threads = 0;
    for (int size = limit > 0 && limit < 1024 ? limit / 32 * 32 : 1024; size >= 32; size -= 32) {
        int blocks;
        if (blocks_per_sm(&blocks, f, size, size_of ? size_of(size) : shared) == CUDA_SUCCESS &&
            blocks * size > threads) {
            threads = blocks * size;
            best = size;
            *minGridSize = blocks * 132;
        }
    }
    VGS_VALUE(best);
    *blockSize = best;
    return CUDA_SUCCESS;
}

VGS_API cuOccupancyMaxPotentialBlockSize(int *minGridSize, int *blockSize, CUfunction f, CUoccupancyB2DSize size_of,
                                         size_t shared, int limit)
{
    VGS_ENTER();
    return best_block(minGridSize, blockSize, f, size_of, shared, limit);
}

VGS_API cuOccupancyMaxPotentialBlockSizeWithFlags(int *minGridSize, int *blockSize, CUfunction f,
                                                  CUoccupancyB2DSize size_of, size_t shared, int limit,
                                                  unsigned int flags)
{
    VGS_ENTER();
    VGS_VALUE(flags <= 1);
    return best_block(minGridSize, blockSize, f, size_of, shared, limit);
}

VGS_API cuOccupancyAvailableDynamicSMemPerBlock(size_t *bytes, CUfunction f, int blocks, int blockSize)
{
    VGS_ENTER();
    VGS_VALUE(bytes && blocks > 0 && blockSize > 0 && blocks * blockSize <= THREADS_PER_SM);
    VGS_CHECK(vgs_valid(f, VGS_FUNCTION), CUDA_ERROR_INVALID_HANDLE);
    size_t each = (228u << 10) / (size_t)blocks - 1024;
    *bytes = each < (227u << 10) ? each : 227u << 10;
    return CUDA_SUCCESS;
}
