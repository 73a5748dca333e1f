/* vgs_pointer.c - cuPointerGetAttribute: what is known of an address; and the advice on managed memory, which changes nothing here. */
#include <string.h>

#include "vgs_driver.h"

enum attribute {
    CONTEXT = 1,
    MEMORY_TYPE,
    DEVICE_POINTER,
    HOST_POINTER,
    P2P_TOKENS,
    SYNC_MEMOPS,
    BUFFER_ID,
    IS_MANAGED,
    DEVICE_ORDINAL,
    IPC_CAPABLE,
    RANGE_START,
    RANGE_SIZE,
    MAPPED,
    HANDLE_TYPES,
    RDMA_CAPABLE,
    ACCESS_FLAGS,
    MEMPOOL_HANDLE,
    MAPPING_SIZE,
    MAPPING_BASE,
    BLOCK_ID,
    HW_DECOMPRESS
};

static int ordinal_of(uint32_t gpu)
{
    for (uint32_t i = 0; i < vgs_gpus.count; i++)
        if (vgs_gpus.index[i] == gpu)
            return (int)i;
    return -2; /* the driver's word for a pointer of no device */
}

static CUresult attribute_of(void *data, int attribute, CUdeviceptr ptr, CUdeviceptr base,
                             const struct vgs_block *block)
{
    switch (attribute) {
    case CONTEXT:
        *(CUcontext *)data = block->kind == VGS_POOLED ? NULL : block->ctx;
        return CUDA_SUCCESS;
    case MEMORY_TYPE:
        *(unsigned int *)data = block->kind == VGS_HOST ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
        return CUDA_SUCCESS;
    case DEVICE_POINTER:
        *(CUdeviceptr *)data = ptr;
        return CUDA_SUCCESS;
    case HOST_POINTER:
        VGS_VALUE(block->kind == VGS_HOST || block->kind == VGS_MANAGED);
        *(void **)data = (void *)(uintptr_t)ptr;
        return CUDA_SUCCESS;
    case BUFFER_ID:
    case BLOCK_ID:
        *(unsigned long long *)data = block->id;
        return CUDA_SUCCESS;
    case IS_MANAGED:
        *(unsigned int *)data = block->kind == VGS_MANAGED;
        return CUDA_SUCCESS;
    case DEVICE_ORDINAL:
        *(int *)data = ordinal_of(block->gpu);
        return CUDA_SUCCESS;
    case SYNC_MEMOPS:
    case IPC_CAPABLE:
    case RDMA_CAPABLE:
    case HW_DECOMPRESS:
        *(unsigned int *)data = 0;
        return CUDA_SUCCESS;
    case RANGE_START:
    case MAPPING_BASE:
        *(CUdeviceptr *)data = base;
        return CUDA_SUCCESS;
    case RANGE_SIZE:
    case MAPPING_SIZE:
        *(size_t *)data = block->size;
        return CUDA_SUCCESS;
    case MAPPED:
        *(unsigned int *)data = block->kind != VGS_RESERVED || vgs_mapped(ptr, 1);
        return CUDA_SUCCESS;
    case HANDLE_TYPES:
        *(unsigned long long *)data = 0;
        return CUDA_SUCCESS;
    case ACCESS_FLAGS:
        *(unsigned int *)data = 3;
        return CUDA_SUCCESS;
    case MEMPOOL_HANDLE:
        *(CUmemoryPool *)data = block->pool;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

VGS_API cuPointerGetAttribute(void *data, int attribute, CUdeviceptr ptr)
{
    VGS_ENTER_CONTEXT();
    CUdeviceptr base;
    struct vgs_block *block = vgs_arena_find(ptr, &base);
    VGS_VALUE(data && block);
    return attribute_of(data, attribute, ptr, base, block);
}

static size_t width_of(int attribute)
{
    switch (attribute) {
    case MEMORY_TYPE:
    case SYNC_MEMOPS:
    case IS_MANAGED:
    case DEVICE_ORDINAL:
    case IPC_CAPABLE:
    case MAPPED:
    case RDMA_CAPABLE:
    case ACCESS_FLAGS:
    case HW_DECOMPRESS:
        return 4;
    default:
        return 8;
    }
}

/* An address that the driver does not know is no error here: each answer is then nothing. */
VGS_API cuPointerGetAttributes(unsigned int numAttributes, int *attributes, void **data, CUdeviceptr ptr)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(numAttributes && attributes && data);
    CUdeviceptr base;
    struct vgs_block *block = vgs_arena_find(ptr, &base);
    for (unsigned int i = 0; i < numAttributes; i++) {
        VGS_VALUE(attributes[i] >= CONTEXT && attributes[i] <= HW_DECOMPRESS && attributes[i] != P2P_TOKENS);
        memset(data[i], 0, width_of(attributes[i]));
        if (!block && attributes[i] == DEVICE_ORDINAL)
            *(int *)data[i] = -2;
        if (block)
            attribute_of(data[i], attributes[i], ptr, base, block);
    }
    return CUDA_SUCCESS;
}

VGS_API cuPointerSetAttribute(const void *value, int attribute, CUdeviceptr ptr)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(value && attribute == SYNC_MEMOPS && vgs_accessible(ptr, 1));
    return CUDA_SUCCESS;
}

static bool is_managed(CUdeviceptr ptr, size_t count)
{
    CUdeviceptr base;
    struct vgs_block *block = vgs_arena_find(ptr, &base);
    return block && block->kind == VGS_MANAGED && count && count <= block->size - (ptr - base);
}

VGS_API cuMemPrefetchAsync(CUdeviceptr devPtr, size_t count, CUdevice dstDevice, CUstream hStream)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(is_managed(devPtr, count));
    VGS_CHECK(dstDevice == -1 || vgs_device_ok(dstDevice), CUDA_ERROR_INVALID_DEVICE);
    VGS_CHECK(vgs_stream(hStream), CUDA_ERROR_INVALID_HANDLE);
    return CUDA_SUCCESS;
}

VGS_API cuMemPrefetchAsync_v2(CUdeviceptr devPtr, size_t count, CUmemLocation location, unsigned int flags,
                              CUstream hStream)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(is_managed(devPtr, count) && flags == 0);
    VGS_CHECK(location.type != CU_MEM_LOCATION_TYPE_DEVICE || vgs_device_ok(location.id), CUDA_ERROR_INVALID_DEVICE);
    VGS_CHECK(vgs_stream(hStream), CUDA_ERROR_INVALID_HANDLE);
    return CUDA_SUCCESS;
}

VGS_API cuMemAdvise(CUdeviceptr devPtr, size_t count, int advice, CUdevice device)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(is_managed(devPtr, count) && advice >= 1 && advice <= 6);
    VGS_CHECK(device == -1 || vgs_device_ok(device), CUDA_ERROR_INVALID_DEVICE);
    return CUDA_SUCCESS;
}

VGS_API cuMemAdvise_v2(CUdeviceptr devPtr, size_t count, int advice, CUmemLocation location)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(is_managed(devPtr, count) && advice >= 1 && advice <= 6);
    VGS_CHECK(location.type != CU_MEM_LOCATION_TYPE_DEVICE || vgs_device_ok(location.id), CUDA_ERROR_INVALID_DEVICE);
    return CUDA_SUCCESS;
}

VGS_API cuStreamAttachMemAsync(CUstream hStream, CUdeviceptr dptr, size_t length, unsigned int flags)
{
    VGS_ENTER_CONTEXT();
    VGS_CHECK(vgs_stream(hStream), CUDA_ERROR_INVALID_HANDLE);
    VGS_VALUE(is_managed(dptr, length ? length : 1) && (flags == 1 || flags == 2 || flags == 4));
    return CUDA_SUCCESS;
}
