/* vgs_poolshare.c - pools that several processes use: a descriptor names the pool, a few bytes name an allocation of it.
 *
 * As with cuIpcOpenMemHandle the bytes are not shared: an imported allocation has zeros of its own.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vgs_pool.h"

#define FILE_NAME "vgpu-sim-pool"

struct pool_file { /* what the descriptor of a pool reads as */
    char magic[8];
    uint64_t name;
    uint32_t gpu, reserved;
};
#define POOL_MAGIC "vgspool"

struct pointer_data { /* what a CUmemPoolPtrExportData says */
    char magic[8];
    uint64_t name, size;
};
#define POINTER_MAGIC "vgsptr"
_Static_assert(sizeof(struct pointer_data) <= sizeof(CUmemPoolPtrExportData), "fits");

static int new_file(const struct pool_file *said)
{
    int fd = (int)syscall(SYS_memfd_create, FILE_NAME, 1u /* close on exec */);
    if (fd >= 0 && write(fd, said, sizeof *said) != sizeof *said) {
        close(fd);
        return -1;
    }
    return fd;
}

static bool is_pool_file(int fd, struct pool_file *said)
{
    char link[64], target[128] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return readlink(link, target, sizeof target - 1) > 0 && strncmp(target, "/memfd:" FILE_NAME, 20) == 0 &&
           pread(fd, said, sizeof *said, 0) == sizeof *said && memcmp(said->magic, POOL_MAGIC, 8) == 0;
}

VGS_API cuMemPoolExportToShareableHandle(void *handle_out, CUmemoryPool pool, CUmemAllocationHandleType type,
                                         unsigned long long flags)
{
    VGS_ENTER();
    VGS_VALUE(handle_out && vgs_valid(pool, VGS_POOL) && !pool->destroyed && flags == 0);
    VGS_VALUE(pool->is_shareable && !pool->is_imported && type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    pthread_mutex_lock(&vgs_pool_lock);
    if (pool->name == 0)
        pool->name = (uint64_t)getpid() << 32 | (uint32_t)vgs_next_id();
    struct pool_file said = {.magic = POOL_MAGIC, .name = pool->name, .gpu = vgs_gpus.index[pool->device]};
    pthread_mutex_unlock(&vgs_pool_lock);
    int fd = new_file(&said);
    VGS_CHECK(fd >= 0, CUDA_ERROR_OPERATING_SYSTEM);
    *(int *)handle_out = fd;
    return CUDA_SUCCESS;
}

VGS_API cuMemPoolImportFromShareableHandle(CUmemoryPool *pool_out, void *handle, CUmemAllocationHandleType type,
                                           unsigned long long flags)
{
    VGS_ENTER();
    struct pool_file said;
    VGS_VALUE(pool_out && type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR && flags == 0 &&
              is_pool_file((int)(intptr_t)handle, &said));
    CUdevice device = 0;
    while (vgs_device_ok(device) && vgs_gpus.index[device] != said.gpu)
        device++;
    VGS_CHECK(vgs_device_ok(device), CUDA_ERROR_INVALID_DEVICE);
    CUmemoryPool pool = vgs_pool_new(device);
    VGS_CHECK(pool, CUDA_ERROR_OUT_OF_MEMORY);
    pool->is_shareable = pool->is_imported = true;
    pool->name = said.name;
    *pool_out = pool;
    return CUDA_SUCCESS;
}

/* Of a pool that was exported before. */
VGS_API cuMemPoolExportPointer(CUmemPoolPtrExportData *shareData_out, CUdeviceptr ptr)
{
    VGS_ENTER();
    CUdeviceptr base;
    struct vgs_block *block = vgs_arena_find(ptr, &base);
    VGS_VALUE(shareData_out && block && base == ptr && block->kind == VGS_POOLED);
    VGS_VALUE(block->pool->name != 0 && !block->pool->is_imported);
    struct pointer_data said = {.magic = POINTER_MAGIC, .name = block->pool->name, .size = block->size};
    memset(shareData_out, 0, sizeof *shareData_out);
    memcpy(shareData_out, &said, sizeof said);
    return CUDA_SUCCESS;
}

VGS_API cuMemPoolImportPointer(CUdeviceptr *ptr_out, CUmemoryPool pool, CUmemPoolPtrExportData *shareData)
{
    VGS_ENTER_CONTEXT();
    struct pointer_data said;
    VGS_VALUE(ptr_out && shareData && vgs_valid(pool, VGS_POOL) && !pool->destroyed && pool->is_imported);
    memcpy(&said, shareData, sizeof said);
    VGS_VALUE(memcmp(said.magic, POINTER_MAGIC, sizeof POINTER_MAGIC) == 0 && said.name == pool->name && said.size);
    return vgs_pool_take(ptr_out, said.size, pool, ctx);
}
