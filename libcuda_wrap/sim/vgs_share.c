/* vgs_share.c - memory that more than one process uses: files that carry it, memory opened by handle, memory of other interfaces.
 *
 * Shared memory counts with the process that made it, until that ends.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vgs_driver.h"

#define FILE_NAME "vgpu-sim-gpu"

int vgs_shared_file(uint32_t gpu, uint64_t size)
{
    char name[64];
    snprintf(name, sizeof name, FILE_NAME "%u", gpu);
    int fd = (int)syscall(SYS_memfd_create, name, 1u /* close on exec */);
    if (fd >= 0 && ftruncate(fd, (off_t)size) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

bool vgs_is_shared_file(int fd, uint32_t *gpu, uint64_t *size)
{
    char link[64], target[128] = "";
    struct stat status;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, target, sizeof target - 1) < 0 || fstat(fd, &status) != 0)
        return false;
    *size = (uint64_t)status.st_size;
    return sscanf(target, "/memfd:" FILE_NAME "%u", gpu) == 1;
}

/* What a CUipcMemHandle says. The bytes are not shared: who opens it has zeros of its own at addresses of its own. */
struct ipc_handle {
    char magic[8];
    int32_t pid;
    uint32_t gpu;
    uint64_t base, size;
};
_Static_assert(sizeof(struct ipc_handle) <= sizeof(CUipcMemHandle), "fits");
#define IPC_MAGIC "vgs-ipc"

VGS_API cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr dptr)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    CUdeviceptr base;
    struct vgs_block *block = vgs_arena_find(dptr, &base);
    VGS_VALUE(handle && block && block->kind == VGS_DEVICE);
    struct ipc_handle said = {IPC_MAGIC, (int32_t)getpid(), block->gpu, base, block->size};
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &said, sizeof said);
    return CUDA_SUCCESS;
}

static pthread_mutex_t ipc_lock = PTHREAD_MUTEX_INITIALIZER;

struct search {
    CUcontext ctx;
    uint64_t maker;
    CUdeviceptr found;
};

static uint64_t name_of(const struct ipc_handle *said)
{
    return (uint64_t)(uint32_t)said->pid << 48 ^ said->base;
}

/* An opened block keeps the maker's name where others keep their pool, and how often it is open in its flags. */
static void match(CUdeviceptr base, struct vgs_block *block, void *argument)
{
    struct search *search = argument;
    if (block->kind == VGS_OPENED && block->ctx == search->ctx && (uint64_t)(uintptr_t)block->pool == search->maker)
        search->found = base;
}

VGS_API cuIpcOpenMemHandle_v2(CUdeviceptr *pdptr, CUipcMemHandle handle, unsigned int Flags)
{
    VGS_ENTER_CONTEXT();
    struct ipc_handle said;
    memcpy(&said, &handle, sizeof said);
    VGS_VALUE(pdptr && Flags == 1 && memcmp(said.magic, IPC_MAGIC, sizeof said.magic) == 0);
    VGS_CHECK(said.pid != (int32_t)getpid(), CUDA_ERROR_INVALID_CONTEXT); /* not in the process that made it */
    VGS_VALUE(said.gpu == ctx->gpu);
    struct search search = {.ctx = ctx, .maker = name_of(&said)};
    pthread_mutex_lock(&ipc_lock);
    vgs_arena_each(match, &search);
    CUdeviceptr same;
    if (search.found) {
        vgs_arena_find(search.found, &same)->flags++;
    } else {
        struct vgs_block block = {.size = said.size,
                                  .ctx = ctx,
                                  .gpu = said.gpu,
                                  .kind = VGS_OPENED,
                                  .flags = 1,
                                  .pool = (CUmemoryPool)(uintptr_t)search.maker};
        search.found = vgs_arena_take(&block);
    }
    pthread_mutex_unlock(&ipc_lock);
    VGS_CHECK(search.found, CUDA_ERROR_OUT_OF_MEMORY);
    *pdptr = search.found;
    return CUDA_SUCCESS;
}

VGS_API cuIpcOpenMemHandle(CUdeviceptr *pdptr, CUipcMemHandle handle, unsigned int Flags)
{
    VGS_ENTER();
    return cuIpcOpenMemHandle_v2(pdptr, handle, Flags);
}

VGS_API cuIpcCloseMemHandle(CUdeviceptr dptr)
{
    VGS_ENTER_CONTEXT();
    (void)ctx;
    CUdeviceptr base;
    pthread_mutex_lock(&ipc_lock);
    struct vgs_block *block = vgs_arena_find(dptr, &base);
    bool opened = block && base == dptr && block->kind == VGS_OPENED;
    if (opened && --block->flags == 0)
        vgs_arena_give(base);
    pthread_mutex_unlock(&ipc_lock);
    return opened ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

struct CUextMemory_st {
    struct vgs_object head;
    uint32_t gpu;
    uint64_t size;
};

/* There is no other interface here that could have made the memory: an import takes it. */
VGS_API cuImportExternalMemory(CUexternalMemory *out, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *desc)
{
    VGS_ENTER_CONTEXT();
    VGS_VALUE(out && desc && desc->size);
    VGS_CHECK(desc->type == CU_EXTERNAL_MEMORY_HANDLE_TYPE_OPAQUE_FD, CUDA_ERROR_NOT_SUPPORTED);
    VGS_CHECK(vgs_charge(ctx->gpu, desc->size), CUDA_ERROR_OUT_OF_MEMORY);
    CUexternalMemory memory = vgs_new(VGS_EXTERNAL, sizeof *memory, ctx);
    if (!memory) {
        vgs_refund(ctx->gpu, desc->size);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    memory->gpu = ctx->gpu;
    memory->size = desc->size;
    *out = memory;
    return CUDA_SUCCESS;
}

VGS_API cuDestroyExternalMemory(CUexternalMemory memory)
{
    VGS_ENTER();
    VGS_CHECK(vgs_valid(memory, VGS_EXTERNAL), CUDA_ERROR_INVALID_HANDLE);
    vgs_refund(memory->gpu, memory->size);
    vgs_delete(memory);
    return CUDA_SUCCESS;
}
