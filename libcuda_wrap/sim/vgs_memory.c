/* vgs_memory.c - linear device memory, managed and pinned host memory: taking, freeing, and what a program may ask of a pointer. */
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>

#include "vgs_driver.h"

#define PITCH 512u

CUresult vgs_take_memory(CUcontext ctx, size_t size, enum vgs_block_kind kind, uint32_t flags, CUdeviceptr *out)
{
    if (!vgs_charge(ctx->gpu, size)) {
        if (vgs_pools_trim() == 0 || !vgs_charge(ctx->gpu, size))
            return CUDA_ERROR_OUT_OF_MEMORY;
    }
    struct vgs_block block = {.size = size, .ctx = ctx, .gpu = ctx->gpu, .kind = (uint8_t)kind, .flags = flags};
    CUdeviceptr base = vgs_arena_take(&block);
    if (!base) {
        vgs_refund(ctx->gpu, size);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = base;
    return CUDA_SUCCESS;
}

void vgs_free_memory(CUdeviceptr base, struct vgs_block *block)
{
    uint32_t gpu = block->gpu, kind = block->kind;
    uint64_t size = block->size;
    if (kind == VGS_POOLED) {
        vgs_pool_free(base, block);
        return;
    }
    vgs_arena_give(base);
    if (kind == VGS_DEVICE || kind == VGS_MANAGED || kind == VGS_ARRAY_DATA)
        vgs_refund(gpu, size);
}

static void free_if_of(CUdeviceptr base, struct vgs_block *block, void *ctx)
{
    if (block->ctx == ctx && block->kind != VGS_POOLED && block->kind != VGS_RESERVED && block->kind != VGS_GRAPH_DATA)
        vgs_free_memory(base, block);
}

void vgs_free_all_of(CUcontext ctx)
{
    vgs_arena_each(free_if_of, ctx);
}

bool vgs_accessible(CUdeviceptr address, size_t size)
{
    CUdeviceptr base;
    struct vgs_block *block = vgs_arena_find(address, &base);
    if (!block || size > block->size - (address - base))
        return false;
    if (block->kind == VGS_RESERVED)
        return vgs_mapped(address, size);
    block->touched = 1;
    return true;
}

VGS_API cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytesize)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(dptr && bytesize);
    return vgs_take_memory(ctx, bytesize, VGS_DEVICE, 0, dptr);
}

VGS_API cuMemAllocPitch_v2(CUdeviceptr *dptr, size_t *pPitch, size_t WidthInBytes, size_t Height,
                           unsigned int ElementSizeBytes)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(dptr && pPitch && WidthInBytes && Height);
    VGS_VALUE(ElementSizeBytes == 4 || ElementSizeBytes == 8 || ElementSizeBytes == 16);
    size_t pitch = (WidthInBytes + PITCH - 1) & ~(size_t)(PITCH - 1), size;
    VGS_CHECK(pitch >= WidthInBytes && !__builtin_mul_overflow(pitch, Height, &size), CUDA_ERROR_OUT_OF_MEMORY);
    CUresult result = vgs_take_memory(ctx, size, VGS_DEVICE, 0, dptr);
    if (result == CUDA_SUCCESS)
        *pPitch = pitch;
    return result;
}

VGS_API cuMemAllocManaged(CUdeviceptr *dptr, size_t bytesize, unsigned int flags)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(dptr && bytesize && (flags == 1 || flags == 2)); /* attached globally or to the host */
    return vgs_take_memory(ctx, bytesize, VGS_MANAGED, flags, dptr);
}

VGS_API cuMemFree_v2(CUdeviceptr dptr)
{
    VGS_ENTER_CONTEXT();
    CUdeviceptr base;
    struct vgs_block *block = vgs_arena_find(dptr, &base);
    if (block && base == dptr && block->kind == VGS_GRAPH_DATA)
        return vgs_graph_free(base);
    VGS_VALUE(block && base == dptr &&
              (block->kind == VGS_DEVICE || block->kind == VGS_MANAGED || block->kind == VGS_POOLED));
    vgs_free_memory(base, block);
    return CUDA_SUCCESS;
}

VGS_API cuMemGetInfo_v2(size_t *free, size_t *total)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(free && total);
    struct vgs_gpu *gpu = &vgs_state->gpus[ctx->gpu];
    vgs_reap();
    uint64_t used = __atomic_load_n(&gpu->used_bytes, __ATOMIC_RELAXED);
    *total = gpu->memory_bytes;
    *free = used > gpu->memory_bytes ? 0 : gpu->memory_bytes - used;
    return CUDA_SUCCESS;
}

VGS_API cuMemGetAddressRange_v2(CUdeviceptr *pbase, size_t *psize, CUdeviceptr dptr)
{
    VGS_ENTER_CONTEXT();
    CUdeviceptr base;
    struct vgs_block *block = vgs_arena_find(dptr, &base);
    VGS_CHECK(block, CUDA_ERROR_NOT_FOUND);
    size_t size = block->size;
    VGS_CHECK(block->kind != VGS_RESERVED || vgs_mapped_range(dptr, &base, &size), CUDA_ERROR_NOT_FOUND);
    if (pbase)
        *pbase = base;
    if (psize)
        *psize = size;
    return CUDA_SUCCESS;
}

/* Pinned host memory comes from the arena too, so that it has attributes; nothing is charged. */
static CUresult take_host(void **out, size_t size, unsigned int flags)
{
    struct vgs_block block = {.size = size, .ctx = vgs_context(), .kind = VGS_HOST, .flags = flags};
    VGS_CHECK(block.ctx, CUDA_ERROR_INVALID_CONTEXT);
    VGS_VALUE(out && size && (flags & ~7u) == 0);
    block.gpu = block.ctx->gpu;
    CUdeviceptr base = vgs_arena_take(&block), same;
    VGS_CHECK(base, CUDA_ERROR_OUT_OF_MEMORY);
    vgs_arena_find(base, &same)->touched = 1; /* the program writes to it without asking us */
    *out = (void *)(uintptr_t)base;
    return CUDA_SUCCESS;
}

VGS_API cuMemAllocHost_v2(void **pp, size_t bytesize)
{
    VGS_ENTER();
    return take_host(pp, bytesize, 0);
}

VGS_API cuMemHostAlloc(void **pp, size_t bytesize, unsigned int Flags)
{
    VGS_ENTER();
    return take_host(pp, bytesize, Flags);
}

VGS_API cuMemFreeHost(void *p)
{
    VGS_ENTER_CONTEXT();
    CUdeviceptr base, address = (CUdeviceptr)(uintptr_t)p;
    struct vgs_block *block = vgs_arena_find(address, &base);
    VGS_VALUE(block && block->kind == VGS_HOST && base == address);
    vgs_arena_give(base);
    return CUDA_SUCCESS;
}

#define REGISTERED 4096
static struct {
    void *begin;
    size_t size;
    unsigned int flags;
} registered[REGISTERED];
static pthread_mutex_t registered_lock = PTHREAD_MUTEX_INITIALIZER;

/* Index of the registered range that has `p`, or -1. */
static int find_registered(const void *p)
{
    for (int i = 0; i < REGISTERED; i++)
        if (registered[i].begin && (const char *)p >= (char *)registered[i].begin &&
            (const char *)p < (char *)registered[i].begin + registered[i].size)
            return i;
    return -1;
}

VGS_API cuMemHostRegister_v2(void *p, size_t bytesize, unsigned int Flags)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(p && bytesize && (Flags & ~15u) == 0);
    CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
    pthread_mutex_lock(&registered_lock);
    if (find_registered(p) >= 0)
        result = CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    for (int i = 0; result == CUDA_ERROR_OUT_OF_MEMORY && i < REGISTERED; i++)
        if (!registered[i].begin) {
            registered[i].begin = p;
            registered[i].size = bytesize;
            registered[i].flags = Flags;
            result = CUDA_SUCCESS;
        }
    pthread_mutex_unlock(&registered_lock);
    return result;
}

VGS_API cuMemHostUnregister(void *p)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(p);
    pthread_mutex_lock(&registered_lock);
    int found = find_registered(p);
    bool ours = found >= 0 && registered[found].begin == p;
    if (ours)
        registered[found].begin = NULL;
    pthread_mutex_unlock(&registered_lock);
    return ours ? CUDA_SUCCESS : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

/* Is `p` pinned host memory of ours or registered? Its flags. */
static bool is_pinned(void *p, unsigned int *flags)
{
    CUdeviceptr base;
    struct vgs_block *block = vgs_arena_find((CUdeviceptr)(uintptr_t)p, &base);
    if (block && block->kind == VGS_HOST) {
        *flags = block->flags;
        return true;
    }
    pthread_mutex_lock(&registered_lock);
    int found = find_registered(p);
    if (found >= 0)
        *flags = registered[found].flags;
    pthread_mutex_unlock(&registered_lock);
    return found >= 0;
}

VGS_API cuMemHostGetDevicePointer_v2(CUdeviceptr *pdptr, void *p, unsigned int Flags)
{
    unsigned int flags;
    VGS_ENTER_CONTEXT();
    VGS_VALUE(pdptr && Flags == 0 && is_pinned(p, &flags));
    *pdptr = (CUdeviceptr)(uintptr_t)p;
    return CUDA_SUCCESS;
}

VGS_API cuMemHostGetFlags(unsigned int *pFlags, void *p)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(pFlags && is_pinned(p, pFlags));
    return CUDA_SUCCESS;
}
